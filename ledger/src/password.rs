//! The password of the database, read anew for each connection: a file that somebody else renews, or a command that prints it.
//! Promises: a rotation needs no restart; a command that hangs is ended with all that it started; no error has the password, what
//! the command wrote to standard output, or the command itself.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use sqlx::postgres::PgConnectOptions;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const FILE: &str = "ETL_DATABASE_PASSWORD_FILE";
const COMMAND: &str = "ETL_DATABASE_PASSWORD_COMMAND";

/// The longest that a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is read of a file or of a command: an IAM token has some two thousand bytes.
const MAX_BYTES: u64 = 64 << 10;

/// How much of what a command wrote to standard error an error has.
const MAX_SAID: usize = 300;

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

/// The group of a command's processes, which are killed when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended at this moment.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

async fn run(
    command: &str,
    server: &PgConnectOptions,
    limit: Duration,
) -> Result<String, sqlx::Error> {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", command])
        .env("PGHOST", server.get_host())
        .env("PGPORT", server.get_port().to_string())
        .env("PGUSER", server.get_username())
        .envs(server.get_database().map(|name| ("PGDATABASE", name)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = shell
        .spawn()
        .map_err(|error| wrong(format!("cannot start /bin/sh for {COMMAND}: {error}")))?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let mut group = Group(pid);
    let ended = timeout(limit, ended(&mut child)).await;
    let (status, printed, said) = match ended {
        Ok(ended) => {
            // Its number may be another process's from now on.
            group.0 = None;
            ended.map_err(|error| {
                for_now(format!(
                    "cannot read what the command of {COMMAND} prints: {error}"
                ))
            })?
        }
        Err(_) => {
            return Err(for_now(format!(
                "the command of {COMMAND} did not end within {} s, and was killed; run it in a shell, as the same user, to see why",
                limit.as_secs_f32()
            )));
        }
    };
    if !status.success() {
        return Err(failed(status, &said, command));
    }
    first_line(printed).map_err(|problem| {
        for_now(format!(
            "the first line that the command of {COMMAND} printed {problem}; it has to be the password"
        ))
    })
}

/// How a command ended, what it printed, and the end of what it wrote to standard error.
async fn ended(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_BYTES).read_to_end(&mut bytes).await?;
        }
        Ok(bytes)
    };
    let said = async {
        match stderr {
            Some(stderr) => end_of(stderr).await,
            None => Ok(Vec::new()),
        }
    };
    let (printed, said, status) = tokio::try_join!(printed, said, child.wait())?;
    Ok((status, printed, said))
}

async fn end_of(mut stderr: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let (mut end, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let length = stderr.read(&mut buffer).await?;
        if length == 0 {
            return Ok(end);
        }
        end.extend_from_slice(&buffer[..length]);
        end.drain(..end.len().saturating_sub(MAX_SAID));
    }
}

fn failed(status: ExitStatus, said: &[u8], command: &str) -> sqlx::Error {
    let said = String::from_utf8_lossy(said);
    // A shell may quote a line that it cannot parse, and a line may have a token in it.
    let mut lines = command.lines().map(str::trim);
    let quotes = lines.any(|line| !line.is_empty() && said.contains(line));
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = if quotes {
        "what it wrote to standard error quotes the command, and is left out".to_owned()
    } else if said.is_empty() {
        "it wrote nothing to standard error".to_owned()
    } else {
        format!("its last words: {said}")
    };
    match status.code() {
        // By the shell: not executable, not found.
        Some(code @ (126 | 127)) => wrong(format!(
            "the command of {COMMAND} ended with exit code {code}; {said}"
        )),
        Some(code) => for_now(format!(
            "the command of {COMMAND} ended with exit code {code}; {said}"
        )),
        None => for_now(format!("a signal ended the command of {COMMAND}; {said}")),
    }
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
                "a signal ended",
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
