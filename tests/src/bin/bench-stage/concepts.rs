//! Clustering, codebook, upsampling and merging, on embeddings that were made before.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use conceptseg::bundle::Codebook;
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::EmbeddingMap;
use conceptseg_tests::bench::Stage;
use conceptseg_tests::bench::npy::{self, Array};

use crate::prepare::{HEIGHT, WIDTH};
use crate::propagation::read_maps;

pub struct Contestant {
    map: EmbeddingMap,
    codebook: Codebook,
    labeler: ConceptLabeler,
    concepts: ConceptMap,
}

impl Contestant {
    pub fn new(inputs: &Path) -> Result<Self> {
        let map = read_maps(inputs)?.pop().context("there are no embeddings")?;
        let (shape, vectors) = npy::read_f32(&inputs.join("codebook.npy"))?;
        ensure!(shape.len() == 2, "the codebook has the shape {shape:?}");
        let codebook = Codebook::new(shape[0], shape[1], vectors).map_err(anyhow::Error::msg)?;
        let (labeler, concepts) = (ConceptLabeler::new(), ConceptMap::default());
        Ok(Self { map, codebook, labeler, concepts })
    }
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        "one thread".to_owned()
    }

    fn run(&mut self) -> Result<()> {
        let config = SegmentationConfig::default();
        let (map, codebook, out) = (&self.map, &self.codebook, &mut self.concepts);
        self.labeler.label(map, codebook, &config, WIDTH, HEIGHT, out)?;
        Ok(())
    }

    fn check(&mut self) -> Result<Array> {
        self.run()?;
        // Segments count from 0 in raster order of their first pixel.
        let both = [self.concepts.concepts.as_slice(), &self.concepts.segments].concat();
        Array::new(&[2, HEIGHT as usize, WIDTH as usize], &both)
    }
}
