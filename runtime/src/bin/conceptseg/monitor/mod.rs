//! `conceptseg monitor baseline|run|bench`.

mod baseline;
mod bench;
mod distort;
mod interrupt;
mod outputs;
mod run;
mod source;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Learn what is normal from footage of the place that is going to be watched.
    Baseline(baseline::Args),
    /// Watch streams from folders of images or from results files.
    Run(Box<run::Args>),
    /// Measure how soon disturbances are told of, and how often nothing is taken for something.
    Bench(bench::Args),
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Baseline(args) => baseline::run(args, json),
        Command::Run(args) => run::run(args, json),
        Command::Bench(args) => bench::run(args, json),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use conceptseg::monitor::{Event, EventKind};
    use image::RgbImage;

    use crate::eval::fixtures::write_tiny_bundle;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: super::Command,
    }

    fn call(words: &[&str], paths: &[(&str, &Path)]) -> anyhow::Result<()> {
        let mut line = vec!["monitor".to_owned()];
        line.extend(words.iter().map(|&word| word.to_owned()));
        for (option, path) in paths {
            line.extend([(*option).to_owned(), path.display().to_string()]);
        }
        super::run(&Line::try_parse_from(line)?.command, true)
    }

    fn draw(folder: &Path, number: u32, picture: &RgbImage) {
        picture.save(folder.join(format!("{number:05}.png"))).unwrap();
    }

    #[test]
    fn a_baseline_is_made_and_a_covered_lens_told_of() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let (bundle, gate, events) = (at("bundle"), at("gate"), at("events.jsonl"));
        write_tiny_bundle(&bundle);
        std::fs::create_dir(&gate).unwrap();
        let noise = |x: u32, y: u32, t: u32| {
            ((x * 31 + y * 57 + t * 13).wrapping_mul(2_654_435_761) >> 24) as u8
        };
        for t in 0..20 {
            let frame =
                RgbImage::from_fn(64, 64, |x, y| [noise(x, y, t), 90, noise(y, x, t)].into());
            draw(&gate, t, &frame);
        }
        let network = [("--bundle", bundle.as_path())];
        let run = |words: &[&str], more: &[(&str, &Path)]| {
            let words = [words, &["--short-side", "64", "--backend", "rten"]].concat();
            call(&words, &[&network[..], more].concat())
        };

        // The smallest bundle knows nothing of how often its concepts occur.
        let error = run(&["run"], &[("--frames", &gate)]).unwrap_err().to_string();
        assert!(error.contains("conceptseg monitor baseline"), "{error}");
        run(&["baseline"], &[("--images", &gate), ("--out", &at("normal"))]).unwrap();

        for t in 20..40 {
            draw(&gate, t, &RgbImage::from_pixel(64, 64, [t as u8, 20, 20].into()));
        }
        let rules = at("rules.toml");
        std::fs::write(&rules, "[[rule]]\nname = \"dark\"\nwhen = \"covered for 200ms\"").unwrap();
        let given: [(&str, &Path); 4] = [
            ("--frames", &gate),
            ("--baseline", &at("normal")),
            ("--rules", &rules),
            ("--events", &events),
        ];
        run(&["run", "--fps", "10", "--listen", "127.0.0.1:0"], &given).unwrap();
        let text = std::fs::read_to_string(&events).unwrap();
        let told: Vec<Event> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Covered, EventKind::Rule]);
        assert!(told[0].unix_ms > 0 && told[0].stream == "gate", "{told:?}");

        // Streams side by side tell the same, each under its name.
        std::fs::create_dir(at("yard")).unwrap();
        for file in std::fs::read_dir(&gate).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), at("yard").join(file.file_name())).unwrap();
        }
        let both = at("both.jsonl");
        let yard: [(&str, &Path); 5] =
            [given[0], ("--frames", &at("yard")), given[1], given[2], ("--events", &both)];
        run(&["run", "--fps", "10"], &yard).unwrap();
        let text = std::fs::read_to_string(&both).unwrap();
        let told: Vec<Event> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        for stream in ["gate", "yard"] {
            let of = told.iter().filter(|event| event.stream == stream);
            let kinds: Vec<_> = of.map(|event| event.kind).collect();
            assert_eq!(kinds, [EventKind::Covered, EventKind::Rule], "{stream}");
        }
        let error = run(&["run"], &[given[0], given[0], given[1]]).unwrap_err().to_string();
        assert!(error.contains("two streams have the name gate"), "{error}");

        let other = [("--frames", gate.as_path()), ("--baseline", rules.as_path())];
        assert!(run(&["run"], &other).unwrap_err().to_string().contains("cannot be used"));
    }
}
