//! The encryption of a connection to PostgreSQL: what `sslmode` and `sslrootcert` mean, how far they protect, and what to do when a
//! server does not offer it or is not who it should be. They mean what libpq makes of them, where sqlx makes less.
//!
//! Source: PostgreSQL documentation, "SSL Support".

use std::net::IpAddr;
use std::time::Duration;

use common::settings::variable;
use rustls::CertificateError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::address::name;

/// How far the connection to a server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// It may be in clear text, and does not leave the machine.
    Local,
    /// It is in clear text.
    None,
    /// It is encrypted, and the server may be anybody.
    Unverified,
    /// Some authority that is trusted here has signed the server's certificate, whatever name is in it.
    AnyName,
    /// The certificate is of a trusted authority and for the host's name.
    Verified,
}

/// The names of the parameter with the authority's certificate.
const ROOT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];

/// The parameters whose values are files.
pub(crate) const FILES: [&str; 7] = [
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
];

/// The longest that a server may take to say whether it offers TLS.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

/// The request of the protocol for TLS. The server answers with `S` or `N`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The options of a URL with these parameters, as libpq understands them: `sslrootcert=system` is verify-full with the system's
/// authorities, and `require` with an authority's file is verify-ca.
pub(crate) fn settle(
    options: PgConnectOptions,
    parameters: &[(String, String)],
) -> Result<PgConnectOptions, String> {
    let given = |names: &[&str]| {
        let found = parameters
            .iter()
            .rfind(|(name, _)| names.contains(&&**name));
        found.map(|(_, value)| value.clone())
    };
    let mode = given(&["sslmode", "ssl-mode"]).or_else(|| variable("PGSSLMODE"));
    let root = given(&ROOT).or_else(|| variable("PGSSLROOTCERT"));
    if root.as_deref() == Some("system") {
        return match options.get_ssl_mode() {
            PgSslMode::VerifyFull => Ok(system(options)),
            _ if mode.is_none() => Ok(system(options)),
            _ => Err("sslrootcert=system needs sslmode=verify-full: anybody can have a certificate of a public authority".to_owned()),
        };
    }
    for (name, file) in parameters
        .iter()
        .filter(|(name, _)| FILES.contains(&&**name))
    {
        if let Err(error) = std::fs::File::open(file) {
            return Err(format!("cannot read the file that {name} names: {error}"));
        }
    }
    match options.get_ssl_mode() {
        PgSslMode::Require if root.is_some() => Ok(options.ssl_mode(PgSslMode::VerifyCa)),
        _ => Ok(options),
    }
}

/// sqlx trusts the system's authorities in any case, and those of the file in addition: here, of an empty one.
fn system(options: PgConnectOptions) -> PgConnectOptions {
    options
        .ssl_mode(PgSslMode::VerifyFull)
        .ssl_root_cert_from_pem(Vec::new())
}

/// Whether the server is on this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a server elsewhere may get clear text because the URL says nothing else.
pub(crate) fn is_lax(options: &PgConnectOptions) -> bool {
    matches!(options.get_ssl_mode(), PgSslMode::Prefer | PgSslMode::Allow) && !is_local(options)
}

/// How far connections with these options are protected. Asks the server where that depends on it.
pub(crate) async fn of(options: &PgConnectOptions) -> Encryption {
    match options.get_ssl_mode() {
        PgSslMode::VerifyFull => Encryption::Verified,
        PgSslMode::VerifyCa => Encryption::AnyName,
        PgSslMode::Require => Encryption::Unverified,
        _ if is_local(options) => Encryption::Local,
        // sqlx takes allow for disable.
        PgSslMode::Disable | PgSslMode::Allow => Encryption::None,
        PgSslMode::Prefer => match timeout(OFFER_TIMEOUT, offers(options)).await {
            Ok(Ok(true)) => Encryption::Unverified,
            _ => Encryption::None,
        },
    }
}

/// Whether a server offers TLS. What it says of a session afterwards is no answer: a pooler may stand in between.
async fn offers(options: &PgConnectOptions) -> std::io::Result<bool> {
    let host = options.get_host().trim_matches(['[', ']']);
    let mut stream = TcpStream::connect((host, options.get_port())).await?;
    stream.write_all(&SSL_REQUEST).await?;
    Ok(stream.read_u8().await? == b'S')
}

/// A failure to connect, as a sentence with the remedy where TLS is the reason.
pub(crate) fn explain(error: sqlx::Error, options: &PgConnectOptions) -> sqlx::Error {
    let server = name(options);
    let sentence = match &error {
        sqlx::Error::Tls(why) if why.to_string().contains("does not support TLS") => format!(
            "{server} offers no TLS, and the sslmode of ETL_DATABASE_URL asks for it; turn on ssl in the server, or correct the address"
        ),
        sqlx::Error::Tls(why) => format!("TLS to {server} is not possible: {why}"),
        sqlx::Error::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(why)) => refused(&server, why),
            Some(why) => format!("TLS to {server} is not possible: {why}"),
            None => return error,
        },
        _ => return error,
    };
    sqlx::Error::Configuration(sentence.into())
}

/// Why a certificate was refused.
fn refused(server: &str, why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => format!(
            "the certificate of {server} is of no authority that is trusted here; let sslrootcert in ETL_DATABASE_URL name the file with the authority's certificate, which the provider has for download"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "the certificate of {server} is for another name ({why}); connect by a name that is in it"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
            "the certificate of {server} has expired, or the clock of this machine is wrong ({why}); renew it"
        ),
        _ => format!("the certificate of {server} is not accepted: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn options(url: &str) -> Result<PgConnectOptions, String> {
        let address = Address::new(&url.parse().unwrap());
        let address = address.map_err(|error| error.to_string())?;
        Ok(address.hosts()[0].clone())
    }

    fn mode(parameters: &str) -> Result<String, String> {
        let options = options(&format!("postgres://db.example/etl?{parameters}"))?;
        Ok(format!("{:?}", options.get_ssl_mode()))
    }

    #[test]
    fn parameters_mean_what_libpq_makes_of_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.path().display();
        assert_eq!(mode("sslrootcert=system").unwrap(), "VerifyFull");
        let full = mode("sslmode=verify-full&sslrootcert=system");
        assert_eq!(full.unwrap(), "VerifyFull");
        let weak = mode("sslmode=require&sslrootcert=system").unwrap_err();
        assert!(weak.contains("needs sslmode=verify-full"), "{weak}");
        let require = mode(&format!("sslmode=require&sslrootcert={file}"));
        assert_eq!(require.unwrap(), "VerifyCa");
        assert_eq!(mode("sslmode=require").unwrap(), "Require");
        assert_eq!(mode("").unwrap(), "Prefer");
    }

    #[test]
    fn only_a_server_elsewhere_without_sslmode_is_warned_of() {
        for (url, lax) in [
            ("postgres://db.example/etl", true),
            ("postgres://10.0.0.1/etl?sslmode=prefer", true),
            ("postgres://db.example/etl?sslmode=disable", false),
            ("postgres://db.example/etl?sslmode=require", false),
            ("postgres://127.0.0.1/etl", false),
            ("postgres://[::1]/etl", false),
            ("postgres://localhost/etl", false),
            ("postgres:///etl?host=/run/postgresql", false),
        ] {
            assert_eq!(is_lax(&options(url).unwrap()), lax, "{url}");
        }
    }
}
