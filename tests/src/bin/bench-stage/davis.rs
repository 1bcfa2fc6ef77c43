//! J and F of a folder of results.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use conceptseg::metrics::davis::score_folders;
use conceptseg_tests::bench::Stage;
use conceptseg_tests::bench::npy::Array;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with a folder of annotations for each sequence.
    #[arg(long, value_name = "DIR")]
    annotations: PathBuf,
    /// Folder with a folder of masks for each sequence.
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// The sequences, in the order of the figures.
    #[arg(long, value_delimiter = ',', required = true)]
    sequences: Vec<String>,
}

pub struct Contestant {
    pairs: Vec<(PathBuf, PathBuf)>,
    /// J and F, sequence by sequence, object by object, frame by frame.
    figures: Vec<f64>,
}

impl Contestant {
    pub fn new(args: &Args) -> Result<Self> {
        let of = |root: &Path, name: &String| {
            let folder = root.join(name);
            ensure!(folder.is_dir(), "there is no folder {}", folder.display());
            Ok(folder)
        };
        let pairs = args
            .sequences
            .iter()
            .map(|name| Ok((of(&args.annotations, name)?, of(&args.results, name)?)))
            .collect::<Result<_>>()?;
        Ok(Self { pairs, figures: Vec::new() })
    }
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        format!("{} sequences", self.pairs.len())
    }

    fn run(&mut self) -> Result<()> {
        self.figures.clear();
        for (annotations, results) in &self.pairs {
            let score = score_folders(annotations, results, None, &|| ())
                .with_context(|| format!("cannot score {}", results.display()))?;
            for counts in score.objects.iter().flat_map(|object| &object.counts) {
                self.figures.extend([counts.region(), counts.boundary()]);
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<Array> {
        self.run()?;
        Array::new(&[self.figures.len() / 2, 2], &self.figures)
    }
}
