//! The stacks of a process's threads.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::settings::variable;

/// The variable from which Rust's standard library takes the size of a thread's stack.
const VARIABLE: &str = "RUST_MIN_STACK";

/// lapin reads headers by recursion, on a thread of its own. Of the 26,000 tables in each other that fit into a frame of
/// RabbitMQ's 128 KiB, each takes up to 2 KiB. An overflow would end the process, again at each delivery. Only pages that
/// a thread touches take memory.
const BYTES: usize = 128 << 20;

/// Starts this process again, as the same process, with stacks that are deep enough for the headers of any message, unless
/// it was started so. To be called first.
pub fn deepen() {
    if variable(VARIABLE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (name, program) = (arguments.next(), std::env::current_exe());
    if let (Some(name), Ok(program)) = (name, program) {
        let mut command = Command::new(program);
        command.arg0(name).args(arguments);
        // It returns only where that is not possible, and then everything but such a message works.
        drop(command.env(VARIABLE, BYTES.to_string()).exec());
    }
}
