//! A URL that keeps its password out of logs and errors.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

/// A URL with a password in it. It is displayed without the password and the query.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// The URL as it is, password included: for connecting, never for display.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl From<Url> for SecretUrl {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if shown.password().is_some() && shown.set_password(Some("REDACTED")).is_err() {
            return f.write_str("[REDACTED]");
        }
        shown.set_query(None);
        write!(f, "{shown}")
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
