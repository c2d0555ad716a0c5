//! The server of OpenLineage, as the settings of its own clients have it. Promise: its key is in no log and in no error, and of its
//! URL no more than scheme, host and port.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use common::http::{AUTHORIZATION, HeaderName, HeaderValue, post_json};
use common::secret::SecretUrl;
use common::settings::variable;
use ledger::{Address, Lineage};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::event::{Names, event};

/// The path of events below the server's URL.
const ENDPOINT: &str = "api/v1/lineage";

/// The namespace of the jobs.
const NAMESPACE: &str = "default";

/// Where events go, and what they have besides the ledger's facts.
#[derive(Clone)]
pub struct Server {
    url: SecretUrl,
    key: Vec<(HeaderName, HeaderValue)>,
    names: Names,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the environment variable {variable}: {problem}")]
pub struct InvalidServer {
    variable: &'static str,
    problem: String,
}

fn invalid(variable: &'static str, problem: impl Into<String>) -> InvalidServer {
    let problem = problem.into();
    InvalidServer { variable, problem }
}

impl Server {
    /// The server that the environment names, if it names one.
    pub fn load(address: &Address) -> Result<Option<Self>, InvalidServer> {
        variable("OPENLINEAGE_URL")
            .map(|url| Self::new(&url, variable, address))
            .transpose()
    }

    fn new(
        url: &str,
        variable: impl Fn(&str) -> Option<String>,
        address: &Address,
    ) -> Result<Self, InvalidServer> {
        let url: SecretUrl = url
            .parse()
            .map_err(|error| invalid("OPENLINEAGE_URL", format!("{error}")))?;
        let mut url = url.expose().clone();
        if !matches!(url.scheme(), "http" | "https") {
            let problem = "it begins with neither https:// nor http://";
            return Err(invalid("OPENLINEAGE_URL", problem));
        }
        let endpoint = variable("OPENLINEAGE_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        if let Ok(mut segments) = url.path_segments_mut() {
            let endpoint = endpoint.split('/').filter(|part| !part.is_empty());
            segments.pop_if_empty().extend(endpoint);
        }
        let key = variable("OPENLINEAGE_API_KEY").map(|key| {
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", key.trim())).map_err(|_| {
                    invalid(
                        "OPENLINEAGE_API_KEY",
                        "it has characters that no header takes",
                    )
                })?;
            value.set_sensitive(true);
            Ok((AUTHORIZATION, value))
        });
        let (host, port, database) = address.first();
        Ok(Self {
            url: url.into(),
            key: key.transpose()?.into_iter().collect(),
            names: Names {
                namespace: variable("OPENLINEAGE_NAMESPACE")
                    .unwrap_or_else(|| NAMESPACE.to_owned()),
                host,
                port,
                database,
            },
        })
    }

    /// Sends the event of what the ledger knew, and returns when the server has taken it.
    pub(crate) async fn send(&self, lineage: &Value, limit: Duration) -> anyhow::Result<()> {
        let lineage: Lineage = serde_json::from_value(lineage.clone())
            .map_err(|_| anyhow!("the ledger has lineage that this version does not know"))?;
        let names = self.names.clone();
        // It reads SQL, which may take long.
        let event = spawn_blocking(move || event(&lineage, &names)).await;
        let event = event.context("cannot make the event")?;
        post_json(&self.url, &self.key, &event, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(variables: &[(&str, &str)]) -> Result<Server, String> {
        let address = "postgres://etl:secret@db.example.com/analytics"
            .parse()
            .unwrap();
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let url = variable("OPENLINEAGE_URL").unwrap_or_default();
        let server = Server::new(&url, variable, &Address::new(&address).unwrap());
        server.map_err(|error| format!("{error} {error:?}"))
    }

    #[test]
    fn settings_are_those_of_the_official_clients() {
        let plain = server(&[("OPENLINEAGE_URL", "http://marquez:5000")]).unwrap();
        assert_eq!(
            plain.url.expose().as_str(),
            "http://marquez:5000/api/v1/lineage"
        );
        assert!(plain.key.is_empty());
        let Names {
            namespace,
            host,
            port,
            database,
        } = plain.names;
        assert_eq!(
            (namespace.as_str(), host.as_str(), port, database.as_str()),
            ("default", "db.example.com", 5432, "analytics")
        );
        let other = server(&[
            ("OPENLINEAGE_URL", "https://lineage.example/base/"),
            ("OPENLINEAGE_ENDPOINT", "/api/v2/events"),
            ("OPENLINEAGE_API_KEY", "key"),
            ("OPENLINEAGE_NAMESPACE", "warehouse"),
        ])
        .unwrap();
        assert_eq!(
            other.url.expose().as_str(),
            "https://lineage.example/base/api/v2/events"
        );
        assert_eq!(other.key[0].1, "Bearer key");
        assert_eq!(other.names.namespace, "warehouse");
    }

    #[test]
    fn wrong_setting_is_named_and_not_quoted() {
        for (variables, named) in [
            (&[("OPENLINEAGE_URL", "secret")][..], "OPENLINEAGE_URL"),
            (
                &[("OPENLINEAGE_URL", "amqp://secret/")],
                "neither https:// nor http://",
            ),
            (
                &[
                    ("OPENLINEAGE_URL", "http://h"),
                    ("OPENLINEAGE_API_KEY", "secret\nsecret"),
                ],
                "OPENLINEAGE_API_KEY",
            ),
        ] {
            let error = server(variables).err().unwrap();
            assert!(
                error.contains(named) && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
