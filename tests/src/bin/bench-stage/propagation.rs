//! Mask propagation on embeddings that were made before.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use conceptseg::embed::EmbeddingMap;
use conceptseg::labels::LabelMap;
use conceptseg::propagate::{MaskMap, PropagationConfig, Propagator};
use conceptseg_tests::bench::Stage;
use conceptseg_tests::bench::npy::{self, Array};

use crate::prepare::STRIDE;

/// Steps from the start whose masks are compared; the context is full by then.
const CHECKED: usize = 12;

pub struct Contestant {
    maps: Vec<EmbeddingMap>,
    mask: LabelMap,
    propagator: Propagator,
    /// Steps since the start.
    steps: usize,
    masks: MaskMap,
}

impl Contestant {
    pub fn new(inputs: &Path) -> Result<Self> {
        let (maps, mask) = (read_maps(inputs)?, LabelMap::read_png(&inputs.join("mask.png"))?);
        let propagator = Propagator::new(PropagationConfig::variant_b());
        // Nothing exists before the first check, so that all that is needed shows as memory on
        // top of the inputs.
        Ok(Self { maps, mask, propagator, steps: 0, masks: MaskMap::default() })
    }

    /// Starts anew and takes that many steps.
    fn advance(&mut self, steps: usize) -> Result<()> {
        let first = self.maps.first().context("there are no embeddings")?;
        self.propagator.start(first, &self.mask)?;
        self.steps = 0;
        (0..steps).try_for_each(|_| self.run())
    }
}

/// The embeddings of every frame.
pub fn read_maps(inputs: &Path) -> Result<Vec<EmbeddingMap>> {
    let (shape, values) = npy::read_f32(&inputs.join("embeddings.npy"))?;
    ensure!(shape.len() == 4 && !shape.contains(&0), "the embeddings have the shape {shape:?}");
    let [height, width, dim] = [shape[1], shape[2], shape[3]];
    let frames = values.chunks_exact(height * width * dim);
    Ok(frames
        .map(|data| EmbeddingMap { height, width, dim, stride: STRIDE, data: data.to_vec() })
        .collect())
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        "fused windowed search".to_owned()
    }

    fn run(&mut self) -> Result<()> {
        self.steps += 1;
        let map = &self.maps[self.steps % self.maps.len()];
        self.propagator.step(map, self.mask.width, self.mask.height, &mut self.masks)?;
        Ok(())
    }

    fn check(&mut self) -> Result<Array> {
        self.advance(CHECKED)?;
        let shape = [self.masks.height as usize, self.masks.width as usize];
        Array::new(&shape, &self.masks.labels)
    }
}
