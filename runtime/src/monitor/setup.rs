//! What all streams of one place have in common, from its files.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::baseline::{Baseline, BaselineError};
use super::rules::{RuleError, RuleSet};
use super::{MonitorConfig, MonitorError, Reference, StreamMonitor, Watch};
use crate::bundle::Bundle;

/// Longest file of settings, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why streams cannot be watched as asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The file of settings could not be read.
    #[error("cannot read the settings {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A setting is not possible.
    #[error("{path}: {source}")]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        source: MonitorError,
    },
    /// The baseline.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] RuleError),
}

/// The files that say how streams are watched.
#[derive(Debug, Clone, Default)]
pub struct SetupFiles {
    /// What is normal; the statistics of the bundle where absent.
    pub baseline: Option<PathBuf>,
    /// Rules of the user's own (TOML).
    pub rules: Option<PathBuf>,
    /// Settings of the monitor (TOML).
    pub settings: Option<PathBuf>,
}

/// The same, read: what is left to do needs the bundle, but no file any more.
#[derive(Debug, Clone, Default)]
pub struct SetupSources {
    /// Settings of the monitor.
    pub config: MonitorConfig,
    baseline: Option<(PathBuf, Vec<u8>)>,
    rules: Option<(PathBuf, String)>,
}

impl SetupFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`SetupError`] where a file cannot be read, or a setting is wrong.
    pub fn read(&self) -> Result<SetupSources, SetupError> {
        let config = self.settings.as_deref().map(read_settings).transpose()?;
        let baseline = self
            .baseline
            .as_ref()
            .map(|path| Baseline::read(path).map(|bytes| (path.clone(), bytes)));
        let rules =
            self.rules.as_ref().map(|path| RuleSet::read(path).map(|text| (path.clone(), text)));
        Ok(SetupSources {
            config: config.unwrap_or_default(),
            baseline: baseline.transpose()?,
            rules: rules.transpose()?,
        })
    }
}

fn read_settings(path: &Path) -> Result<MonitorConfig, SetupError> {
    let io = |source| SetupError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(io)?;
    MonitorConfig::parse(&text)
        .map_err(|source| SetupError::Settings { path: path.to_owned(), source })
}

/// What the monitors of all streams share.
#[derive(Debug, Clone)]
pub struct Setup {
    config: MonitorConfig,
    reference: Arc<Reference>,
    rules: Arc<RuleSet>,
}

impl Setup {
    /// Joins what was read with the concepts of `bundle`.
    ///
    /// # Errors
    /// [`SetupError`] where the baseline is of other concepts, or a rule is wrong, with its place.
    pub fn new(sources: &SetupSources, bundle: &Bundle) -> Result<Self, SetupError> {
        let SetupSources { config, baseline, rules } = sources;
        let baseline = match baseline {
            Some((path, bytes)) => Baseline::of_bytes(bytes, path, bundle)?,
            None => Baseline::of_bundle(bundle)?,
        };
        let reference = Reference::new(&baseline, &bundle.names);
        let rules = match rules {
            Some((path, text)) => RuleSet::parse(text, path, &reference, &config.windows)?,
            None => RuleSet::default(),
        };
        Ok(Self { config: config.clone(), reference: Arc::new(reference), rules: Arc::new(rules) })
    }

    /// Begins to watch a stream.
    ///
    /// # Errors
    /// [`MonitorError::Settings`].
    pub fn watch(&self, stream: &str) -> Result<Watch, MonitorError> {
        let (reference, rules) = (Arc::clone(&self.reference), Arc::clone(&self.rules));
        Ok(Watch::new(StreamMonitor::new(stream, reference, rules, self.config.clone())?))
    }
}
