//! Where the broker is: the URL as lapin takes it, and the files of its TLS. lapin reads a URL by itself, too, but takes an
//! IPv6 address for `localhost`, and leaves out what it does not know.

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::str::FromStr;
use url::{Host, Url};

use super::QueueError;

/// The parameters of a URL, as error messages list them.
const PARAMETERS: &str = "heartbeat, connection_timeout, frame_max, channel_max, auth_mechanism, cacertfile, certfile and keyfile";

/// A broker's URL.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
    files: Files,
}

/// The PEM files of TLS.
#[derive(Debug, Default)]
struct Files {
    /// Certificates to trust besides the system's.
    ca: Option<String>,
    /// The client's certificate, with its chain, and its key.
    certificate: Option<String>,
    key: Option<String>,
}

fn wrong(problem: impl Into<String>) -> QueueError {
    QueueError::Url {
        problem: problem.into(),
    }
}

impl Address {
    /// No error has a value of the URL, since any part of it may be a password.
    pub(super) fn of(url: &Url) -> Result<Self, QueueError> {
        let scheme: AMQPScheme = url
            .scheme()
            .parse()
            .map_err(|_| wrong("it begins with neither amqp:// nor amqps://"))?;
        let host = match url.host() {
            None => "localhost".to_owned(),
            Some(Host::Domain(name)) => decoded(name, "host")?,
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
        };
        let port = url.port().unwrap_or_else(|| scheme.default_port());
        let vhost = match url.path() {
            "" => "/".to_owned(),
            "/" => {
                return Err(wrong(
                    "it has a / and no vhost behind it; the default vhost is written /%2f",
                ));
            }
            path => decoded(path.trim_start_matches('/'), "vhost")?,
        };
        // The path // is the vhost / in a careless spelling.
        let vhost = if vhost.is_empty() {
            "/".to_owned()
        } else {
            vhost
        };
        let username = match url.username() {
            "" => "guest".to_owned(),
            name => decoded(name, "user")?,
        };
        let password = url.password().map(|password| decoded(password, "password"));
        let password = password.unwrap_or_else(|| Ok("guest".to_owned()))?;
        let (query, files) = parameters(url)?;
        if scheme == AMQPScheme::AMQP && files.any() {
            return Err(wrong("it has a file for TLS, and TLS begins with amqps://"));
        }
        let userinfo = AMQPUserInfo { username, password };
        let authority = AMQPAuthority {
            userinfo,
            host,
            port,
        };
        let uri = AMQPUri {
            scheme,
            authority,
            vhost,
            query,
        };
        Ok(Self { uri, files })
    }

    /// Reads the files, which may have changed since the last connection.
    pub(super) fn tls(&self) -> Result<OwnedTLSConfig, QueueError> {
        let Files {
            ca,
            certificate,
            key,
        } = &self.files;
        let mut config = OwnedTLSConfig::default();
        if let Some(file) = ca {
            config.cert_chain = Some(certificates("cacertfile", file)?);
        }
        match (certificate, key) {
            (None, None) => {}
            (Some(certificate), Some(key)) => {
                config.identity = Some(OwnedIdentity::PKCS8 {
                    pem: certificates("certfile", certificate)?.into_bytes(),
                    key: private_key(key)?,
                });
            }
            _ => {
                return Err(wrong(
                    "a client certificate needs both certfile and keyfile",
                ));
            }
        }
        Ok(config)
    }
}

impl Files {
    fn any(&self) -> bool {
        self.ca.is_some() || self.certificate.is_some() || self.key.is_some()
    }
}

fn decoded(text: &str, part: &str) -> Result<String, QueueError> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| wrong(format!("its {part} is not UTF-8")))?;
    Ok(decoded.into_owned())
}

fn parameters(url: &Url) -> Result<(AMQPQueryString, Files), QueueError> {
    let (mut query, mut files) = (AMQPQueryString::default(), Files::default());
    for (name, value) in url.query_pairs() {
        match &*name {
            "heartbeat" => query.heartbeat = Some(number(&name, &value)?),
            "connection_timeout" => query.connection_timeout = Some(number(&name, &value)?),
            "frame_max" => query.frame_max = Some(number(&name, &value)?),
            "channel_max" => query.channel_max = Some(number(&name, &value)?),
            "auth_mechanism" => {
                let mechanism = value.parse().map_err(|_| {
                    wrong("its auth_mechanism is not known; it is plain, or external where the client certificate is the user")
                })?;
                query.auth_mechanism = Some(mechanism);
            }
            "cacertfile" => files.ca = Some(value.into_owned()),
            "certfile" => files.certificate = Some(value.into_owned()),
            "keyfile" => files.key = Some(value.into_owned()),
            // What is done in any case.
            "verify" if value == "verify_peer" => {}
            "verify" => {
                return Err(wrong(
                    "it turns the check of the broker's certificate off; name the file of its authority in cacertfile instead",
                ));
            }
            _ => {
                return Err(wrong(format!(
                    "it has a parameter that is not known; the parameters are {PARAMETERS}"
                )));
            }
        }
    }
    Ok((query, files))
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, QueueError> {
    let problem = || wrong(format!("its parameter {name} is not a number in range"));
    value.parse().map_err(|_| problem())
}

/// The text of a file with one certificate at least.
fn certificates(parameter: &str, file: &str) -> Result<String, QueueError> {
    let text = read(parameter, file)?;
    let mut parsed = CertificateDer::pem_slice_iter(text.as_bytes());
    match parsed.next() {
        Some(Ok(_)) => Ok(text),
        _ => Err(wrong(format!(
            "the file {file}, its {parameter}, has no certificate; it should be PEM and begin with -----BEGIN CERTIFICATE-----"
        ))),
    }
}

fn private_key(file: &str) -> Result<Vec<u8>, QueueError> {
    let text = read("keyfile", file)?;
    match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        Ok(_) => Ok(text.into_bytes()),
        Err(_) => Err(wrong(format!(
            "the file {file}, its keyfile, has no private key; it should be PEM, and not encrypted"
        ))),
    }
}

fn read(parameter: &str, file: &str) -> Result<String, QueueError> {
    std::fs::read_to_string(file).map_err(|error| {
        wrong(format!(
            "cannot read the file {file}, its {parameter}: {error}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<Address, String> {
        Address::of(&text.parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_part_of_a_url_is_taken() {
        for (text, host, port, vhost, user) in [
            ("amqp://h", "h", 5672, "/", "guest"),
            ("amqps://h/%2f", "h", 5671, "/", "guest"),
            ("amqp://u%40:p@[::1]:5673/v%2fw", "::1", 5673, "v/w", "u@"),
            ("amqps://u:p@[2001:db8::7]/v", "2001:db8::7", 5671, "v", "u"),
            ("amqp://127.0.0.1//", "127.0.0.1", 5672, "/", "guest"),
            ("amqp:///v", "localhost", 5672, "v", "guest"),
        ] {
            let uri = address(text).unwrap().uri;
            let authority = &uri.authority;
            let found = (
                &*authority.host,
                authority.port,
                &*uri.vhost,
                &*authority.userinfo.username,
            );
            assert_eq!(found, (host, port, vhost, user), "{text}");
        }
        let query = address("amqp://h/v?heartbeat=7&connection_timeout=9&auth_mechanism=external")
            .unwrap()
            .uri
            .query;
        assert_eq!(
            (query.heartbeat, query.connection_timeout),
            (Some(7), Some(9))
        );
    }

    #[test]
    fn url_that_cannot_be_used_is_refused_with_the_reason_and_without_its_values() {
        for (text, wanted) in [
            ("http://h/v", "neither amqp:// nor amqps://"),
            ("amqp://h/", "written /%2f"),
            ("amqp://h/v?heartbeat=secret", "heartbeat is not a number"),
            ("amqp://h/v?secret=1", "the parameters are heartbeat"),
            ("amqp://h/v?auth_mechanism=secret", "external"),
            ("amqps://h/v?verify=verify_none", "cacertfile instead"),
            ("amqp://h/v?cacertfile=/ca.pem", "amqps://"),
            ("amqp://u:%ffsecret@h/v", "its password is not UTF-8"),
        ] {
            let refused = address(text).unwrap_err();
            assert!(refused.contains(wanted), "{text}: {refused}");
            assert!(refused.contains("ETL_AMQP_URL looks like"), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn file_of_tls_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.pem");
        std::fs::write(&file, "-----BEGIN NOTHING-----").unwrap();
        let file = file.to_str().unwrap();
        for (query, wanted) in [
            (
                "cacertfile=/no/ca.pem".to_owned(),
                "cannot read the file /no/ca.pem, its cacertfile",
            ),
            (format!("cacertfile={file}"), "has no certificate"),
            (
                format!("certfile={file}"),
                "needs both certfile and keyfile",
            ),
            (
                format!("certfile={file}&keyfile={file}"),
                "has no certificate",
            ),
        ] {
            let address = address(&format!("amqps://h/v?{query}")).unwrap();
            let refused = address.tls().unwrap_err();
            assert!(refused.is_configuration());
            assert!(refused.to_string().contains(wanted), "{refused}");
        }
    }
}
