//! Where the database is: the servers that `ETL_DATABASE_URL` names, the encryption that it asks for, and where the password comes
//! from. Promises: what cannot be right is refused before a connection is made; no sentence and no log line has a value of the
//! URL, and of its parameters only names that are known.

use std::fmt;
use std::path::PathBuf;

use common::settings::{self, SecretUrl};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;

use crate::encryption::{self, Encryption};
use crate::error::{Class, cause, classify};
use crate::password::Password;

/// The address of a database. It is displayed as scheme, hosts, ports and path alone.
#[derive(Clone)]
pub struct Address {
    url: SecretUrl,
    hosts: Vec<PgConnectOptions>,
    password: Password,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the settings")]
struct Settings {
    database_url: Option<SecretUrl>,
    database_password_file: Option<PathBuf>,
    database_password_command: Option<String>,
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAddress(String);

impl InvalidAddress {
    fn new(url: &SecretUrl, why: &str) -> Self {
        Self(format!("cannot use ETL_DATABASE_URL ({url}): {why}"))
    }
}

impl Address {
    /// The address that the settings have, or `default`.
    pub fn load(default: Option<&str>) -> anyhow::Result<Option<Self>> {
        let settings: Settings = settings::load()?;
        let default = || default.and_then(|text| text.parse().ok());
        let Some(url) = settings.database_url.or_else(default) else {
            return Ok(None);
        };
        let password = Password::new(
            settings.database_password_file,
            settings.database_password_command,
        );
        let address = password.and_then(|password| Self::with(&url, password));
        let address = address.map_err(|why| InvalidAddress::new(&url, &why));
        Ok(Some(address?))
    }

    /// The address that a URL has, with the password in it.
    pub fn new(url: &SecretUrl) -> Result<Self, InvalidAddress> {
        let address = Self::with(url, Password::default());
        address.map_err(|why| InvalidAddress::new(url, &why))
    }

    fn with(url: &SecretUrl, password: Password) -> Result<Self, String> {
        let hosts = url.expose_each().map(|url| options(url.clone()));
        let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        if let Some(setting) = password.setting()
            && url.expose_each().any(has_password)
        {
            return Err(format!(
                "it has a password, and {setting} is set, too; remove one of them"
            ));
        }
        Ok(Self {
            url: url.clone(),
            hosts,
            password,
        })
    }

    pub(crate) fn hosts(&self) -> &[PgConnectOptions] {
        &self.hosts
    }

    pub(crate) fn password(&self) -> &Password {
        &self.password
    }

    /// Where the password comes from, for people.
    pub fn password_source(&self) -> String {
        match self.password.setting() {
            Some(setting) => format!("asked of {setting} for each connection"),
            None if self.url.expose_each().any(has_password) => "in ETL_DATABASE_URL".to_owned(),
            None => "not in the settings: PGPASSWORD or ~/.pgpass, or none is needed".to_owned(),
        }
    }

    /// The host and the port of the first server, and the database, as other tools name them.
    pub fn first(&self) -> (String, u16, String) {
        let first = &self.hosts[0];
        let database = first.get_database().unwrap_or_else(|| first.get_username());
        (
            first.get_host().to_owned(),
            first.get_port(),
            database.to_owned(),
        )
    }

    /// Each server, and how the connection to it is protected.
    pub async fn encryption(&self) -> Vec<(String, Encryption)> {
        let each = self
            .hosts
            .iter()
            .map(async |host| (name(host), encryption::of(host).await));
        futures::future::join_all(each).await
    }

    /// Warns of servers elsewhere that may be spoken to in clear text, and that nobody verifies. For the start of a service.
    pub fn warn_of_encryption(&self) {
        let servers = self.hosts.iter().filter(|host| encryption::is_lax(host));
        let servers: Vec<_> = servers.map(name).collect();
        if !servers.is_empty() {
            tracing::warn!(
                servers = servers.join(", "),
                "ETL_DATABASE_URL has no sslmode (or prefer): the connection is encrypted only if the server offers it, and nobody verifies the server; set sslmode=verify-full, or sslmode=disable where the network is trusted"
            );
        }
    }

    /// Why the database cannot be used, with the remedy.
    pub fn failed(&self, error: &sqlx::Error) -> String {
        let (failed, remedy) = match (error, classify(error)) {
            (sqlx::Error::Configuration(_), _) => ("use", ""),
            (_, Class::Configuration) => (
                "use",
                "; check user, password and database in ETL_DATABASE_URL",
            ),
            _ => (
                "connect to",
                "; check that it runs and that ETL_DATABASE_URL is right",
            ),
        };
        let cause = cause(error);
        format!("cannot {failed} the database {self}: {cause}{remedy}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A server, for people.
pub(crate) fn name(options: &PgConnectOptions) -> String {
    format!("{}:{}", options.get_host(), options.get_port())
}

fn has_password(url: &url::Url) -> bool {
    url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password")
}

/// What sqlx understands after the `?` of a URL, without the parameters whose values are files. It ignores others, and logs them with their values.
const PARAMETERS: [&str; 11] = [
    "sslmode",
    "ssl-mode",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// All of them: those whose values are files, too.
fn known() -> impl Iterator<Item = &'static str> {
    PARAMETERS.into_iter().chain(encryption::FILES)
}

/// What libpq and other clients understand, and sqlx does not: names that a URL from elsewhere has.
const OTHERS: [&str; 22] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "connection_limit",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "passfile",
    "pgbouncer",
    "pool_timeout",
    "require_auth",
    "schema",
    "service",
    "ssl",
    "sslnegotiation",
    "sslsni",
    "ssl_min_protocol_version",
    "tcp_user_timeout",
];

/// libpq's parameter for what the connections do in any case.
const TARGET: &str = "target_session_attrs";

/// sqlx accepts any scheme, and its errors quote values.
fn options(mut url: url::Url) -> Result<PgConnectOptions, String> {
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err("it does not begin with postgres://, as postgres://user:password@host:5432/database?sslmode=verify-full does".to_owned());
    }
    let (targets, others): (Vec<_>, Vec<_>) = url
        .query_pairs()
        .into_owned()
        .partition(|(name, _)| name == TARGET);
    if !targets.is_empty() {
        let is_writable = |value: &str| matches!(value, "read-write" | "primary");
        if !targets.iter().all(|(_, value)| is_writable(value)) {
            return Err("target_session_attrs can be read-write or primary, and need not be there: of several hosts, the one that takes writes is used".to_owned());
        }
        url.query_pairs_mut().clear().extend_pairs(&others);
    }
    let is_known = |name: &str| known().any(|known| known == name) || name.starts_with("options[");
    if let Some(at) = others.iter().position(|(name, _)| !is_known(name)) {
        return Err(unknown(at, &others[at].0));
    }
    let parsed: Result<PgConnectOptions, _> = url.as_str().parse();
    let Ok(options) = parsed else {
        return Err(unreadable(&url, &others));
    };
    // Poolers refuse it, and every version that is supported prints floats exactly without it.
    let options = options.extra_float_digits(None);
    encryption::settle(options, &others)
}

/// A parameter that would have no effect. The name of one may be the rest of a password with an `&` in it.
fn unknown(at: usize, name: &str) -> String {
    if name == "channel_binding" {
        return "its parameter channel_binding is not understood; remove it: sslmode=verify-full also keeps others from standing in between".to_owned();
    }
    if OTHERS.contains(&name) {
        return format!("its parameter {name} is not understood here; remove it");
    }
    let near = known().map(|known| (strsim::damerau_levenshtein(name, known), known));
    match near.min() {
        Some((1..=2, known)) => format!("it has a parameter that is not known; is {known} meant?"),
        _ => format!(
            "parameter {} after its ? is not known, such as sslmode would be; in a password, & is %26",
            at + 1
        ),
    }
}

/// Why sqlx does not take a URL whose parameters are known.
fn unreadable(url: &url::Url, parameters: &[(String, String)]) -> String {
    let is_wrong = |(name, value): &&(String, String)| {
        let mut alone = url.clone();
        alone.query_pairs_mut().clear().append_pair(name, value);
        let mut without = url.clone();
        without.set_query(None);
        let parses = |url: &url::Url| url.as_str().parse::<PgConnectOptions>().is_ok();
        parses(&without) && !parses(&alone)
    };
    match parameters.iter().find(is_wrong) {
        Some((name, _)) => format!("its parameter {name} has a value that it cannot have"),
        None => "a part of it is not UTF-8".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Result<Vec<String>, String> {
        let address = Address::new(&url.parse().unwrap()).map_err(|error| error.to_string())?;
        Ok(address.hosts.iter().map(name).collect())
    }

    #[test]
    fn url_of_libpq_with_several_hosts_is_understood() {
        let several =
            "postgres://etl:secret@one,two:5433/db?target_session_attrs=read-write&sslmode=disable";
        assert_eq!(hosts(several).unwrap(), ["one:5432", "two:5433"]);
        assert_eq!(
            hosts("postgres://one/db?target_session_attrs=primary").unwrap(),
            ["one:5432"]
        );
        let standby = hosts("postgres://one,two/db?target_session_attrs=standby").unwrap_err();
        assert!(standby.contains("read-write or primary"), "{standby}");
    }

    #[test]
    fn parameter_that_cannot_be_used_is_named_and_not_quoted() {
        for (parameters, said) in [
            ("pasword=secret", "is password meant?"),
            ("sslmod=secret", "is sslmode meant?"),
            ("sslmode=require&channel_binding=secret", "channel_binding"),
            ("connect_timeout=secret", "connect_timeout"),
            ("sslmode=disable&password=se&secret=1", "parameter 3"),
            ("sslmode=secret", "its parameter sslmode"),
            ("sslmode=disable&port=secret", "its parameter port"),
            ("hostaddr=secret", "its parameter hostaddr"),
            ("sslrootcert=/secret/ca.pem", "sslrootcert"),
            ("sslmode=verify-full&sslkey=/secret.key", "sslkey"),
        ] {
            let url = format!("postgres://one,two/db?{parameters}");
            let error = hosts(&url).unwrap_err();
            assert!(
                error.contains(said) && !error.contains("secret"),
                "{parameters}: {error}"
            );
        }
    }

    #[test]
    fn password_is_in_one_place() {
        let file = || Password::new(Some("/run/password".into()), None).unwrap();
        for url in [
            "postgres://u:secret@h/d",
            "postgres://u@h/d?password=secret",
        ] {
            let url: SecretUrl = url.parse().unwrap();
            let error = Address::with(&url, file()).unwrap_err();
            assert!(error.contains("ETL_DATABASE_PASSWORD_FILE"), "{error}");
            assert!(!error.contains("secret"), "{error}");
            assert_eq!(
                Address::new(&url).unwrap().password_source(),
                "in ETL_DATABASE_URL"
            );
        }
        let address = Address::with(&"postgres://u@h/d".parse().unwrap(), file()).unwrap();
        let source = address.password_source();
        assert!(source.contains("ETL_DATABASE_PASSWORD_FILE"), "{source}");
    }
}
