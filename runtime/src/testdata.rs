//! Where tests find the optional real data that is not part of the repository.

use std::path::{Path, PathBuf};

/// The path of `relative` in the shared data folder: `$CONCEPTSEG_SHARED`, or `../shared`
/// beside the repository. `None`, with a printed reason, where it is absent.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let root = std::env::var_os("CONCEPTSEG_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = root.join(relative);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent (set CONCEPTSEG_SHARED to the data folder)", path.display());
    None
}
