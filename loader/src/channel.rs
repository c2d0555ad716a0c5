//! The channels that people are told through, as the settings have them: a URL, or a command of the shell. Promise: a URL is in no
//! log and in no error but for its scheme, host and port, since its path may be the secret.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use common::http::post_json;
use common::job::ChannelName;
use common::secret::SecretUrl;
use common::settings::{self, SettingsError, invalid};
use common::shell;
use ledger::LINEAGE_CHANNEL;
use ledger::outbox::Claimed;
use serde_json::{Value, json};

use crate::lineage::Server;

/// The host whose webhooks take the shape of Slack alone.
const SLACK: &str = "hooks.slack.com";

/// The beginning of the settings.
const PREFIX: &str = "notify_";

/// A way out of the system, for messages that have its name.
#[derive(Clone)]
pub struct Channel {
    pub name: String,
    to: Destination,
    /// By default what the host wants.
    shape: Option<Shape>,
}

#[derive(Clone)]
enum Destination {
    Url(SecretUrl),
    /// The first line of a file, read for each message.
    File(PathBuf),
    /// It gets the message on its standard input.
    Command(String),
    /// It gets events of lineage.
    OpenLineage(Server),
}

/// What a receiver gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The message, with its id.
    Json,
    /// `{"text": "..."}`, as Slack, Mattermost and others take it.
    Slack,
}

/// The channels of the settings `notify_NAME_url`, `_url_file`, `_command` and `_format`.
pub fn load() -> Result<Vec<Channel>, SettingsError> {
    parse(settings::family(PREFIX)?)
}

/// The channels of settings without their beginning: `oncall_url`, and so on.
pub fn parse(mut settings: BTreeMap<String, String>) -> Result<Vec<Channel>, SettingsError> {
    let mut channels = Vec::new();
    while let Some(key) = settings.keys().next().cloned() {
        let ends = ["_url_file", "_url", "_command", "_format"];
        let name = ends.iter().find_map(|end| key.strip_suffix(end));
        let name = name.unwrap_or(&key).to_owned();
        let wrong = |end: &str, problem| invalid(&format!("{PREFIX}{name}{end}"), problem);
        ChannelName::try_from(name.clone()).map_err(|problem| wrong("_url", problem))?;
        let [file, url, command, format] = ends.map(|end| settings.remove(&format!("{name}{end}")));
        let to = match (url, file, command) {
            (Some(url), None, None) => {
                Destination::Url(address(&url).map_err(|problem| wrong("_url", problem))?)
            }
            (None, Some(file), None) => Destination::File(file.into()),
            (None, None, Some(command)) => Destination::Command(command),
            _ => {
                let problem =
                    format!("the channel {name} needs one URL, file or command, and no more");
                return Err(wrong("_url", problem));
            }
        };
        let shape = match (format.as_deref(), &to) {
            (None, _) => None,
            (Some("json"), _) => Some(Shape::Json),
            (Some("slack"), _) => Some(Shape::Slack),
            _ => return Err(wrong("_format", "it has to be json or slack".to_owned())),
        };
        channels.push(Channel { name, to, shape });
    }
    Ok(channels)
}

fn address(text: &str) -> Result<SecretUrl, String> {
    let url: SecretUrl = text.parse().map_err(|error| format!("{error}"))?;
    if matches!(url.expose().scheme(), "http" | "https") {
        return Ok(url);
    }
    Err("it begins with neither https:// nor http://".to_owned())
}

impl Channel {
    /// What tells OpenLineage, which no job names.
    pub fn of_lineage(server: Server) -> Self {
        Self {
            name: LINEAGE_CHANNEL.to_owned(),
            to: Destination::OpenLineage(server),
            shape: None,
        }
    }

    /// Sends a message, and returns when the receiver has taken it.
    pub async fn send(&self, message: &Claimed, limit: Duration) -> anyhow::Result<()> {
        let url = match &self.to {
            Destination::Url(url) => url.clone(),
            Destination::File(file) => read(file, limit).await?,
            Destination::OpenLineage(server) => return server.send(&message.body, limit).await,
            Destination::Command(command) => {
                let shape = self.shape.unwrap_or(Shape::Json);
                let input = format!("{}\n", shape.of(message));
                let ran = shell::run(command, [], input.as_bytes(), limit).await;
                return ran.map(drop).map_err(|error| {
                    anyhow!("the command of the channel {}", error.without_words())
                });
            }
        };
        let of_host = match url.expose().host_str() {
            Some(SLACK) => Shape::Slack,
            _ => Shape::Json,
        };
        let body = self.shape.unwrap_or(of_host).of(message);
        post_json(&url, &[], &body, limit).await
    }
}

async fn read(file: &PathBuf, limit: Duration) -> anyhow::Result<SecretUrl> {
    // A mount may hang.
    let text = tokio::time::timeout(limit, tokio::fs::read_to_string(file)).await;
    let text = text.map_err(anyhow::Error::from).and_then(|text| Ok(text?));
    let text = text.context("cannot read the file with the URL of the channel")?;
    let line = text.lines().next().unwrap_or_default();
    address(line).map_err(|problem| anyhow!("the URL in the file of the channel: {problem}"))
}

impl Shape {
    fn of(self, message: &Claimed) -> Value {
        match self {
            Self::Json => {
                let mut body = message.body.clone();
                body["id"] = json!(message.id);
                body
            }
            Self::Slack => {
                let text = message.body["text"].as_str().unwrap_or_default();
                // What Slack takes for the beginning of a link or of a name.
                let text = text
                    .replace('&', "&amp;")
                    .replace('<', "&lt;")
                    .replace('>', "&gt;");
                json!({ "text": text })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, &str)]) -> Result<Vec<Channel>, String> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        parse(pairs.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn channel_is_a_url_a_file_or_a_command() {
        let channels = parsed(&[
            ("data_command", "cat"),
            ("oncall_format", "slack"),
            ("oncall_url", "https://chat.example/hooks/secret"),
            ("pager_url_file", "/run/secrets/pager"),
        ])
        .unwrap();
        let names: Vec<_> = channels.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["data", "oncall", "pager"]);
        assert_eq!(channels[1].shape, Some(Shape::Slack));
        assert!(matches!(channels[2].to, Destination::File(_)));
    }

    #[test]
    fn wrong_setting_is_named_and_not_quoted() {
        for (pairs, wanted) in [
            (
                &[("oncall_url", "hooks.example/secret")][..],
                "ETL_NOTIFY_ONCALL_URL",
            ),
            (
                &[("oncall_url", "amqp://hooks.example/secret")],
                "neither https:// nor http://",
            ),
            (&[("oncall_format", "slack")], "needs one URL"),
            (
                &[
                    ("oncall_url", "https://a/secret"),
                    ("oncall_command", "secret"),
                ],
                "no more",
            ),
            (
                &[
                    ("oncall_url", "https://a/secret"),
                    ("oncall_format", "secret"),
                ],
                "json or slack",
            ),
            (&[("on-call_url", "https://a/secret")], "lower-case letters"),
        ] {
            let error = parsed(pairs).err().unwrap();
            assert!(
                error.contains(wanted) && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn shapes_have_the_text_and_json_has_the_id() {
        let message = Claimed {
            id: "0191e7b0-0000-7000-8000-000000000001".to_owned(),
            channel: "oncall".to_owned(),
            event: "failed".to_owned(),
            job: "clicks".to_owned(),
            run_id: Some("clicks-1".to_owned()),
            body: json!({ "event": "failed", "text": "The run <clicks-1> & more. `etl status clicks-1` says why." }),
            attempts: 1,
        };
        insta::assert_snapshot!(format!(
            "{:#}\n{:#}",
            Shape::Json.of(&message),
            Shape::Slack.of(&message)
        ));
    }
}
