//! Loads settings: defaults, then an optional file, then the environment. No other code reads the
//! environment.
//!
//! A setting `amqp_url` is `ETL_AMQP_URL` in the environment and `amqp_url = ".."` in the TOML file
//! that `ETL_CONFIG` names. Each program loads its own type with its own defaults. The names of all
//! settings are here, since one file or one environment may serve all programs.
//!
//! No error quotes a value, a line of the file or a text that cannot be read: each may be a password.

use std::collections::BTreeMap;
use std::path::Path;

use config::ConfigError;
use serde::de::DeserializeOwned;

use crate::nearest::{did_you_mean, nearest};
pub use crate::secret::SecretUrl;

/// The settings of all programs. Another key in the file is an error.
const KNOWN: &[&str] = &[
    "amqp_url",
    "archive",
    "config",
    "database_password_command",
    "database_password_file",
    "database_url",
    "declare",
    "extractor",
    "http_addr",
    "jobs",
    "management_url",
    "migrate",
    "parked_bytes",
    "price_per_tb",
    "batch_rows",
    "batch_bytes",
    "schemas",
    "s3_path_style",
    "shutdown_deadline",
    "tasks",
];

/// Settings of which there are as many as there are names: how they begin, and how they end.
const FAMILIES: &[(&str, &[&str])] = &[("notify_", &["_url", "_url_file", "_command", "_format"])];

/// Settings that only the environment has.
const ENVIRONMENT_ONLY: &[&str] = &["ETL_LOG"];

/// Prefixes of variables that scripts, containers and tests use in the same environment.
const FOREIGN_PREFIXES: &[&str] = &[
    "ETL_AWS_",
    "ETL_BUILD_",
    "ETL_CLOUD_PORT",
    "ETL_DIR",
    "ETL_FAILPOINT",
    "ETL_GRAFANA_",
    "ETL_POSTGRES_",
    "ETL_PROMETHEUS_PORT",
    "ETL_RABBITMQ_",
    "ETL_TEST_",
];

/// A settings file or a variable that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "cannot use {}; correct the environment variable {variable} or the file that ETL_CONFIG names",
        describe(setting, problem)
    )]
    Invalid {
        /// Empty where it is not known.
        setting: String,
        /// `ETL_...`.
        variable: String,
        problem: String,
    },
    #[error("the environment variable {0} is not UTF-8 text; set it again")]
    NotText(String),
    #[error(
        "cannot read the settings file {file} that ETL_CONFIG names; check the path and its permissions"
    )]
    Unreadable {
        file: String,
        source: std::io::Error,
    },
    #[error(
        "{file}, which ETL_CONFIG names, is not TOML from line {line} on; a setting looks like amqp_url = \"amqp://...\""
    )]
    Syntax { file: String, line: usize },
    #[error("{file} has the key {key:?}, which is not a setting; the settings are {}{}", KNOWN.join(", "), did_you_mean(key, KNOWN))]
    UnknownKey { file: String, key: String },
}

/// A setting with a value that cannot be used.
pub fn invalid(setting: &str, problem: String) -> SettingsError {
    SettingsError::Invalid {
        setting: setting.to_owned(),
        variable: format!("ETL_{}", setting.to_uppercase()),
        problem,
    }
}

fn describe(setting: &str, problem: &str) -> String {
    if setting.is_empty() {
        format!("the settings: {problem}")
    } else {
        format!("the setting {setting}: {problem}")
    }
}

impl From<ConfigError> for SettingsError {
    fn from(error: ConfigError) -> Self {
        let (setting, problem) = without_values(error);
        let variable = format!("ETL_{}", setting.to_uppercase());
        Self::Invalid {
            variable: if setting.is_empty() {
                "ETL_...".to_owned()
            } else {
                variable
            },
            setting,
            problem,
        }
    }
}

/// The setting that an error is about, and what is wrong with it, but not what it is.
fn without_values(error: ConfigError) -> (String, String) {
    match error {
        ConfigError::Type { key, expected, .. } => {
            (key.unwrap_or_default(), format!("it has to be {expected}"))
        }
        ConfigError::At { error, key, .. } => {
            let (inner, problem) = without_values(*error);
            (key.unwrap_or(inner), problem)
        }
        ConfigError::NotFound(key) => (key, "it is not set".to_owned()),
        ConfigError::Message(problem) => (String::new(), problem),
        other => (String::new(), other.to_string()),
    }
}

/// Loads the settings of a program.
pub fn load<T: DeserializeOwned>() -> Result<T, SettingsError> {
    let mut variables = config::Map::new();
    for (name, value) in std::env::vars_os() {
        if let Ok(name) = name.into_string()
            && name.starts_with("ETL_")
        {
            match value.into_string() {
                Ok(value) => variables.insert(name, value),
                Err(_) => return Err(SettingsError::NotText(name)),
            };
        }
    }
    load_from(variable("ETL_CONFIG"), variables)
}

fn load_from<T: DeserializeOwned>(
    file: Option<String>,
    variables: config::Map<String, String>,
) -> Result<T, SettingsError> {
    let mut builder = config::Config::builder();
    if let Some(file) = file {
        builder = builder.add_source(config::Config::try_from(&read_file(file)?)?);
    }
    let environment = config::Environment::with_prefix("ETL").source(Some(variables));
    Ok(builder
        .add_source(environment.prefix_separator("_").ignore_empty(true))
        .build()?
        .try_deserialize()?)
}

fn read_file(file: String) -> Result<toml::Table, SettingsError> {
    let text = match std::fs::read_to_string(Path::new(&file)) {
        Ok(text) => text,
        Err(source) => return Err(SettingsError::Unreadable { file, source }),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let error: toml::de::Error = error;
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text
                .bytes()
                .take(start)
                .filter(|byte| *byte == b'\n')
                .count();
            return Err(SettingsError::Syntax { file, line });
        }
    };
    let is_known = |key: &str| KNOWN.contains(&key) || is_of_a_family(key);
    match table.keys().find(|key| !is_known(key)) {
        Some(key) => Err(SettingsError::UnknownKey {
            key: key.clone(),
            file,
        }),
        None => Ok(table),
    }
}

/// Whether a key is a setting with a name in its middle.
fn is_of_a_family(key: &str) -> bool {
    FAMILIES.iter().any(|(begin, ends)| {
        let rest = key.strip_prefix(begin);
        let has_name =
            |rest: &str, end| rest.strip_suffix(end).is_some_and(|name| !name.is_empty());
        rest.is_some_and(|rest| ends.iter().any(|end| has_name(rest, *end)))
    })
}

/// The settings of a family by what follows its beginning, such as `oncall_url` for `notify_`.
pub fn family(begin: &str) -> Result<BTreeMap<String, String>, SettingsError> {
    Ok(of_family(begin, load()?))
}

fn of_family(begin: &str, all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let all = all.into_iter().filter(|(key, _)| is_of_a_family(key));
    let rest = all.filter_map(|(key, value)| Some((key.strip_prefix(begin)?.to_owned(), value)));
    rest.collect()
}

/// The names in a setting that separates them by commas.
pub fn names(list: &str) -> Vec<String> {
    let names = list.split(',').map(str::trim);
    let names = names.filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// A variable that is not a setting, such as `USER`. An empty one counts as not set.
pub fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the environment"
    )]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A sentence for each variable of the environment that looks like a setting and is not one: a misspelled
/// setting would have no effect. The sentences contain no values, since a value may be a password.
pub fn unknown_variables() -> Vec<String> {
    let names = std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.into_string().ok());
    unknown(names.collect())
}

fn unknown(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name.starts_with("ETL_"));
    names.sort();
    let settings = setting_names();
    // Kubernetes sets variables about each of its services in every pod: ETL_LOADER_SERVICE_HOST,
    // ETL_LOADER_PORT_9103_TCP and more for a service etl-loader.
    let services: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_suffix("_SERVICE_HOST"))
        .collect();
    let is_known = |name: &str| {
        settings.iter().any(|setting| setting == name)
            || name
                .strip_prefix("ETL_")
                .is_some_and(|key| is_of_a_family(&key.to_lowercase()))
            || FOREIGN_PREFIXES.iter().any(|other| name.starts_with(other))
            || services
                .iter()
                .filter_map(|service| name.strip_prefix(service))
                .any(|rest| rest.starts_with("_SERVICE_") || rest.starts_with("_PORT"))
    };
    let unknown = names.iter().filter(|name| !is_known(name));
    unknown
        .map(|name| match nearest(name, &settings) {
            Some(setting) => format!(
                "the environment variable {name} is no setting and has no effect; is {setting} meant?"
            ),
            None => format!("the environment variable {name} is no setting and has no effect"),
        })
        .collect()
}

/// The names of all settings in the environment.
fn setting_names() -> Vec<String> {
    let known = KNOWN
        .iter()
        .map(|key| format!("ETL_{}", key.to_uppercase()));
    let families = FAMILIES.iter().flat_map(|(begin, ends)| {
        ends.iter()
            .map(move |end| format!("ETL_{begin}name{end}").to_uppercase())
    });
    let others = ENVIRONMENT_ONLY.iter().map(|name| (*name).to_owned());
    known.chain(families).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        amqp_url: SecretUrl,
        #[serde(default)]
        tasks: u32,
    }

    fn environment(pairs: &[(&str, &str)]) -> config::Map<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn environment_overrides_file() {
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
    fn settings_with_a_name_are_read_beside_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etl.toml");
        std::fs::write(
            &file,
            "tasks = 3\nmigrate = true\nnotify_data_command = \"cat\"\n",
        )
        .unwrap();
        let path = Some(file.to_str().unwrap().to_owned());
        let variables = environment(&[("ETL_NOTIFY_ONCALL_URL", "https://h/"), ("ETL_JOBS", "x")]);
        let found = of_family("notify_", load_from(path.clone(), variables).unwrap());
        let found: Vec<_> = found
            .into_iter()
            .map(|(key, value)| key + " " + &value)
            .collect();
        assert_eq!(found, ["data_command cat", "oncall_url https://h/"]);
        std::fs::write(&file, "notify_data = \"cat\"").unwrap();
        let error = load_from::<Sample>(path, environment(&[])).unwrap_err();
        assert!(error.to_string().contains("notify_data"), "{error}");
    }

    #[test]
    fn list_has_no_empty_name() {
        assert_eq!(names(" a,, b,"), ["a", "b"]);
    }

    fn warned(names: &[&str]) -> Vec<String> {
        unknown(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn misspelled_variable_is_reported_with_the_nearest_setting() {
        for (name, meant) in [
            ("ETL_BATCHROWS", "ETL_BATCH_ROWS"),
            ("ETL_DATABSE_URL", "ETL_DATABASE_URL"),
            ("ETL_JOB", "ETL_JOBS"),
            ("ETL_AMPQ_URL", "ETL_AMQP_URL"),
            ("ETL_LOGS", "ETL_LOG"),
            ("ETL_SCHEMA", "ETL_SCHEMAS"),
        ] {
            let said = warned(&[name]);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains(name), "{said:?}");
            assert!(said[0].ends_with(&format!("is {meant} meant?")), "{said:?}");
        }
        for name in [
            "ETL_PASSWORD",
            "ETL_PORT",
            "ETL_",
            "ETL_NOTIFY_ONCALL",
            "ETL_NOTIFY__URL",
        ] {
            let said = warned(&[name]);
            assert!(
                said[0].ends_with(&format!("{name} is no setting and has no effect")),
                "{said:?}"
            );
        }
    }

    #[test]
    fn foreign_variables_are_not_reported() {
        let names = [
            "PATH",
            "ETLS",
            "ETL_LOG",
            "ETL_CONFIG",
            "ETL_DIR",
            "ETL_FAILPOINT",
            "ETL_TEST_POSTGRES_DIR",
            "ETL_LOADER_SERVICE_HOST",
            "ETL_LOADER_SERVICE_PORT_HTTP",
            "ETL_LOADER_PORT",
            "ETL_LOADER_PORT_9103_TCP_ADDR",
            "ETL_NOTIFY_ONCALL_URL",
            "ETL_NOTIFY_ONCALL_URL_FILE",
        ];
        assert_eq!(warned(&names), Vec::<String>::new());
        assert_eq!(warned(&["ETL_LOADER_PORT"]).len(), 1);
    }

    #[test]
    fn readme_lists_exactly_the_settings() {
        let readme = include_str!("../../README.md");
        let rows = readme.lines().filter(|line| line.starts_with("| `ETL_"));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        let mut documented: Vec<_> = cells
            .flat_map(|cell| cell.split(','))
            .map(|name| name.trim().trim_matches('`').to_owned())
            .collect();
        documented.sort();
        let mut settings = setting_names();
        settings.sort();
        assert_eq!(documented, settings);
    }

    #[test]
    fn invalid_setting_is_named_and_not_quoted() {
        for url in ["secret", "amqp://a:se#secret@h/", "host=h password=secret"] {
            let error = load_from::<Sample>(None, environment(&[("ETL_AMQP_URL", url)]));
            let error = format!("{:#}", anyhow::Error::from(error.unwrap_err()));
            assert!(
                error.contains("ETL_AMQP_URL") && !error.contains("secret"),
                "{error}"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etl.toml");
        let path = Some(file.to_str().unwrap().to_owned());
        for (text, wanted) in [
            ("tasks = 3\namqp_url = \"amqp://a:secret@h/", "line 2"),
            ("amqp_url = amqp://a:secret@h/", "line 1"),
            ("amqp_url = 'x'\namqp_url = 'secret'", "line 2"),
            ("amqp_url = ['secret']", "ETL_AMQP_URL"),
            ("amqp_url = { secret = 'secret' }", "ETL_AMQP_URL"),
            ("amqp_url = 'a:secret'", "ETL_AMQP_URL"),
            ("amqp_url = 'amqp://h'\ntasks = 'secret'", "ETL_TASKS"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = load_from::<Sample>(path.clone(), environment(&[])).unwrap_err();
            let debug = format!("{error:?}");
            let error = format!("{:#}\n{debug}", anyhow::Error::from(error));
            assert!(
                error.contains(wanted) && !error.contains("secret"),
                "{text}: {error}"
            );
        }
    }
}
