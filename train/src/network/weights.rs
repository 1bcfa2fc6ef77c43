//! Files of weights: safetensors, and the state dictionaries that `torch.save` writes (`.pth`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use conceptseg::onnx::proto::ModelProto;
use conceptseg::onnx::proto::tensor_proto::DataType;
use half::{bf16, f16};
use prost::Message as _;
use safetensors::{Dtype, SafeTensors};
use thiserror::Error;
use zip::ZipArchive;

use super::pickle::{self, MAX_PICKLE, TensorRecord};

/// Largest file that is read, in bytes: ten times a ResNet-50 in single precision.
const MAX_FILE: u64 = 1 << 30;

/// Why a file of weights cannot be used.
#[derive(Debug, Error)]
pub enum WeightError {
    /// The file could not be read.
    #[error("cannot read the weights {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is larger than any backbone.
    #[error(
        "{path} has {bytes} bytes, more than the {MAX_FILE} that are read; give the file of the weights alone"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, or that of its contents.
        bytes: u64,
    },
    /// A file of `PyTorch` before version 1.6.
    #[error(
        "{path} is a PyTorch file of the format before version 1.6; write it anew with: torch.save(torch.load(\"{path}\", map_location=\"cpu\"), \"new.pth\")"
    )]
    Legacy {
        /// The file.
        path: PathBuf,
    },
    /// The file is in neither of the formats, or damaged.
    #[error("{path} is no file of weights that can be read (safetensors or .pth): {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor has a number type that weights do not have.
    #[error("tensor `{name}` of {path} has type {kind}; convert it to F16, BF16, F32 or F64")]
    Type {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Its type.
        kind: NumberType,
    },
}

/// Type of a tensor's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NumberType {
    /// Half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Whole numbers and whatever else weights do not consist of.
    Other(String),
}

impl NumberType {
    /// Bytes of a number; 0 for those that are not read.
    fn size(&self) -> u64 {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(_) => 0,
        }
    }
}

impl fmt::Display for NumberType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name) => f.write_str(name),
            known => write!(f, "{known:?}"),
        }
    }
}

/// A tensor in the memory of its file. What it refers to has been checked to lie in there.
#[derive(Debug)]
struct Stored {
    kind: NumberType,
    shape: Vec<u64>,
    /// Numbers from one entry to the next, for each axis.
    strides: Vec<u64>,
    /// Place in [`WeightFile::storages`].
    storage: usize,
    /// First byte in there.
    start: usize,
}

/// The tensors of a file by name.
#[derive(Debug)]
pub(super) struct WeightFile {
    path: PathBuf,
    storages: Vec<Vec<u8>>,
    tensors: BTreeMap<String, Stored>,
}

impl WeightFile {
    /// Reads a file of any of the formats: ONNX by its extension, the others told apart by
    /// their first bytes.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let read = |source| WeightError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        if bytes > MAX_FILE {
            return Err(WeightError::TooLarge { path: path.to_owned(), bytes });
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) {
            let mut data = Vec::with_capacity(bytes as usize);
            file.take(MAX_FILE).read_to_end(&mut data).map_err(read)?;
            return Self::read_onnx(path, &data);
        }
        let mut start = Vec::with_capacity(4);
        (&mut file).take(4).read_to_end(&mut start).map_err(read)?;
        file.rewind().map_err(read)?;
        match start.as_slice() {
            b"PK\x03\x04" => Self::read_pth(path, file),
            // A pickle outside of an archive; no safetensors header has such a length.
            [0x80, 2, 0x8a, _] => Err(WeightError::Legacy { path: path.to_owned() }),
            _ => {
                let mut data = Vec::with_capacity(bytes as usize);
                file.take(MAX_FILE).read_to_end(&mut data).map_err(read)?;
                Self::read_safetensors(path, data)
            }
        }
    }

    fn read_safetensors(path: &Path, data: Vec<u8>) -> Result<Self, WeightError> {
        let file = SafeTensors::deserialize(&data)
            .map_err(|e| WeightError::Format { path: path.to_owned(), reason: e.to_string() })?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let kind = match view.dtype() {
                Dtype::F16 => NumberType::F16,
                Dtype::BF16 => NumberType::BF16,
                Dtype::F32 => NumberType::F32,
                Dtype::F64 => NumberType::F64,
                other => NumberType::Other(format!("{other:?}")),
            };
            let shape: Vec<u64> = view.shape().iter().map(|&side| side as u64).collect();
            let mut strides = vec![1; shape.len()];
            for axis in (1..shape.len()).rev() {
                strides[axis - 1] = strides[axis] * shape[axis];
            }
            let start = view.data().as_ptr() as usize - data.as_ptr() as usize;
            let stored = Stored { kind, shape, strides, storage: 0, start };
            tensors.insert(name.to_owned(), stored);
        }
        Ok(Self { path: path.to_owned(), storages: vec![data], tensors })
    }

    /// The initializers of a graph; those of our own exporter have the names of the variables.
    fn read_onnx(path: &Path, data: &[u8]) -> Result<Self, WeightError> {
        let format = |reason: String| WeightError::Format { path: path.to_owned(), reason };
        let model = ModelProto::decode(data).map_err(|e| format(e.to_string()))?;
        let graph = model.graph.ok_or_else(|| format("it has no graph".to_owned()))?;
        let mut this =
            Self { path: path.to_owned(), storages: Vec::new(), tensors: BTreeMap::new() };
        for tensor in graph.initializer {
            let kind = match DataType::try_from(tensor.data_type.unwrap_or_default()) {
                Ok(DataType::Float) => NumberType::F32,
                Ok(DataType::Float16) => NumberType::F16,
                Ok(other) => NumberType::Other(format!("{other:?}").to_uppercase()),
                Err(_) => NumberType::Other("unknown".to_owned()),
            };
            let name = tensor.name.unwrap_or_default();
            let bad = |reason: &str| format(format!("tensor `{name}` {reason}"));
            let sides = tensor.dims.iter().map(|&side| u64::try_from(side));
            let shape: Vec<u64> =
                sides.collect::<Result<_, _>>().map_err(|_| bad("has a negative side"))?;
            let mut strides = vec![1_u64; shape.len()];
            for axis in (1..shape.len()).rev() {
                strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
            }
            let bytes = tensor.raw_data.unwrap_or_default();
            let record = TensorRecord {
                storage: String::new(),
                length: 0,
                offset: 0,
                kind: kind.clone(),
                shape: shape.clone(),
                strides: strides.clone(),
            };
            check(&record, bytes.len() as u64).map_err(|reason| bad(&reason))?;
            let stored = Stored { kind, shape, strides, storage: this.storages.len(), start: 0 };
            this.storages.push(bytes);
            this.tensors.insert(name, stored);
        }
        Ok(this)
    }

    /// An archive with the pickle `NAME/data.pkl` and one member `NAME/data/KEY` per storage.
    fn read_pth(path: &Path, file: File) -> Result<Self, WeightError> {
        let format = |reason: String| WeightError::Format { path: path.to_owned(), reason };
        let mut archive =
            ZipArchive::new(BufReader::new(file)).map_err(|e| format(e.to_string()))?;
        let root = archive
            .file_names()
            .filter_map(Result::ok)
            .find_map(|name| Some(name.strip_suffix("data.pkl")?.to_owned()))
            .filter(|root| root.ends_with('/'))
            .ok_or_else(|| format("the archive has no data.pkl".to_owned()))?;
        if archive.index_for_name(&format!("{root}byteorder")).is_some() {
            let order = member(&mut archive, &format!("{root}byteorder"), 16).map_err(format)?;
            if order != b"little" {
                return Err(format("its numbers are not in little-endian order".to_owned()));
            }
        }
        let program =
            member(&mut archive, &format!("{root}data.pkl"), MAX_PICKLE).map_err(format)?;
        let records = pickle::state_dict(&program).map_err(format)?;

        let mut this =
            Self { path: path.to_owned(), storages: Vec::new(), tensors: BTreeMap::new() };
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut total = 0;
        for (name, record) in records {
            let storage = match known.get(&record.storage) {
                _ if record.kind.size() == 0 => 0,
                Some(&storage) => storage,
                None => {
                    let bytes = record.length.saturating_mul(record.kind.size());
                    total = bytes.saturating_add(total);
                    if total > MAX_FILE {
                        return Err(WeightError::TooLarge { path: path.to_owned(), bytes: total });
                    }
                    let name = format!("{root}data/{}", record.storage);
                    this.storages.push(member(&mut archive, &name, bytes).map_err(format)?);
                    known.insert(record.storage.clone(), this.storages.len() - 1);
                    this.storages.len() - 1
                }
            };
            let bytes = this.storages.get(storage).map_or(0, |s| s.len() as u64);
            check(&record, bytes).map_err(|reason| format(format!("tensor `{name}` {reason}")))?;
            let start = (record.offset.saturating_mul(record.kind.size())) as usize;
            let TensorRecord { kind, shape, strides, .. } = record;
            this.tensors.insert(name, Stored { kind, shape, strides, storage, start });
        }
        Ok(this)
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let stored = self.tensors.get(name)?;
        Some(stored.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect())
    }

    /// Values of a tensor in single precision, row-major; none for a name that is not there.
    ///
    /// They need as much memory as the shape says, which is to be looked at before.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let Some(stored) = self.tensors.get(name) else { return Ok(Vec::new()) };
        let size = stored.kind.size() as usize;
        if size == 0 {
            let (path, kind) = (self.path.clone(), stored.kind.clone());
            return Err(WeightError::Type { path, name: name.to_owned(), kind });
        }
        let data = &self.storages[stored.storage][stored.start..];
        let count = stored.shape.iter().product::<u64>() as usize;
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0; stored.shape.len()];
        let mut place = 0;
        for _ in 0..count {
            let bytes = &data[place as usize * size..][..size];
            values.push(match (&stored.kind, bytes) {
                (NumberType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                (NumberType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                (NumberType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (_, &[a, b, c, d, e, f, g, h]) => {
                    f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
                }
                _ => unreachable!("the slice is as long as a number"),
            });
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                place += stored.strides[axis];
                if index[axis] < stored.shape[axis] {
                    break;
                }
                place -= stored.strides[axis] * index[axis];
                index[axis] = 0;
            }
        }
        Ok(values)
    }
}

/// The bytes of a member of the archive, at most `limit` of them, stored without compression
/// as `torch.save` does.
fn member<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    limit: u64,
) -> Result<Vec<u8>, String> {
    let member = archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    let size = member.size();
    if size > limit {
        return Err(format!("{name} has {size} bytes where at most {limit} are expected"));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // One byte more, so that the end is seen, where the checksum is compared.
    member.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    Ok(bytes)
}

/// Whether all that a tensor reads lies within the `bytes` of its storage.
fn check(record: &TensorRecord, bytes: u64) -> Result<(), String> {
    if record.shape.len() != record.strides.len() {
        return Err("has not as many strides as sides".to_owned());
    }
    let count = record.shape.iter().try_fold(1_u64, |n, &side| n.checked_mul(side));
    let mut last = Some(record.offset);
    for (&side, &stride) in record.shape.iter().zip(&record.strides) {
        let reach = side.saturating_sub(1).checked_mul(stride);
        last = last.zip(reach).and_then(|(last, reach)| last.checked_add(reach));
    }
    let size = record.kind.size();
    let end = last.and_then(|l| l.checked_add(1)).and_then(|end| end.checked_mul(size));
    match (count, end) {
        (Some(0), Some(_)) if record.offset.saturating_mul(size) <= bytes => Ok(()),
        (Some(1..), Some(end)) if end <= bytes => Ok(()),
        _ => Err("reaches beyond its storage".to_owned()),
    }
}

#[cfg(test)]
mod tests;
