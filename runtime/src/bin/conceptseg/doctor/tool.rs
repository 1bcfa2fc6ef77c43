//! Programs that answer questions, with a limit on their time.

use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most that is read of an answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// The program that `PATH` has under this name.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let executable = |file: &PathBuf| {
        file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(executable)
}

/// Why a program has not answered.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It did not start.
    #[error("{} does not start: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It did not end.
    #[error("{} did not answer within {} s", program.display(), limit.as_secs())]
    Late {
        /// The program.
        program: PathBuf,
        /// The time that it had.
        limit: Duration,
    },
}

/// What a program said on both outputs, and whether it succeeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// It ended with 0.
    pub success: bool,
    /// Its words.
    pub text: String,
}

/// Asks a program; ends it where it takes longer than `limit`.
pub fn ask(program: &Path, arguments: &[&str], limit: Duration) -> Result<Answer, ToolError> {
    let failed = |source| ToolError::Start { program: program.to_owned(), source };
    // A file and no pipe: what a killed program leaves running may hold a pipe open.
    let mut output = tempfile::tempfile().map_err(failed)?;
    let handle = || output.try_clone().map(Stdio::from);
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(handle().map_err(failed)?)
        .stderr(handle().map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            // Fails where it has just ended by itself.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            return Err(ToolError::Late { program: program.to_owned(), limit });
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = Vec::new();
    output.rewind().map_err(failed)?;
    output.take(MAX_ANSWER).read_to_end(&mut text).map_err(failed)?;
    Ok(Answer { success: status.success(), text: String::from_utf8_lossy(&text).into_owned() })
}
