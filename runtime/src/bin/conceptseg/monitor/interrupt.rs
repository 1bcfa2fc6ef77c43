//! A clean end on Ctrl-C.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};

/// Is set when the user wants the command to end.
pub fn flag() -> Result<&'static AtomicBool> {
    static FLAG: AtomicBool = AtomicBool::new(false);
    static HANDLER: OnceLock<Result<(), String>> = OnceLock::new();
    let set = || {
        ctrlc::set_handler(|| {
            if FLAG.swap(true, Ordering::Relaxed) {
                // Whoever asks twice wants it at once.
                std::process::exit(130);
            }
        })
        .map_err(|e| e.to_string())
    };
    HANDLER.get_or_init(set).clone().map_err(|e| anyhow!("cannot listen for Ctrl-C: {e}"))?;
    Ok(&FLAG)
}
