//! Calls the scripts of `deploy/local` that start and stop servers, and reads what they write into a server's folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{TIMEOUT, wait_until};

/// A server in a folder, controlled by one of the scripts.
#[derive(Debug)]
pub(super) struct Instance {
    script: &'static str,
    dir: PathBuf,
    /// The folder of a private instance, which ends with this value.
    own: Option<TempDir>,
}

impl Instance {
    /// The instance whose folder `variable` names.
    pub(super) fn shared(script: &'static str, variable: &str) -> Self {
        let dir = variable_of(variable).unwrap_or_else(|| {
            panic!(
                "{variable} is not set, so this test has no server to talk to. Run: make test, \
                 or: deploy/local/with-servers cargo test -p CRATE"
            )
        });
        Self {
            script,
            dir: dir.into(),
            own: None,
        }
    }

    /// Starts one in a new folder beside the shared one, so that `with-servers` finds what a killed test left.
    pub(super) async fn private(script: &'static str) -> Self {
        Self::private_with(script, &[]).await
    }

    /// The same, with variables in the environment of its first start.
    pub(super) async fn private_with(script: &'static str, variables: &[(&str, &OsStr)]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let shared = variable_of("ETL_TEST_BROKER_DIR").map(PathBuf::from);
        let beside = shared
            .as_deref()
            .and_then(Path::parent)
            .map_or_else(std::env::temp_dir, Path::to_path_buf);
        let own = TempDir::with_prefix_in(format!("etl-{script}-"), beside)
            .expect("a folder for temporary files");
        // The script may run the server as another user, who must pass.
        std::fs::set_permissions(own.path(), std::fs::Permissions::from_mode(0o711))
            .expect("the folder is ours");
        let instance = Self {
            script,
            dir: own.path().join("server"),
            own: Some(own),
        };
        let mut start = instance.command("start");
        start.envs(variables.iter().copied());
        instance.execute(start, "start").await;
        instance
    }

    pub(super) fn is_private(&self) -> bool {
        self.own.is_some()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first line of a file of the folder.
    pub(super) fn read(&self, name: &str) -> String {
        let path = self.dir.join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| {
            panic!(
                "cannot read {}, which deploy/local/{} writes when it starts: {e}",
                path.display(),
                self.script
            )
        });
        text.lines().next().unwrap_or_default().to_owned()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../deploy/local")
                .join(self.script),
        );
        command.arg(verb).arg(&self.dir);
        command
    }

    pub(super) async fn run(&self, verb: &str) {
        self.execute(self.command(verb), verb).await;
    }

    async fn execute(&self, command: Command, verb: &str) {
        let output = tokio::process::Command::from(command).output().await;
        check(
            &output
                .unwrap_or_else(|e| panic!("cannot run deploy/local/{} {verb}: {e}", self.script)),
            self.script,
            verb,
        );
    }

    pub(super) fn pid(&self) -> Pid {
        let pid = self.read("pid");
        pid.parse()
            .ok()
            .and_then(Pid::from_raw)
            .unwrap_or_else(|| panic!("{pid:?} in a pid file is no process id"))
    }

    /// `kill -9`, and waits until the process is gone.
    pub(super) async fn kill9(&self) {
        assert!(
            self.is_private(),
            "a shared server is not to be killed: other tests use it"
        );
        let pid = self.pid();
        kill_process(pid, Signal::KILL)
            .unwrap_or_else(|e| panic!("cannot kill {} {pid:?}: {e}", self.script));
        wait_until("a killed server to be gone", TIMEOUT, async || !runs(pid)).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place where tests find their servers"
)]
pub(super) fn variable_of(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Alive, and not a zombie.
fn runs(pid: Pid) -> bool {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn check(output: &Output, script: &str, verb: &str) {
    assert!(
        output.status.success(),
        "deploy/local/{script} {verb} failed with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.own.is_some() {
            // Best effort: a server that is left behind is a nuisance, a panic in a drop is worse.
            self.command("delete").output().ok();
        }
    }
}
