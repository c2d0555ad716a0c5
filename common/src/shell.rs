//! Runs a command of the shell that a setting has. Promises: one that hangs is ended with all that it started; no error has the
//! command itself, or what it wrote to standard output.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The most that is read of what a command prints.
const MAX_BYTES: u64 = 64 << 10;

/// How much of what a command wrote to standard error an error has.
const MAX_SAID: usize = 300;

/// Why a command did not succeed: the end of a sentence that names its setting.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("cannot be started: /bin/sh: {0}")]
    Start(std::io::Error),
    #[error("prints what cannot be read: {0}")]
    Read(std::io::Error),
    #[error(
        "did not end within {} s, and was killed; run it in a shell, as the same user, to see why",
        .0.as_secs_f32()
    )]
    Timeout(Duration),
    /// Its exit code, or none where a signal ended it; and its last words.
    #[error("{}; {said}", how(*code))]
    Failed { code: Option<i32>, said: String },
}

impl ShellError {
    /// The error without the command's last words, for a command whose words may have a secret.
    pub fn without_words(&self) -> String {
        match self {
            Self::Failed { code, .. } => format!(
                "{}; its words are left out, since they may have a secret: run it in a shell, as the same user, to see them",
                how(*code)
            ),
            other => other.to_string(),
        }
    }
}

fn how(code: Option<i32>) -> String {
    code.map_or_else(
        || "was ended by a signal".to_owned(),
        |code| format!("ended with exit code {code}"),
    )
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

/// Runs a command with these variables and this standard input, for so long at most. Returns what it prints.
pub async fn run(
    command: &str,
    environment: impl IntoIterator<Item = (&str, String)>,
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, ShellError> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(ShellError::Start)?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let mut group = Group(pid);
    let ended = timeout(limit, ended(&mut child, input)).await;
    let (status, printed, said) = ended
        .map_err(|_| ShellError::Timeout(limit))?
        .map_err(ShellError::Read)?;
    // Its number may be another process's from now on.
    group.0 = None;
    if !status.success() {
        let (code, said) = (status.code(), last_words(&said, command));
        return Err(ShellError::Failed { code, said });
    }
    Ok(printed)
}

/// How a command ended, what it printed, and the end of what it wrote to standard error.
async fn ended(child: &mut Child, input: &[u8]) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let told = async {
        if let Some(mut stdin) = stdin {
            // A command need not read it.
            stdin.write_all(input).await.ok();
        }
        Ok(())
    };
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
    let ((), printed, said, status) = tokio::try_join!(told, printed, said, child.wait())?;
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

fn last_words(said: &[u8], command: &str) -> String {
    let said = String::from_utf8_lossy(said);
    // A shell may quote a line that it cannot parse, and a line may have a token in it.
    let mut lines = command.lines().map(str::trim);
    let quotes = lines.any(|line| !line.is_empty() && said.contains(line));
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if quotes {
        "what it wrote to standard error quotes the command, and is left out".to_owned()
    } else if said.is_empty() {
        "it wrote nothing to standard error".to_owned()
    } else {
        format!("its last words: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn command_gets_its_input_and_need_not_read_it() {
        let (input, limit) = (vec![b'x'; 1 << 20], Duration::from_mins(1));
        let count = run("wc -c", [], &input, limit).await.unwrap();
        assert_eq!(String::from_utf8(count).unwrap().trim(), "1048576");
        let ignored = run("echo \"$A\"", [("A", "b".to_owned())], &input, limit).await;
        assert_eq!(ignored.unwrap(), b"b\n");
    }
}
