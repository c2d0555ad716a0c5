//! The services as child processes: started with an environment of their own, awaited until ready, killed or asked to end,
//! and measured. What they log goes to a file, which is printed when the test fails.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};

pub use rustix::process::Signal;

use crate::{http, wait_for};

/// How long a service may take until it is ready. Generous: the machine may be busy compiling.
const START: Duration = Duration::from_mins(1);

/// A service of the workspace, or its command, about to be started.
#[derive(Debug)]
pub struct Service {
    name: String,
    command: Command,
    http_address: String,
}

impl Service {
    /// The binary `name` of this workspace with nothing of the caller's environment but `PATH`, and a free
    /// `ETL_HTTP_ADDR`.
    pub fn new(name: &str) -> Self {
        let http_address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(binary(name));
        command
            .env_clear()
            .env("PATH", path())
            .env("ETL_HTTP_ADDR", &http_address)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Self {
            name: name.to_owned(),
            command,
            http_address,
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

    /// Starts it, and does not wait.
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
            http_address: self.http_address,
        }
    }

    /// Starts it, and waits until `/readyz` says 200. Panics when it ends before or takes longer than a minute.
    pub async fn start(self) -> Process {
        let mut process = self.spawn();
        process.await_ready().await;
        process
    }

    /// Runs it to its end: its exit code, standard output, and standard error.
    pub async fn run(mut self) -> Finished {
        let output = tokio::time::timeout(START * 5, self.command.output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("{} did not end within five minutes", self.name));
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
    /// `None`: by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a child needs the PATH, everything else is kept from it"
)]
fn path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

/// `target/debug/NAME`, beside the folder of the test that runs.
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

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.expect("127.0.0.1 has a free port").port()
}

/// A running service; killed when dropped. If the test fails its log is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: NamedTempFile,
    http_address: String,
}

impl Process {
    /// `http://127.0.0.1:PORT`, where its health and metrics are.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http_address)
    }

    /// Waits until `/readyz` says 200. Panics when the process ends before or takes longer than a minute.
    pub async fn await_ready(&mut self) {
        let (what, url) = (
            format!("{} to be ready", self.name),
            format!("{}/readyz", self.http_url()),
        );
        wait_for(&what, START, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status} before it was ready", self.name);
            }
            matches!(http::get(&url).await, Ok((status, _)) if status.is_success()).then_some(())
        })
        .await;
    }

    /// What `/readyz` says now: ready or not, and why. `None` when it does not answer.
    pub async fn readiness(&self) -> Option<(bool, String)> {
        let (status, body) = http::get(&format!("{}/readyz", self.http_url()))
            .await
            .ok()?;
        Some((status.is_success(), body))
    }

    /// The sum of a metric over all of its labels, from `/metrics`; `None` when there is none.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = http::get(&format!("{}/metrics", self.http_url()))
            .await
            .ok()?;
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

    /// Peak resident memory so far, in KiB (`VmHWM` of `/proc/PID/status`).
    pub fn vm_hwm(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("{} has no VmHWM: has it ended?", self.name))
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
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
