//! Serialized engines, checked before TensorRT sees them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::library::Version;

/// First bytes of every plan.
const TAG: &[u8; 4] = b"ftrt";
/// Bytes up to the end of the version that the plan was built with.
const HEADER: usize = 28;
/// Where that version is: major, minor, patch and build, a byte each.
const VERSION: usize = 24;

/// A plan that is not the expected one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file could not be read.
    #[error("the plan {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not as long as it was when it was written.
    #[error(
        "the plan has {actual} bytes instead of {expected}; it was cut or replaced, build it again"
    )]
    Size {
        /// Bytes noted when it was built.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// Not the same bytes as when it was written.
    #[error(
        "the plan has changed since it was built (SHA-256 {actual} instead of {expected}); build it again"
    )]
    Hash {
        /// Hash noted when it was built.
        expected: String,
        /// Hash of what is there.
        actual: String,
    },
    /// No plan at all.
    #[error("this is no TensorRT plan ({reason})")]
    Header {
        /// What is wrong with its first bytes.
        reason: String,
    },
    /// Built by a later major version than the library's, which cannot read it.
    #[error(
        "the plan was built with TensorRT {plan}, which TensorRT {library} cannot read; build it again"
    )]
    Newer {
        /// Version that built the plan.
        plan: Version,
        /// Version of the library.
        library: Version,
    },
    /// A hash that is not 64 hexadecimal digits.
    #[error("`{given}` is no SHA-256 hash; 64 hexadecimal digits are needed")]
    Digits {
        /// What was given.
        given: String,
    },
}

/// Size and hash of a plan, noted when it is built and kept apart from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: [u8; 32],
}

impl Seal {
    /// The seal of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, sha256: Sha256::digest(bytes).into() }
    }

    /// A seal from a size and 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`PlanError::Digits`].
    pub fn parse(size: u64, digits: &str) -> Result<Self, PlanError> {
        let broken = || PlanError::Digits { given: digits.chars().take(80).collect() };
        let mut sha256 = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(broken());
        }
        for (byte, pair) in sha256.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| broken())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| broken())?;
        }
        Ok(Self { size, sha256 })
    }

    /// The hash as 64 hexadecimal digits.
    #[must_use]
    pub fn digits(&self) -> String {
        use std::fmt::Write as _;
        self.sha256.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// A serialized engine whose header is that of a plan and whose bytes are the sealed ones.
///
/// A plan contains code that TensorRT runs: only plans from a trusted place should be sealed.
#[derive(Clone)]
pub struct Plan {
    bytes: Vec<u8>,
    seal: Seal,
    version: Option<Version>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("size", &self.seal.size)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Reads a plan from a file. A file of another size than the sealed one is not read at all.
    ///
    /// # Errors
    /// All of [`PlanError`] but [`PlanError::Newer`] and [`PlanError::Digits`].
    pub fn open(path: &Path, seal: &Seal) -> Result<Self, PlanError> {
        let read = |source| PlanError::Read { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(read)?;
        let actual = file.metadata().map_err(read)?.len();
        if actual != seal.size {
            return Err(PlanError::Size { expected: seal.size, actual });
        }
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(actual as usize)
            .map_err(|_| read(io::ErrorKind::OutOfMemory.into()))?;
        // One byte more than sealed, so that a file that grows meanwhile is noticed.
        file.take(actual.saturating_add(1)).read_to_end(&mut bytes).map_err(read)?;
        Self::new(bytes, seal)
    }

    /// Takes a plan that is in memory.
    ///
    /// # Errors
    /// [`PlanError::Size`], [`PlanError::Hash`] and [`PlanError::Header`].
    pub fn new(bytes: Vec<u8>, seal: &Seal) -> Result<Self, PlanError> {
        let actual = bytes.len() as u64;
        if actual != seal.size {
            return Err(PlanError::Size { expected: seal.size, actual });
        }
        let found = Seal::of(&bytes);
        if found != *seal {
            return Err(PlanError::Hash { expected: seal.digits(), actual: found.digits() });
        }
        let version = header(&bytes)?;
        Ok(Self { bytes, seal: found, version })
    }

    /// The bytes, to be written to a file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size and hash, to be noted beside the file.
    #[must_use]
    pub fn seal(&self) -> Seal {
        self.seal
    }

    /// The version that built the plan, or nothing if its header has another form than the known one.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Refuses a plan of a later major version.
    pub(crate) fn check_for(&self, library: Version) -> Result<(), PlanError> {
        match self.version {
            Some(plan) if plan.major > library.major => Err(PlanError::Newer { plan, library }),
            _ => Ok(()),
        }
    }
}

/// Checks the header and reads the version from it.
fn header(bytes: &[u8]) -> Result<Option<Version>, PlanError> {
    let Some(header) = bytes.get(..HEADER) else {
        return Err(PlanError::Header { reason: format!("it has only {} bytes", bytes.len()) });
    };
    if !header.starts_with(TAG) {
        return Err(PlanError::Header { reason: "its first bytes are not `ftrt`".to_owned() });
    }
    // Form 0 is the only one known to note the version here.
    if header[4..8] != [0; 4] {
        return Ok(None);
    }
    let part = |index: usize| u32::from(header[VERSION + index]);
    Ok(Some(Version { major: part(0), minor: part(1), patch: part(2) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_bytes(version: [u8; 4]) -> Vec<u8> {
        let mut bytes = b"ftrt".to_vec();
        bytes.resize(VERSION, 0);
        bytes.extend(version);
        bytes.extend(b"weights");
        bytes
    }

    #[test]
    fn a_sealed_plan_is_read_back_with_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network.plan");
        let bytes = plan_bytes([10, 15, 1, 29]);
        std::fs::write(&path, &bytes).unwrap();
        let seal = Seal::of(&bytes);
        let plan = Plan::open(&path, &Seal::parse(seal.size, &seal.digits()).unwrap()).unwrap();
        assert_eq!(plan.version(), Some(Version { major: 10, minor: 15, patch: 1 }));
        assert_eq!((plan.bytes(), plan.seal()), (&bytes[..], seal));
    }

    #[test]
    fn a_cut_or_changed_plan_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network.plan");
        let mut bytes = plan_bytes([10, 3, 0, 0]);
        let seal = Seal::of(&bytes);
        std::fs::write(&path, &bytes[..30]).unwrap();
        assert!(matches!(
            Plan::open(&path, &seal),
            Err(PlanError::Size { expected: 35, actual: 30 })
        ));
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(Plan::open(&path, &seal), Err(PlanError::Hash { .. })));
        assert!(matches!(
            Plan::open(&folder.path().join("none"), &seal),
            Err(PlanError::Read { .. })
        ));
    }

    #[test]
    fn what_is_no_plan_is_refused_even_with_a_right_hash() {
        for bytes in
            [&b""[..], b"ftrt", &[0; 64], b"\x08\x09onnx model, not a plan, of more than 28 bytes"]
        {
            let answer = Plan::new(bytes.to_vec(), &Seal::of(bytes));
            assert!(matches!(answer, Err(PlanError::Header { .. })), "{bytes:?}");
        }
        let mut other_form = plan_bytes([9, 9, 9, 9]);
        other_form[4] = 1;
        assert_eq!(Plan::new(other_form.clone(), &Seal::of(&other_form)).unwrap().version(), None);
    }

    #[test]
    fn hashes_that_are_none_are_refused() {
        for digits in ["", "12", &"g".repeat(64), &"é".repeat(32)] {
            assert!(Seal::parse(1, digits).is_err(), "{digits}");
        }
    }
}
