//! Settings: defaults, then an optional file, then the environment. The one place that reads the
//! environment.
//!
//! A setting `amqp_url` is `ETL_AMQP_URL` in the environment and `amqp_url = ".."` in the TOML file
//! that `ETL_CONFIG` names. A service asks for its own type; what it leaves out is its default.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

/// Every setting that any part of the system knows. A key of the file that is not here is a typo.
const KNOWN: &[&str] = &[
    "amqp_url",
    "config",
    "database_url",
    "http_addr",
    "jobs",
    "migrate",
    "price_per_tb",
    "batch_rows",
    "batch_bytes",
    "schemas",
    "s3_path_style",
    "shutdown_deadline",
    "tasks",
];

/// A settings file or variable that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "cannot use the settings; correct the environment variable ETL_... or the file that ETL_CONFIG names"
    )]
    Invalid(#[from] config::ConfigError),
    #[error("{file} has the key {key:?}, which is no setting; the settings are {}", KNOWN.join(", "))]
    UnknownKey { file: String, key: String },
}

/// Reads a service's settings.
pub fn load<T: DeserializeOwned>() -> Result<T, SettingsError> {
    load_from(
        variable("ETL_CONFIG"),
        config::Environment::with_prefix("ETL"),
    )
}

fn load_from<T: DeserializeOwned>(
    file: Option<String>,
    environment: config::Environment,
) -> Result<T, SettingsError> {
    let mut builder = config::Config::builder();
    if let Some(file) = file {
        let source = config::File::new(&file, config::FileFormat::Toml);
        let keys = config::Config::builder()
            .add_source(source.clone())
            .build()?
            .try_deserialize::<toml::Table>()?;
        if let Some(key) = keys.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(SettingsError::UnknownKey {
                file,
                key: key.clone(),
            });
        }
        builder = builder.add_source(source);
    }
    Ok(builder
        .add_source(environment.prefix_separator("_").ignore_empty(true))
        .build()?
        .try_deserialize()?)
}

/// A variable that is not a setting of its own, such as `USER`; empty counts as not set.
pub fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the environment"
    )]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A URL with a password in it. Shown without the password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// The URL as it is, password included: for connecting, never for showing.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        amqp_url: SecretUrl,
        #[serde(default)]
        tasks: u32,
    }

    fn environment(pairs: &[(&str, &str)]) -> config::Environment {
        let map = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        config::Environment::with_prefix("ETL")
            .source(Some(map))
            .try_parsing(true)
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let folder = std::env::temp_dir().join(format!("settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("etl.toml");
        std::fs::write(&file, "amqp_url = \"amqp://a:secret@file/\"\ntasks = 3\n").unwrap();
        let path = Some(file.to_str().unwrap().to_owned());
        let sample: Sample = load_from(
            path.clone(),
            environment(&[("ETL_AMQP_URL", "amqp://b:secret@env/%2f")]),
        )
        .unwrap();
        assert_eq!(
            (sample.amqp_url.expose().host_str(), sample.tasks),
            (Some("env"), 3)
        );
        assert!(!format!("{sample:?}").contains("secret"));
        std::fs::write(&file, "amqp_ulr = \"x\"").unwrap();
        let error = load_from::<Sample>(path, environment(&[]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("amqp_ulr"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named() {
        let error = load_from::<Sample>(None, environment(&[("ETL_AMQP_URL", "not a url")]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("ETL_"), "{error}");
    }
}
