//! The services as child processes: started with an isolated environment, awaited until ready, killed or terminated, and
//! measured. They log to a file, which is printed when the test fails.

use std::fs::File;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};

pub use rustix::process::Signal;

use crate::http::{self, StatusCode};
use crate::{TIMEOUT, wait_for};

/// A program of the workspace that is about to be started.
#[derive(Debug)]
pub struct Service {
    name: String,
    command: Command,
}

impl Service {
    /// The binary `name` of this workspace, with only `PATH` of the caller's environment, and `ETL_TEST_ARCHIVE` as its
    /// `ETL_ARCHIVE`: the same tests run in each setting. It serves its health on a free port.
    pub fn new(name: &str) -> Self {
        let mut command = Command::new(binary(name));
        command
            .env_clear()
            .env("PATH", path())
            .env("USER", "tester")
            .env("ETL_HTTP_ADDR", "127.0.0.1:0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(archive) = archive() {
            command.env("ETL_ARCHIVE", archive);
        }
        Self {
            name: name.to_owned(),
            command,
        }
    }

    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// The same program on a terminal of 80 columns, by `script` of util-linux. All that it prints is standard output then, and
    /// nobody types anything.
    #[must_use]
    pub fn on_a_terminal(self) -> Self {
        let program = self.command.as_std();
        let words = iter::once(program.get_program()).chain(program.get_args());
        let words =
            words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")));
        let line = format!("stty cols 80; exec {}", words.collect::<Vec<_>>().join(" "));
        let mut command = Command::new("script");
        command.arg("-qec").arg(line).arg("/dev/null").env_clear();
        let variables = program.get_envs();
        command.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        command.env("TERM", "xterm-256color").stdin(Stdio::null());
        command.kill_on_drop(true);
        Self {
            name: self.name,
            command,
        }
    }

    /// Starts it without waiting.
    pub fn spawn(mut self) -> Process {
        let log = NamedTempFile::with_prefix(format!("{}-", self.name))
            .expect("a temporary file for a log");
        let file = |file: std::io::Result<File>| Stdio::from(file.expect("the log file is open"));
        self.command
            .stdout(file(log.as_file().try_clone()))
            .stderr(file(log.as_file().try_clone()));
        let child = self
            .command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", self.name));
        Process {
            name: self.name,
            child,
            log,
            http_address: OnceLock::new(),
        }
    }

    /// Starts it, and waits until `/readyz` answers 200. Panics when it ends before.
    pub async fn start(self) -> Process {
        let mut process = self.spawn();
        process.await_ready().await;
        process
    }

    /// Runs it and waits for its end; returns the exit code, standard output and standard error.
    pub async fn run(mut self) -> Finished {
        let output = tokio::time::timeout(TIMEOUT * 4, self.command.output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("{} did not end within twenty minutes", self.name));
        let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", self.name));
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The setting of the archive that the tests run in, if it is not the default.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
fn archive() -> Option<String> {
    std::env::var("ETL_TEST_ARCHIVE").ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a child needs the PATH, and gets nothing else"
)]
fn path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

/// The path of the binary `name` of this workspace, as text.
pub(crate) fn path_of(name: &str) -> String {
    binary(name).display().to_string()
}

/// `target/debug/NAME`, found from the path of the running test.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its own file");
    let folder = test
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"))
        .unwrap_or_else(|| Path::new("."));
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not there: build the services before the tests that start them, by: cargo build --workspace",
        path.display()
    );
    path
}

/// A port of 127.0.0.1 on which no process listens: that of tcpmux, which no system runs any more. It is below the ports that
/// the kernel assigns.
pub const CLOSED_PORT: u16 = 1;

/// A running service; killed when dropped. If the test fails its log is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: NamedTempFile,
    http_address: OnceLock<String>,
}

impl Process {
    /// The answer to a path such as `/metrics`; `None` while it does not serve.
    pub async fn get(&self, path: &str) -> Option<(StatusCode, String)> {
        let address = if let Some(known) = self.http_address.get() {
            known
        } else {
            let said = serves(&self.log())?;
            self.http_address.get_or_init(|| said)
        };
        http::get(&format!("http://{address}{path}")).await.ok()
    }

    /// Waits until `/readyz` answers 200. Panics when the process ends before.
    pub async fn await_ready(&mut self) {
        let what = format!("{} to be ready", self.name);
        wait_for(&what, TIMEOUT, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status} before it was ready", self.name);
            }
            self.readiness().await.filter(|(ready, _)| *ready)
        })
        .await;
    }

    /// The current answer of `/readyz`: ready or not, and the causes. `None` when it does not answer.
    pub async fn readiness(&self) -> Option<(bool, String)> {
        let (status, body) = self.get("/readyz").await?;
        Some((status.is_success(), body))
    }

    /// The sum of a metric over all of its labels, from `/metrics`; `None` when there is none.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics").await?;
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' '])
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        };
        body.lines()
            .filter_map(value)
            .fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Panics when it has ended.
    pub fn pid(&self) -> u32 {
        self.child
            .id()
            .unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and waits for its end.
    pub async fn kill9(&mut self) {
        self.child
            .kill()
            .await
            .unwrap_or_else(|e| panic!("cannot kill {}: {e}", self.name));
    }

    /// Sends a signal, such as `Signal::STOP`.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.name));
    }

    /// SIGTERM, and the exit code of a process that ends within `deadline`; `None` when a signal ended it.
    pub async fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait(deadline).await.code()
    }

    /// Waits for its end.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await;
        let ended =
            ended.unwrap_or_else(|_| panic!("{} did not end within {deadline:?}", self.name));
        ended.unwrap_or_else(|e| panic!("cannot wait for {}: {e}", self.name))
    }

    /// Peak memory so far, in KiB, without the pages of the program's own file (`VmHWM` less `RssFile` of `/proc/PID/status`):
    /// those of a build for development are twice those of a release, and are no measure of what the process keeps.
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or_else(|| panic!("{} has no {name} has it ended?", self.name))
        };
        value("VmHWM:").saturating_sub(value("RssFile:"))
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}

/// The address in a service's log at which it serves.
fn serves(log: &str) -> Option<String> {
    let lines = log.lines().filter(|line| line.contains("\"http.addr\""));
    lines
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["http.addr"].as_str().map(str::to_owned))
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(100)..].join("\n");
            #[expect(
                clippy::print_stderr,
                reason = "the log belongs into the report of the failed test"
            )]
            {
                eprintln!(
                    "---- the end of what {} logged ----\n{last}\n----",
                    self.name
                );
            }
        }
    }
}
