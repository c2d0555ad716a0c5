//! The password of the database, read anew for each connection: a file that somebody else renews, or a command that prints it.
//! Promises: a rotation needs no restart; a command that hangs is ended with all that it started; no error has the password, what
//! the command wrote to standard output, or the command itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::shell::{self, ShellError};
use sqlx::postgres::PgConnectOptions;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

const FILE: &str = "ETL_DATABASE_PASSWORD_FILE";
const COMMAND: &str = "ETL_DATABASE_PASSWORD_COMMAND";

/// The longest that a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is read of a file: an IAM token has some two thousand bytes.
const MAX_BYTES: u64 = 64 << 10;

/// Where the password comes from.
#[derive(Clone, Default)]
pub(crate) enum Password {
    /// The URL, or where libpq looks: `PGPASSWORD`, `~/.pgpass`.
    #[default]
    Given,
    /// The first line of a file.
    File(PathBuf),
    /// The first line of the standard output of a command of the shell.
    Command(Arc<str>),
}

impl Password {
    pub(crate) fn new(file: Option<PathBuf>, command: Option<String>) -> Result<Self, String> {
        match (file, command) {
            (None, None) => Ok(Self::Given),
            (Some(file), None) => Ok(Self::File(file)),
            (None, Some(command)) => Ok(Self::Command(command.into())),
            (Some(_), Some(_)) => Err(format!("{FILE} and {COMMAND} are set; remove one of them")),
        }
    }

    /// The setting that it is of.
    pub(crate) fn setting(&self) -> Option<&'static str> {
        match self {
            Self::Given => None,
            Self::File(_) => Some(FILE),
            Self::Command(_) => Some(COMMAND),
        }
    }

    /// The longest that [`Self::ask`] takes.
    pub(crate) fn limit(&self) -> Duration {
        match self {
            Self::Given | Self::File(_) => Duration::ZERO,
            Self::Command(_) => COMMAND_TIMEOUT,
        }
    }

    /// The password for a connection to this server; none where the options have it.
    pub(crate) async fn ask(
        &self,
        server: &PgConnectOptions,
    ) -> Result<Option<String>, sqlx::Error> {
        match self {
            Self::Given => Ok(None),
            Self::File(path) => read(path).await.map(Some),
            Self::Command(command) => run(command, server, COMMAND_TIMEOUT).await.map(Some),
        }
    }

    /// The password of a file that has another one than that which was refused.
    pub(crate) async fn renewed(&self, refused: Option<&str>) -> Option<String> {
        let Self::File(path) = self else { return None };
        let password = read(path).await.ok()?;
        (Some(password.as_str()) != refused).then_some(password)
    }

    /// Where a refused password comes from: the end of a sentence.
    pub(crate) async fn origin(&self) -> String {
        match self {
            Self::Given => String::new(),
            Self::File(path) => {
                let written = tokio::fs::metadata(path).await;
                let age = written
                    .and_then(|file| file.modified())
                    .map(|at| at.elapsed().unwrap_or_default());
                let written = age.map_or_else(
                    |_| String::new(),
                    |age| format!(", written {} s ago", age.as_secs()),
                );
                format!(", with the password of the file of {FILE}{written}")
            }
            Self::Command(_) => {
                format!(", with the password that the command of {COMMAND} printed")
            }
        }
    }
}

/// A failure that may be over in a moment: somebody renews the file, the service that a command asks is away.
fn for_now(sentence: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(sentence))
}

fn wrong(sentence: String) -> sqlx::Error {
    sqlx::Error::Configuration(sentence.into())
}

async fn read(path: &Path) -> Result<String, sqlx::Error> {
    let bytes = async {
        let mut bytes = Vec::new();
        let file = File::open(path).await?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    // A pipe without a writer, or a mount that hangs.
    let bytes = timeout(COMMAND_TIMEOUT, bytes).await;
    let bytes = bytes.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let bytes = bytes.map_err(|error: std::io::Error| {
        let sentence = format!("cannot read the file of {FILE}: {error}");
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::TimedOut => for_now(sentence),
            _ => wrong(sentence),
        }
    })?;
    first_line(bytes).map_err(|problem| {
        for_now(format!(
            "the first line of the file of {FILE} {problem}; write it beside and rename it, so that it is whole at any moment"
        ))
    })
}

/// The password in what was read.
fn first_line(bytes: Vec<u8>) -> Result<String, &'static str> {
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    let line = text.lines().next().unwrap_or_default();
    match line {
        "" => Err("is empty"),
        line if line.contains('\0') => Err("has a NUL"),
        line => Ok(line.to_owned()),
    }
}

async fn run(
    command: &str,
    server: &PgConnectOptions,
    limit: Duration,
) -> Result<String, sqlx::Error> {
    let place = [
        ("PGHOST", server.get_host().to_owned()),
        ("PGPORT", server.get_port().to_string()),
        ("PGUSER", server.get_username().to_owned()),
    ];
    let database = server
        .get_database()
        .map(|name| ("PGDATABASE", name.to_owned()));
    let printed = shell::run(command, place.into_iter().chain(database), &[], limit).await;
    let printed = printed.map_err(|error| {
        let sentence = format!("the command of {COMMAND} {error}");
        match error {
            // By the shell: not executable, not found.
            ShellError::Start(_)
            | ShellError::Failed {
                code: Some(126 | 127),
                ..
            } => wrong(sentence),
            ShellError::Read(_) | ShellError::Timeout(_) | ShellError::Failed { .. } => {
                for_now(sentence)
            }
        }
    })?;
    first_line(printed).map_err(|problem| {
        for_now(format!(
            "the first line that the command of {COMMAND} printed {problem}; it has to be the password"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Class, cause, classify};

    fn server() -> PgConnectOptions {
        "postgres://etl@db.example:5433/target".parse().unwrap()
    }

    async fn printed(command: &str) -> Result<String, sqlx::Error> {
        run(command, &server(), Duration::from_mins(1)).await
    }

    #[tokio::test]
    async fn password_is_the_first_line_that_the_command_prints() {
        assert_eq!(
            printed("printf 'se cret\\r\\nmore\\n'").await.unwrap(),
            "se cret"
        );
        let command = "echo \"$PGUSER@$PGHOST:$PGPORT/$PGDATABASE\"";
        assert_eq!(
            printed(command).await.unwrap(),
            "etl@db.example:5433/target"
        );
    }

    #[tokio::test]
    async fn failure_has_the_exit_code_and_the_end_of_standard_error_alone() {
        let many = "for i in $(seq 9999); do echo \"noise $i\" >&2; done; echo secret; echo 'no such role' >&2; exit 3";
        for (command, part, class) in [
            (many, "exit code 3; its last words: ", Class::World),
            (
                "echo secret; echo 'no such role' >&2; kill -9 $$",
                "was ended by a signal",
                Class::World,
            ),
            (
                "echo secret; /no/such/role",
                "exit code 127",
                Class::Configuration,
            ),
            (
                "echo; echo secret; echo no such role >&2",
                "is empty",
                Class::World,
            ),
            ("printf 'secret\\377'", "is not UTF-8", Class::World),
        ] {
            let error = printed(command).await.unwrap_err();
            let said = cause(&error);
            assert!(said.contains(part) && said.contains(COMMAND), "{said}");
            assert!(!said.contains("secret") && said.len() < 500, "{said}");
            assert_eq!(classify(&error), class, "{said}");
        }
        // What a shell quotes of a command that it cannot parse may have a token in it.
        let quoting = "tr '\\0' ' ' </proc/$$/cmdline >&2; exit 2 # secret";
        let error = cause(&printed(quoting).await.unwrap_err());
        assert!(
            error.contains("is left out") && !error.contains("secret"),
            "{error}"
        );
        let error = cause(&printed(many).await.unwrap_err());
        assert!(error.ends_with("noise 9999 no such role"), "{error}");
    }

    #[tokio::test]
    async fn command_that_hangs_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        // The children hold the pipes; the parent alone is not enough.
        let command = format!("sleep 1000 & echo $! $$ > '{}'; wait", file.display());
        let error = run(&command, &server(), Duration::from_millis(500))
            .await
            .unwrap_err();
        let error = cause(&error);
        assert!(error.contains("did not end within 0.5 s"), "{error}");
        let pids = std::fs::read_to_string(&file).unwrap();
        for pid in pids.split_whitespace() {
            testkit::wait_until("the process to be gone", testkit::TIMEOUT, async || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.rsplit_once(") ")
                    .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
            })
            .await;
        }
    }

    #[tokio::test]
    async fn file_is_read_again_when_its_password_was_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let password = Password::File(path.clone());
        let missing = password.ask(&server()).await.unwrap_err();
        assert_eq!(classify(&missing), Class::World, "{missing}");
        std::fs::write(&path, "").unwrap();
        let empty = password.ask(&server()).await.unwrap_err();
        assert_eq!(classify(&empty), Class::World);
        assert!(cause(&empty).contains("is empty"), "{empty}");
        std::fs::write(&path, "old\n").unwrap();
        assert_eq!(password.ask(&server()).await.unwrap().unwrap(), "old");
        assert_eq!(password.renewed(Some("old")).await, None);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(password.renewed(Some("old")).await.unwrap(), "new");
        let folder = Password::File(folder.path().to_owned());
        let error = folder.ask(&server()).await.unwrap_err();
        assert_eq!(classify(&error), Class::Configuration, "{error}");
    }

    #[test]
    fn two_sources_are_refused() {
        let both = Password::new(Some("/x".into()), Some("true".to_owned()));
        let both = both.err().unwrap();
        assert!(both.contains(FILE) && both.contains(COMMAND), "{both}");
    }
}
