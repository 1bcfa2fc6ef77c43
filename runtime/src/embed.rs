//! From network input to embeddings: the model, shared by all streams.

mod batch;
mod frame;

pub use batch::{Batching, MAX_BATCH};
pub use frame::{EmbedTimes, FrameEmbedder, InputSize};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::tensorrt::{TensorRt, TensorRtError};
use crate::backend::{self, Backend, BackendError, BackendOptions, Images, OutputShape};
use crate::bundle::{Bundle, BundleError, Codebook, SizeRule};
use crate::cuda::CudaPathError;
use crate::frame::FrameError;
use crate::memory::{self, OutOfMemory};
use batch::Batcher;

/// How far an embedding's length may be from 1. Rounding in 16-bit floats stays below a tenth of it.
pub(crate) const UNIT_TOLERANCE: f32 = 0.01;

/// Pixels that are transposed together, so that their channel rows stay in the first-level cache.
const BLOCK: usize = 64;

/// Why a model could not be opened or gave no embeddings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The bundle is not usable.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The network could not be loaded or run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The frame could not be prepared.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Something but the network failed on the GPU.
    #[error("the frame could not be processed on the GPU: {0}")]
    Gpu(CudaPathError),
    /// The network does not take this input size.
    #[error("the network of {bundle} does not take {width}x{height} pixels; it takes {accepted}")]
    InputSize {
        /// The bundle.
        bundle: PathBuf,
        /// Given width.
        width: usize,
        /// Given height.
        height: usize,
        /// What it takes.
        accepted: String,
    },
    /// The manifest promises another output than the network gives.
    #[error(
        "the bundle {bundle} contradicts itself: its manifest promises {expected:?} (dimensions, rows, columns) \
         for {width}x{height} pixels, its ONNX file gives {found:?}; export the bundle again"
    )]
    OutputShape {
        /// The bundle.
        bundle: PathBuf,
        /// Input width.
        width: usize,
        /// Input height.
        height: usize,
        /// Dimensions, rows and columns after the manifest.
        expected: [usize; 3],
        /// Dimensions, rows and columns that came.
        found: [usize; 3],
    },
    /// An embedding is not of unit length, or not finite.
    #[error(
        "the network of {bundle} gives an embedding of length {length} at row {row}, column {column}, \
         but embeddings must have length 1; export it with its L2 normalisation"
    )]
    NotUnit {
        /// The bundle.
        bundle: PathBuf,
        /// Row in the embedding map.
        row: usize,
        /// Column in the embedding map.
        column: usize,
        /// Length found; not a number where the network diverged.
        length: f32,
    },
    /// The batch that the frame was part of failed; each of its frames is told.
    #[error(transparent)]
    Batch(Arc<EmbedError>),
    /// The network panicked in the thread of another frame.
    #[error(
        "the network panicked on the batch that the frame was part of; the log of the process says where"
    )]
    Panicked,
    /// There is no memory for the embeddings.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

impl EmbedError {
    /// Whether the CPU could do what was asked for, because the GPU failed.
    pub(crate) fn is_of_gpu(&self) -> bool {
        match self {
            Self::Backend(BackendError::TensorRt(_)) => true,
            Self::Gpu(error) => !error.is_of_caller(),
            _ => false,
        }
    }
}

impl From<CudaPathError> for EmbedError {
    fn from(error: CudaPathError) -> Self {
        match error {
            CudaPathError::TensorRt(error) => error.into(),
            other => Self::Gpu(other),
        }
    }
}

impl From<TensorRtError> for EmbedError {
    fn from(error: TensorRtError) -> Self {
        Self::Backend(error.into())
    }
}

/// The embeddings of one frame, pixel by pixel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbeddingMap {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Dimensions of an embedding.
    pub dim: usize,
    /// Network input pixels per cell along each axis.
    pub stride: usize,
    /// `[height, width, dim]`; each cell has unit length (or is zero where the network saw nothing).
    pub data: Vec<f32>,
}

/// An opened bundle with its network loaded. Streams share one model.
pub struct Model {
    bundle: Bundle,
    backend: Box<dyn Backend>,
    /// Where streams meet whose frames go through the network together.
    batcher: Batcher,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("bundle", &self.bundle.dir)
            .field("backend", &self.backend.describe())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Opens the bundle in the folder `dir` and loads its network.
    pub fn open(dir: &Path, options: &BackendOptions) -> Result<Arc<Self>, EmbedError> {
        let bundle = Bundle::open(dir)?;
        let entry = &bundle.manifest.embedder;
        let backend = backend::open(&bundle.embedder_path(), &entry.input, &entry.output, options)?;
        tracing::debug!("{} runs on {}", bundle.manifest.name, backend.describe());
        Ok(Arc::new(Self { bundle, backend, batcher: Batcher::default() }))
    }

    /// A bundle whose network a backend has loaded already.
    #[cfg(test)]
    pub(crate) fn with_backend(bundle: Bundle, backend: Box<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { bundle, backend, batcher: Batcher::default() })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Short name of the backend that runs the network: "rten" or "onnxruntime".
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// What of the backend decides the numbers that come out: its name, and on a GPU its precision.
    pub fn backend_label(&self) -> String {
        match self.backend.gpu() {
            Some(gpu) => format!("{} {}", self.backend.name(), gpu.precision()),
            None => self.backend.name().to_owned(),
        }
    }

    /// Backend, version or library, and threads, for logs.
    pub fn backend_description(&self) -> String {
        self.backend.describe()
    }

    /// The concepts.
    pub fn codebook(&self) -> &Codebook {
        &self.bundle.codebook
    }

    /// Network input pixels per cell.
    pub(crate) fn stride(&self) -> usize {
        self.bundle.manifest.embedder.stride.max(1)
    }

    /// Refuses a size of input that the network does not take.
    pub(crate) fn check_size(&self, w: usize, h: usize) -> Result<(), EmbedError> {
        let (entry, stride) = (&self.bundle.manifest.embedder, self.stride());
        let accepted = match entry.size {
            SizeRule::Dynamic => {
                w > 0 && h > 0 && w.is_multiple_of(stride) && h.is_multiple_of(stride)
            }
            SizeRule::Fixed([height, width]) => (w, h) == (width as usize, height as usize),
        };
        if !accepted {
            let accepted = match entry.size {
                SizeRule::Dynamic => format!("multiples of {stride}"),
                SizeRule::Fixed([height, width]) => format!("{width}x{height}"),
            };
            return Err(EmbedError::InputSize {
                bundle: self.bundle.dir.clone(),
                width: w,
                height: h,
                accepted,
            });
        }
        Ok(())
    }

    /// Refuses an output that is not what the manifest promises for an input of this size.
    pub(crate) fn check_output(
        &self,
        w: usize,
        h: usize,
        OutputShape { dim, height, width }: OutputShape,
    ) -> Result<(), EmbedError> {
        let stride = self.stride();
        let expected = [self.bundle.manifest.embedder.dim, h / stride, w / stride];
        let found = [dim, height, width];
        if expected != found {
            let bundle = self.bundle.dir.clone();
            return Err(EmbedError::OutputShape { bundle, width: w, height: h, expected, found });
        }
        Ok(())
    }

    /// Whether a GPU runs the network, so that [`FrameEmbedder::run_device`] takes frames in its memory.
    pub fn is_on_gpu(&self) -> bool {
        self.gpu().is_some()
    }

    /// The GPU that runs the network, where one does.
    pub(crate) fn gpu(&self) -> Option<&TensorRt> {
        self.backend.gpu()
    }

    /// Lets the CPU go on, because work on the GPU failed; false where that is not allowed or not
    /// possible.
    pub(crate) fn give_up_gpu(&self, reason: &dyn std::fmt::Display) -> bool {
        self.backend.give_up_gpu(reason)
    }

    /// Embeds one image: `input` is `[3, h, w]`, normalised; `scratch` takes the network's output
    /// as it comes, `[dim, h / stride, w / stride]`. The memory of `scratch` and `out` is reused.
    ///
    /// # Errors
    /// [`EmbedError`] when the size does not suit the network, the backend fails, or the output is
    /// not what the manifest promises.
    pub fn embed(
        &self,
        input: &[f32],
        w: usize,
        h: usize,
        scratch: &mut Vec<f32>,
        out: &mut EmbeddingMap,
    ) -> Result<(), EmbedError> {
        let shape = self.run(Images::one(input, w, h), scratch)?;
        self.map(scratch, shape, out)
    }

    /// Runs the network; `out` takes its output as it comes, `[count, dim, h / stride, w / stride]`.
    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, EmbedError> {
        let Images { width, height, .. } = images;
        self.check_size(width, height)?;
        let shape = self.backend.run(images, out)?;
        self.check_output(width, height, shape)?;
        Ok(shape)
    }

    /// Makes the map of what the network gave for one image.
    fn map(
        &self,
        channels: &[f32],
        OutputShape { dim, height, width }: OutputShape,
        out: &mut EmbeddingMap,
    ) -> Result<(), EmbedError> {
        let stride = self.stride();
        (out.height, out.width, out.dim, out.stride) = (height, width, dim, stride);
        memory::reserve(&mut out.data, dim * height * width, "the embeddings")?;
        out.data.resize(dim * height * width, 0.0);
        transpose(channels, dim, &mut out.data);
        match first_not_unit(&out.data, dim) {
            None => Ok(()),
            Some((cell, length)) => Err(EmbedError::NotUnit {
                bundle: self.bundle.dir.clone(),
                row: cell / width,
                column: cell % width,
                length,
            }),
        }
    }
}

/// `[dim, pixels]` to `[pixels, dim]`.
pub(crate) fn transpose(channels: &[f32], dim: usize, pixels: &mut [f32]) {
    let count = pixels.len() / dim;
    for (block, target) in pixels.chunks_mut(BLOCK * dim).enumerate() {
        let start = block * BLOCK;
        let size = target.len() / dim;
        for (d, channel) in channels.chunks_exact(count).enumerate() {
            for (&value, pixel) in
                channel[start..start + size].iter().zip(target.chunks_exact_mut(dim))
            {
                pixel[d] = value;
            }
        }
    }
}

/// Index and length of the first cell that is neither of unit length nor zero. A zero cell is
/// what the network's own normalisation makes of a zero vector.
pub(crate) fn first_not_unit(data: &[f32], dim: usize) -> Option<(usize, f32)> {
    data.chunks_exact(dim).enumerate().find_map(|(index, cell)| {
        let length = cell.iter().map(|v| v * v).sum::<f32>().sqrt();
        let unit = (length - 1.0).abs() <= UNIT_TOLERANCE || length == 0.0;
        // Comparisons with NaN are false: it lands here too.
        (!unit).then_some((index, length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendKind;
    use crate::bundle::BundleWriter;
    use proptest::prelude::*;
    use tempfile::TempDir;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");
    const RTEN: BackendOptions = BackendOptions::new(BackendKind::Rten, 1);

    fn bundle(dim: usize, stride: usize, size: SizeRule) -> TempDir {
        let mut vectors = vec![0.0; 4 * dim];
        for concept in 0..4 {
            vectors[concept * dim + concept] = 1.0;
        }
        let codebook = Codebook::new(4, dim, vectors).unwrap();
        let dir = tempfile::tempdir().unwrap();
        BundleWriter::new("tiny", stride, [0.5; 3], [0.25; 3])
            .size(size)
            .write(dir.path(), Path::new(TINY), &codebook)
            .unwrap();
        dir
    }

    fn embed(dir: &TempDir, w: usize, h: usize) -> Result<EmbeddingMap, EmbedError> {
        let model = Model::open(dir.path(), &RTEN)?;
        let input: Vec<f32> = (0..3 * w * h).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
        let mut out = EmbeddingMap::default();
        model.embed(&input, w, h, &mut Vec::new(), &mut out)?;
        Ok(out)
    }

    #[test]
    fn a_map_has_a_unit_vector_per_cell() {
        let map = embed(&bundle(32, 8, SizeRule::Dynamic), 64, 40).unwrap();
        assert_eq!((map.height, map.width, map.dim, map.stride), (5, 8, 32, 8));
        assert_eq!(map.data.len(), 5 * 8 * 32);
        assert_eq!(first_not_unit(&map.data, 32), None);
    }

    #[test]
    fn a_manifest_that_contradicts_the_network_is_an_error() {
        for dir in [bundle(16, 8, SizeRule::Dynamic), bundle(32, 16, SizeRule::Dynamic)] {
            let error = embed(&dir, 64, 64).unwrap_err();
            assert!(matches!(error, EmbedError::OutputShape { found: [32, 8, 8], .. }), "{error}");
            assert!(error.to_string().contains("manifest"), "{error}");
        }
    }

    #[test]
    fn sizes_the_network_does_not_take_are_an_error() {
        let error = embed(&bundle(32, 8, SizeRule::Dynamic), 60, 64).unwrap_err();
        assert!(error.to_string().contains("multiples of 8"), "{error}");
        let fixed = bundle(32, 8, SizeRule::Fixed([48, 64]));
        assert!(embed(&fixed, 64, 48).is_ok());
        let error = embed(&fixed, 48, 64).unwrap_err();
        assert!(error.to_string().contains("it takes 64x48"), "{error}");
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(first_not_unit(&[1.0, 0.0, 0.0, 0.0, 0.6, 0.8], 2), None);
        assert_eq!(first_not_unit(&[1.0, 0.0, 0.6, 0.9], 2).unwrap().0, 1);
        assert_eq!(first_not_unit(&[1.0, 0.0, 0.5, 0.0], 2).unwrap().0, 1);
        assert!(first_not_unit(&[f32::NAN, 0.0], 2).unwrap().1.is_nan());
        assert!(first_not_unit(&[f32::INFINITY, 0.0], 2).is_some());
    }

    proptest! {
        #[test]
        fn transposing_moves_every_number(dim in 1_usize..40, count in 1_usize..200) {
            let channels: Vec<f32> = (0..dim * count).map(|i| i as f32).collect();
            let mut pixels = vec![-1.0; dim * count];
            transpose(&channels, dim, &mut pixels);
            for d in 0..dim {
                for p in 0..count {
                    prop_assert_eq!(pixels[p * dim + d], channels[d * count + p]);
                }
            }
        }
    }
}
