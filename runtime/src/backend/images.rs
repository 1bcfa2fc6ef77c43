//! Images that go through a network together.

use std::borrow::Cow;
use std::fmt;
use std::sync::Once;

use super::{BackendError, OutputShape};
use crate::onnx::batch::open_batch;
use crate::onnx::{Model, OnnxError};

/// Images of one size, prepared for a network.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// `[count, 3, height, width]`.
    pub data: &'a [f32],
    /// How many there are.
    pub count: usize,
    /// How many there are at most when the caller comes again, at least `count`. TensorRT makes plans for that many,
    /// so that not every smaller number needs one of its own.
    pub most: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

impl<'a> Images<'a> {
    /// A single image, `[3, height, width]`.
    pub const fn one(data: &'a [f32], width: usize, height: usize) -> Self {
        Self { data, count: 1, most: 1, width, height }
    }

    /// The shape of the tensor.
    pub(super) const fn dims(&self) -> [usize; 4] {
        [self.count, 3, self.height, self.width]
    }

    /// Refuses data that is not as long as the shape says.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        let &Self { count, width, height, .. } = self;
        let expected = self.dims().iter().fold(1_usize, |all, &side| all.saturating_mul(side));
        let found = self.data.len();
        if expected == 0 || found != expected {
            return Err(BackendError::Input { count, width, height, expected, found });
        }
        Ok(())
    }

    /// The images apart.
    fn each(&self) -> impl Iterator<Item = Images<'a>> {
        let &Self { data, count, width, height, .. } = self;
        let length = (data.len() / count.max(1)).max(1);
        data.chunks_exact(length).map(move |image| Images::one(image, width, height))
    }
}

impl fmt::Debug for Images<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { count, most, width, height, .. } = self;
        write!(f, "{count} (of at most {most}) images of {width}x{height}")
    }
}

/// Whether a network takes several images at once.
pub(super) struct Batches {
    /// Why it does not.
    refusal: Option<String>,
    told: Once,
}

impl Batches {
    /// The ONNX file in `bytes`, open to any number of images where it was exported for one and its operators keep
    /// images apart.
    ///
    /// Bytes that are no network are given back for the backend to refuse in its own words.
    pub(super) fn open(bytes: &[u8]) -> (Cow<'_, [u8]>, Self) {
        let opened = || -> Result<Option<Vec<u8>>, OnnxError> {
            Ok(open_batch(Model::parse(bytes)?)?.map(|model| model.to_bytes()))
        };
        let (bytes, refusal) = match opened() {
            Ok(Some(opened)) => (Cow::Owned(opened), None),
            Ok(None) => (Cow::Borrowed(bytes), None),
            Err(error) => (Cow::Borrowed(bytes), Some(super::one_line(error))),
        };
        (bytes, Self { refusal, told: Once::new() })
    }

    /// Runs images at once where the network takes that, else one by one.
    pub(super) fn run(
        &self,
        images: Images<'_>,
        out: &mut Vec<f32>,
        at_once: impl Fn(Images<'_>, &mut Vec<f32>) -> Result<OutputShape, BackendError>,
    ) -> Result<OutputShape, BackendError> {
        images.check()?;
        let Some(reason) = self.refusal.as_ref().filter(|_| images.count > 1) else {
            return at_once(images, out);
        };
        self.told.call_once(|| {
            tracing::warn!("batches are run image by image, which gains nothing: {reason}");
        });
        let mut one = Vec::new();
        let mut shape = OutputShape { dim: 0, height: 0, width: 0 };
        out.clear();
        for image in images.each() {
            shape = at_once(image, &mut one)?;
            out.extend_from_slice(&one);
        }
        Ok(shape)
    }
}
