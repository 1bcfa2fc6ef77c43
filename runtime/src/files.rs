//! Writing files so that a reader never sees half of one, and hashes of their contents.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// Writes a file under a temporary name in the same folder and renames it to `path`
/// once `write` has succeeded and the data has been flushed.
///
/// # Errors
/// Whatever `write` or the file system answers; `path` is untouched then.
pub fn write_atomic<F>(path: &Path, write: F) -> io::Result<()>
where
    F: FnOnce(&mut BufWriter<File>) -> io::Result<()>,
{
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let temporary = NamedTempFile::new_in(folder)?;
    let mut writer = BufWriter::new(temporary.reopen()?);
    write(&mut writer)?;
    writer.flush()?;
    set_default_mode(temporary.path())?;
    temporary.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Temporary files are private to their owner; results are meant to be read by others too.
#[cfg(unix)]
fn set_default_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_mode(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// SHA-256 of a file as lower-case hexadecimal digits, read in pieces.
///
/// # Errors
/// Whatever the file system answers.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    feed(&mut hasher, &mut File::open(path)?)?;
    Ok(hex(&hasher.finalize()))
}

/// Passes all of `file` to `hasher`, in pieces.
pub(crate) fn feed(hasher: &mut Sha256, file: &mut File) -> io::Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        hasher.update(&piece[..read]);
    }
}

/// Lower-case hexadecimal digits, two for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write_atomic(&path, |w| {
            w.write_all(b"new")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unwritable_folder_is_an_error() {
        assert!(write_atomic(Path::new("/nonexistent/a"), |_| Ok(())).is_err());
    }
}
