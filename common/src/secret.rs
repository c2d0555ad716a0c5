//! A URL that keeps its password out of logs and errors.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

/// A URL that may have a password in it, and several hosts: `scheme://user:password@one:5672,two:5672/name`. It is displayed
/// as scheme, hosts, ports and path alone: a password may be in any other part. A text in which a part of a password may
/// have become a host or the path is refused.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretUrl {
    first: Url,
    /// The same with each other host, in their order.
    others: Vec<Url>,
}

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
    #[error(
        "it has no // after its scheme, or no host beside a comma; write scheme://user:password@host:port/name"
    )]
    NoHost,
    #[error(
        "it has a # or an @ behind its host, as if a password had a / ? or # in it; write these as %2F, %3F and %23, and an @ as %40"
    )]
    Misplaced,
    #[error("it has several hosts, and only amqp:// and postgres:// may; write one host")]
    Hosts,
}

impl SecretUrl {
    /// The URL with its first host, password included: for connecting, never for display.
    pub fn expose(&self) -> &Url {
        &self.first
    }

    /// The URL with each of its hosts, as [`Self::expose`].
    pub fn expose_each(&self) -> impl Iterator<Item = &Url> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Scheme, hosts and ports alone, for a URL whose path may be a secret.
    pub fn origin(&self) -> String {
        let hosts = self.expose_each().map(|url| {
            let host = url.host_str().unwrap_or_default();
            let port = url.port().map(|port| format!(":{port}"));
            format!("{host}{}", port.unwrap_or_default())
        });
        let hosts: Vec<_> = hosts.collect();
        format!("{}://{}", self.first.scheme(), hosts.join(","))
    }
}

impl From<Url> for SecretUrl {
    fn from(url: Url) -> Self {
        Self {
            first: url,
            others: Vec::new(),
        }
    }
}

/// The text with each of its hosts alone.
fn with_each_host(text: &str) -> Vec<String> {
    let start = text.find("://").map_or(0, |at| at + "://".len());
    let length = text[start..].find(['/', '?', '#']);
    let end = length.map_or(text.len(), |length| start + length);
    let hosts = text[start..end]
        .rfind('@')
        .map_or(start, |at| start + at + 1);
    let each = text[hosts..end].split(',');
    each.map(|host| format!("{}{host}{}", &text[..hosts], &text[end..]))
        .collect()
}

fn parse_one(text: &str) -> Result<Url, InvalidUrl> {
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
    Ok(url)
}

impl FromStr for SecretUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let texts = with_each_host(text);
        let urls = texts.iter().map(|text| parse_one(text));
        let mut urls = urls.collect::<Result<Vec<_>, _>>()?;
        let first = urls.remove(0);
        if urls.is_empty() {
            return Ok(first.into());
        }
        if matches!(first.scheme(), "http" | "https") {
            return Err(InvalidUrl::Hosts);
        }
        if std::iter::once(&first)
            .chain(&urls)
            .any(|url| !url.has_host())
        {
            return Err(InvalidUrl::NoHost);
        }
        Ok(Self {
            first,
            others: urls,
        })
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
        write!(f, "{}{}", self.origin(), self.first.path())
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
            (
                "amqp://guest:se,cret@a:5672,b,[::1]:5673/%2f",
                "amqp://a:5672,b,[::1]:5673/%2f",
            ),
        ] {
            let url: SecretUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn each_host_has_the_rest_of_the_url() {
        let url: SecretUrl = "postgres://etl:se,cret@a:1,b/db?sslmode=disable"
            .parse()
            .unwrap();
        let each: Vec<_> = url.expose_each().map(Url::as_str).collect();
        assert_eq!(
            each,
            [
                "postgres://etl:se,cret@a:1/db?sslmode=disable",
                "postgres://etl:se,cret@b/db?sslmode=disable"
            ]
        );
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
            "postgres://etl:secret@h,/db",
            "postgres://etl:secret@,h/db",
            "postgres://etl:54,se/cret@h,i/db",
            "https://etl:secret@h,i/db",
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
