//! The network alone, on an input that was prepared before.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use conceptseg::backend::{self, Backend, Images};
use conceptseg::bundle::Bundle;
use conceptseg_tests::bench::Stage;
use conceptseg_tests::bench::npy::{self, Array};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: crate::Network,
    /// The input, `[3, height, width]`.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
}

pub struct Contestant {
    backend: Box<dyn Backend>,
    input: Vec<f32>,
    size: (usize, usize),
    output: Vec<f32>,
}

impl Contestant {
    pub fn new(args: &Args) -> Result<Self> {
        let bundle = Bundle::open(&args.network.bundle)?;
        let entry = &bundle.manifest.embedder;
        let options = args.network.options();
        let backend =
            backend::open(&bundle.embedder_path(), &entry.input, &entry.output, &options)?;
        let (shape, input) = npy::read_f32(&args.input)?;
        ensure!(shape.len() == 3, "{} is not [3, height, width]", args.input.display());
        Ok(Self { backend, input, size: (shape[2], shape[1]), output: Vec::new() })
    }
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn run(&mut self) -> Result<()> {
        self.backend.run(Images::one(&self.input, self.size.0, self.size.1), &mut self.output)?;
        Ok(())
    }

    fn check(&mut self) -> Result<Array> {
        let shape = self
            .backend
            .run(Images::one(&self.input, self.size.0, self.size.1), &mut self.output)?;
        Array::new(&[1, shape.dim, shape.height, shape.width], &self.output)
    }
}
