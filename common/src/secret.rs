//! A URL that keeps its password out of logs and errors.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

/// A URL that may have a password in it. It is displayed as scheme, host, port and path alone: a password may be in any
/// other part. A text in which a part of a password may have become the host or the path is refused.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretUrl(Url);

/// The schemes of all settings. A text that begins with something else may begin with a user or a password.
const SCHEMES: [&str; 6] = ["amqp", "amqps", "postgres", "postgresql", "http", "https"];

/// Why a text is not a [`SecretUrl`]. It has nothing of the text, which may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error(
        "it cannot be read as a URL ({0}); write scheme://user:password@host:port/name, and in a password % as %25, / as %2F, ? as %3F, # as %23, @ as %40 and : as %3A"
    )]
    Syntax(url::ParseError),
    #[error("it begins with none of {}://; write scheme://user:password@host:port/name", SCHEMES.join("://, "))]
    Scheme,
    #[error("it has no // after its scheme; write scheme://user:password@host:port/name")]
    NoHost,
    #[error(
        "it has a # or an @ behind its host, as if a password had a / ? or # in it; write these as %2F, %3F and %23, and an @ as %40"
    )]
    Misplaced,
}

impl SecretUrl {
    /// The URL as it is, password included: for connecting, never for display.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// Scheme, host and port alone, for a URL whose path may be a secret.
    pub fn origin(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        let port = self.0.port().map(|port| format!(":{port}"));
        format!("{}://{host}{}", self.0.scheme(), port.unwrap_or_default())
    }
}

impl From<Url> for SecretUrl {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl FromStr for SecretUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let url = Url::parse(text).map_err(InvalidUrl::Syntax)?;
        if !SCHEMES.contains(&url.scheme()) {
            return Err(InvalidUrl::Scheme);
        }
        if !url.has_authority() {
            return Err(InvalidUrl::NoHost);
        }
        let has_at = |part: &str| part.contains('@');
        if url.fragment().is_some() || has_at(url.path()) || url.query().is_some_and(has_at) {
            return Err(InvalidUrl::Misplaced);
        }
        Ok(Self(url))
    }
}

impl TryFrom<String> for SecretUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        text.parse()
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.0.path())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scheme_host_port_and_path_are_shown() {
        for (text, shown) in [
            (
                "amqp://guest:secret@127.0.0.1:5672/%2f?heartbeat=5",
                "amqp://127.0.0.1:5672/%2f",
            ),
            (
                "postgres://h/db?user=etl&password=secret",
                "postgres://h/db",
            ),
            ("postgres://etl:se@cret@[::1]/db", "postgres://[::1]/db"),
            ("postgres://etl%3Asecret@h", "postgres://h"),
            ("postgres://:secret@h/", "postgres://h/"),
            (
                "postgres:///db?host=/run/postgresql&password=secret",
                "postgres:///db",
            ),
        ] {
            let url: SecretUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn refusal_has_nothing_of_the_text() {
        for text in [
            "postgres://etl:se#cret@h/db",
            "postgres://etl:5432#cret@h/db",
            "postgres://etl:54/secret@h/db",
            "postgres://etl:54?secret@h/db",
            "postgres://etl:se/cret@h/db",
            "postgres://etl:secret",
            "postgres:etl:secret@h/db",
            "postgres:/etl:secret@h/db",
            "etl:secret@h/db",
            "secret://h/db",
            "secret",
            "//etl:secret@h/db",
            "host=h user=etl password=secret",
            "postgres://etl:secret@h h/db",
            "postgres://etl:secret@/db",
            "postgres://etl:secret@h:port/db",
            " ",
        ] {
            let refused = text.parse::<SecretUrl>().unwrap_err();
            let sentence = format!("{refused} {refused:?}");
            assert!(
                !sentence.contains("secret") && !sentence.contains("cret@"),
                "{sentence}"
            );
            assert!(sentence.contains("write"), "{sentence}");
        }
    }
}
