//! Ending a run from outside: Ctrl-C, or the signal with which a scheduler takes a machine back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that was ended from outside, as shells report Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Sets the flag that it returns on the first Ctrl-C (or SIGTERM or SIGHUP), so that the run
/// can finish its step; when the flag is set already, the process ends at once with
/// [`INTERRUPTED`]. May be called once in a process.
///
/// # Errors
/// When the system refuses the handler.
pub fn stop_flag() -> Result<Arc<AtomicBool>, ctrlc::Error> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("\nfinishing the step and writing a checkpoint; Ctrl-C again ends at once");
    })?;
    Ok(flag)
}
