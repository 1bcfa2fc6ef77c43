//! Loads the weights of a backbone or of a whole network.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Tensor, no_grad};
use thiserror::Error;

use super::fold::BatchNorm;
use super::graph::{Op, Part};
use super::weights::{WeightError, WeightFile};
use super::{Network, Parameter};

/// What the names of a network's variables start with in a training run's checkpoint.
const CHECKPOINT_PREFIX: &str = "network.";
/// The same for the mean teacher.
const TEACHER_PREFIX: &str = "teacher.";
/// Ends the name of a counter that only training without momentum reads.
const COUNTER: &str = ".num_batches_tracked";

/// Why weights could not be loaded.
#[derive(Debug, Error)]
pub enum PretrainedError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] WeightError),
    /// No variable of the backbone is in the file.
    #[error(
        "backbone {path} has no tensor of this network's backbone; choose the preset that fits the file"
    )]
    NothingFits {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold this network.
    #[error(
        "{path} does not hold the whole network ({report}); give the recipe that it was trained with"
    )]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// What it holds.
        report: Box<LoadReport>,
    },
}

/// A variable that the file holds in another shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherShape {
    /// Name of the variable.
    pub name: String,
    /// Shape that the network has.
    pub expected: Vec<i64>,
    /// Shape in the file.
    pub found: Vec<i64>,
}

/// A batch normalisation that went into the convolution before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folded {
    /// Name of the normalisation.
    pub batch_norm: String,
    /// Name of the convolution.
    pub into: String,
}

/// What became of every variable asked for and every tensor of the file. Counters of batches
/// (`num_batches_tracked`), which no network here reads, are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Variables that now have the file's values.
    pub loaded: Vec<String>,
    /// Batch normalisations of the file that are part of the loaded values of a convolution.
    pub folded: Vec<Folded>,
    /// Variables that the file lacks; they keep their values.
    pub missing: Vec<String>,
    /// Variables that the file holds in another shape; they keep their values.
    pub other_shape: Vec<OtherShape>,
    /// Tensors of the file for which there is no variable.
    pub unused: Vec<String>,
}

impl LoadReport {
    /// One line of the log for each entry, at debug level.
    fn log(&self, path: &Path) {
        let path = path.display();
        for name in &self.loaded {
            tracing::debug!("{path}: {name} loaded");
        }
        for Folded { batch_norm, into } in &self.folded {
            tracing::debug!("{path}: {batch_norm} folded into {into}");
        }
        for name in &self.missing {
            tracing::debug!("{path}: {name} missing");
        }
        for OtherShape { name, expected, found } in &self.other_shape {
            tracing::debug!("{path}: {name} has shape {found:?} instead of {expected:?}");
        }
        for name in &self.unused {
            tracing::debug!("{path}: {name} not used");
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        let folded: Vec<&str> = self.folded.iter().map(|n| n.batch_norm.as_str()).collect();
        let shapes: Vec<&str> = self.other_shape.iter().map(|o| o.name.as_str()).collect();
        list(f, "batch normalisations folded in", &folded)?;
        list(f, "missing", &self.missing)?;
        list(f, "of another shape", &shapes)?;
        list(f, "in the file but not used", &self.unused)
    }
}

/// Adds `, N what (first, second, …)`.
fn list(f: &mut fmt::Formatter<'_>, what: &str, names: &[impl AsRef<str>]) -> fmt::Result {
    const SHOWN: usize = 3;
    if names.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    write!(f, ", {} {what} ({}{more})", names.len(), shown.join(", "))
}

/// Copies the tensors of a file of weights (safetensors, or `.pth` as torchvision publishes
/// them) into the backbone's variables of the same name and shape. The head is left as it is.
///
/// Where the network has a convolution with bias and the file one that is followed by a batch
/// normalisation, both are folded: the network then computes what the file's computes in
/// evaluation mode.
///
/// # Errors
/// [`PretrainedError`]; a file that lacks some of the variables is no error, see the report.
pub fn load_backbone(network: &Network, path: &Path) -> Result<LoadReport, PretrainedError> {
    let file = WeightFile::open(path)?;
    let report = load(network, &file, "", |part| part != Part::Head)?;
    report.log(path);
    if report.loaded.is_empty() {
        return Err(PretrainedError::NothingFits { path: path.to_owned() });
    }
    Ok(report)
}

/// Copies all variables of a trained network from a safetensors file, where their names may
/// start with `network.` as in the checkpoints of a training run.
///
/// # Errors
/// [`PretrainedError`]; the file must hold every variable in its shape.
pub fn load_network(network: &Network, path: &Path) -> Result<LoadReport, PretrainedError> {
    load_whole(network, path, &[CHECKPOINT_PREFIX])
}

/// As [`load_network`], but of a checkpoint that has one the mean teacher.
///
/// # Errors
/// As [`load_network`].
pub fn load_teacher(network: &Network, path: &Path) -> Result<LoadReport, PretrainedError> {
    load_whole(network, path, &[TEACHER_PREFIX, CHECKPOINT_PREFIX])
}

/// Loads the variables under the first of `prefixes` that the file has, else without any.
fn load_whole(
    network: &Network,
    path: &Path,
    prefixes: &[&str],
) -> Result<LoadReport, PretrainedError> {
    let file = WeightFile::open(path)?;
    let found = prefixes.iter().find(|prefix| file.names().any(|name| name.starts_with(**prefix)));
    let report = load(network, &file, found.unwrap_or(&""), |_| true)?;
    report.log(path);
    if !report.missing.is_empty() || !report.other_shape.is_empty() {
        let (path, report) = (path.to_owned(), Box::new(report));
        return Err(PretrainedError::Incomplete { path, report });
    }
    Ok(report)
}

/// Copies `<prefix><variable>` of the file to each variable of the wanted parts.
fn load(
    network: &Network,
    file: &WeightFile,
    prefix: &str,
    wanted: impl Fn(Part) -> bool,
) -> Result<LoadReport, WeightError> {
    let mut report = LoadReport::default();
    let mut used = HashSet::new();
    // The bias of a convolution into which a batch normalisation goes, found with its weights.
    let mut folded: HashMap<String, Tensor> = HashMap::new();
    let foldable = foldable(network);
    for Parameter { name, tensor, part, .. } in network.parameters() {
        if !wanted(part) {
            continue;
        }
        let stored = format!("{prefix}{name}");
        let expected = tensor.size();
        let set = |value: &Tensor| no_grad(|| tensor.detach().copy_(value));
        if let Some(bias) = folded.remove(&name) {
            set(&bias);
            report.loaded.push(name);
            continue;
        }
        let Some(found) = file.shape(&stored) else {
            report.missing.push(name);
            continue;
        };
        used.insert(stored.clone());
        if expected != found {
            report.other_shape.push(OtherShape { name, expected, found });
            continue;
        }
        let value = Tensor::from_slice(&file.values(&stored)?).view(found.as_slice());
        let norm = name
            .strip_suffix(".weight")
            .filter(|layer| foldable.contains(*layer))
            .and_then(|layer| Some((layer, batch_norm_after(layer)?)))
            .filter(|(layer, _)| file.shape(&format!("{prefix}{layer}.bias")).is_none());
        match norm {
            Some((layer, norm)) if complete(file, &format!("{prefix}{norm}"), expected[0]) => {
                let stored = BatchNorm::SUFFIXES.map(|suffix| format!("{prefix}{norm}.{suffix}"));
                let read = |name: &String| file.values(name).map(|v| Tensor::from_slice(&v));
                let [weight, bias, mean, variance] = &stored;
                let variables = [read(weight)?, read(bias)?, read(mean)?, read(variance)?];
                let (weight, bias) = BatchNorm::new(variables).fold(&value, None);
                set(&weight);
                folded.insert(format!("{layer}.bias"), bias);
                used.extend(stored);
                report.folded.push(Folded { batch_norm: norm, into: layer.to_owned() });
            }
            _ => set(&value),
        }
        report.loaded.push(name);
    }
    report.unused = file
        .names()
        .filter(|name| !used.contains(*name) && !name.ends_with(COUNTER))
        .map(ToOwned::to_owned)
        .collect();
    Ok(report)
}

/// Convolutions with bias and without a batch normalisation of their own.
fn foldable(network: &Network) -> HashSet<&str> {
    let convolutions = network.graph.nodes().iter().filter_map(|node| match &node.op {
        Op::Conv(conv) if conv.bias => Some(conv.name.as_str()),
        _ => None,
    });
    convolutions.collect()
}

/// Name of the batch normalisation that follows a convolution in torchvision's networks:
/// `bn2` after `conv2`, and in a sequence of layers that of the next number.
fn batch_norm_after(conv: &str) -> Option<String> {
    let (path, last) = conv.split_at(conv.rfind('.').map_or(0, |dot| dot + 1));
    if let Some(number) = last.strip_prefix("conv") {
        return Some(format!("{path}bn{number}"));
    }
    let number: usize = last.parse().ok()?;
    Some(format!("{path}{}", number + 1))
}

/// Whether the file has all variables of a batch normalisation of so many channels.
fn complete(file: &WeightFile, norm: &str, channels: i64) -> bool {
    BatchNorm::SUFFIXES
        .iter()
        .all(|suffix| file.shape(&format!("{norm}.{suffix}")).is_some_and(|s| s == [channels]))
}
