//! `conceptseg engine inspect`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use conceptseg::backend::tensorrt::{Installation, Places, PlanKey, PlanRecord, StoredPlan};
use conceptseg::bundle::Bundle;
use conceptseg::errors::sentence;
use serde_json::{Value, json};

use super::{file_name, key_json, megabytes};
use crate::backend::GpuArgs;
use crate::davis::STYLE;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Number of the GPU that plans are held against, from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
    /// Name of one plan, to see its tensors and layers too (where TensorRT can load it).
    plan: Option<String>,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let machine = Installation::find(&Places::of_process(), args.device);
    let machine = machine.map(|(found, _context)| found).map_err(|error| sentence(&error));
    let mut plans = super::store(&bundle).list()?;
    if let Some(name) = &args.plan {
        let wanted = name.trim_end_matches(".plan").trim_end_matches(".toml");
        plans.retain(|plan| plan.path.file_stem().is_some_and(|stem| stem == wanted));
        ensure!(
            !plans.is_empty(),
            "{} holds no plan {name}; the command without a name lists all",
            super::store(&bundle).folder().display()
        );
    }
    let one = args.plan.is_some();
    let shown: Vec<Shown> = plans.iter().map(|plan| Shown::of(&bundle, &machine, plan)).collect();
    let details: Vec<Option<Details>> = plans
        .iter()
        .zip(&shown)
        .map(|(plan, shown)| match (&plan.record, &shown.stale) {
            (Ok(record), None) if one && machine.is_ok() => {
                Details::of(args, &bundle, plan, record).map(Some)
            }
            _ => Ok(None),
        })
        .collect::<Result<_>>()?;
    let mut out = std::io::stdout().lock();
    if json {
        let plans: Vec<Value> = shown
            .iter()
            .zip(&details)
            .map(|(shown, details)| shown.json(details.as_ref()))
            .collect();
        let object = json!({
            "bundle": bundle.manifest.name,
            "machine": machine.as_ref().ok().map(Installation::describe),
            "machine_reason": machine.as_ref().err(),
            "plans": plans,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    if let Err(reason) = &machine {
        writeln!(out, "without TensorRT (plans are held against the bundle only): {reason}\n")?;
    }
    if shown.is_empty() {
        writeln!(
            out,
            "{} has no plans; `conceptseg engine build` makes one",
            args.bundle.display()
        )?;
    } else if one {
        for (shown, details) in shown.iter().zip(&details) {
            write!(out, "{}", shown.text(details.as_ref()))?;
        }
    } else {
        writeln!(out, "{}", table(&shown).trim_fmt())?;
    }
    Ok(())
}

/// A plan and whether it would be used.
struct Shown {
    file: String,
    bytes: Option<u64>,
    record: Option<PlanRecord>,
    stale: Option<String>,
}

impl Shown {
    fn of(bundle: &Bundle, machine: &Result<Installation, String>, plan: &StoredPlan) -> Self {
        let bytes = std::fs::metadata(&plan.path).ok().map(|metadata| metadata.len());
        let stale = match &plan.record {
            Ok(record) => {
                let mut wanted = PlanKey {
                    onnx_sha256: bundle.manifest.embedder.sha256.clone(),
                    ..record.key.clone()
                };
                if let Ok(machine) = machine {
                    wanted.gpu.clone_from(&machine.gpu);
                    wanted.compute_capability = machine.compute_capability;
                    wanted.tensorrt = machine.library.version();
                }
                let differs = record.key.differs(&wanted, record.compatible());
                differs.or_else(|| record.open(&plan.path).err().map(|error| sentence(&error)))
            }
            Err(reason) => Some(reason.clone()),
        };
        Self { file: file_name(&plan.path), bytes, record: plan.record.clone().ok(), stale }
    }

    fn state(&self) -> String {
        self.stale.as_ref().map_or("good".to_owned(), |reason| format!("stale: {reason}"))
    }

    fn json(&self, details: Option<&Details>) -> Value {
        json!({
            "file": self.file,
            "bytes": self.bytes,
            "good": self.stale.is_none(),
            "reason": self.stale,
            "key": self.record.as_ref().map(|record| key_json(&record.key)),
            "options": self.record.as_ref().map(|record| record.options),
            "calibration": self.record.as_ref().and_then(|record| record.calibration.as_ref()),
            "created": self.record.as_ref().map(|record| &record.created),
            "producer": self.record.as_ref().map(|record| &record.producer),
            "seconds": self.record.as_ref().map(|record| record.seconds),
            "sha256": self.record.as_ref().map(|record| &record.plan.sha256),
            "tensors": details.map(|details| &details.tensors),
            "device_memory": details.map(|details| details.memory),
            "layers": details.map(|details| &details.layers),
        })
    }

    /// All that is known of it, a line each.
    fn text(&self, details: Option<&Details>) -> String {
        let mut lines = vec![("file", self.file.clone()), ("state", self.state())];
        if let Some(bytes) = self.bytes {
            lines.push(("size", megabytes(bytes)));
        }
        if let Some(record) = &self.record {
            let PlanRecord { key, options, .. } = record;
            lines.push(("input", format!("{} (height x width), {}", key.input, key.precision)));
            lines.push((
                "GPU",
                format!("{}, compute capability {}", key.gpu, key.compute_capability),
            ));
            if let Some(core) = key.dla {
                lines.push(("DLA core", core.to_string()));
            }
            lines.push(("TensorRT", key.tensorrt.to_string()));
            let optional = |value: Option<String>| value.unwrap_or_else(|| "default".to_owned());
            lines.push((
                "options",
                format!(
                    "optimization {}, workspace {}, {}{}",
                    optional(options.optimization_level.map(|level| level.to_string())),
                    optional(options.workspace_mb.map(|mb| format!("{mb} MB"))),
                    match options.gpus {
                        conceptseg::backend::tensorrt::Gpus::Same => "for this model of GPU",
                        conceptseg::backend::tensorrt::Gpus::AmperePlus => "for Ampere and newer",
                    },
                    if options.version_compatible { ", for later versions too" } else { "" }
                ),
            ));
            if let Some(calibration) = &record.calibration {
                lines.push(("ranges", format!("measured on {} frames", calibration.frames)));
            }
            lines.push((
                "built",
                format!("{} in {:.1} s by {}", record.created, record.seconds, record.producer),
            ));
            lines.push(("ONNX", key.onnx_sha256.clone()));
        }
        if let Some(details) = details {
            lines.push(("memory", format!("{} for each stream", megabytes(details.memory))));
            for tensor in &details.tensors {
                lines.push(("tensor", tensor.clone()));
            }
            for layer in &details.layers {
                lines.push(("layer", layer.clone()));
            }
        }
        lines.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<10}{value}");
            text
        })
    }
}

fn table(plans: &[Shown]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(["plan", "size", "built", "state"]);
    for plan in plans {
        let built = plan.record.as_ref().map_or("", |record| &record.created);
        let size = plan.bytes.map_or("missing".to_owned(), megabytes);
        table.add_row([plan.file.clone(), size, built.to_owned(), plan.state()]);
    }
    table
}

/// What only TensorRT can tell.
struct Details {
    tensors: Vec<String>,
    memory: u64,
    layers: Vec<String>,
}

impl Details {
    fn of(args: &Args, bundle: &Bundle, plan: &StoredPlan, record: &PlanRecord) -> Result<Self> {
        let gpu = GpuArgs {
            device: args.device,
            precision: Some(record.key.precision),
            dla: record.key.dla,
        };
        let gpu = super::open(bundle, gpu)?;
        gpu.with_gpu(|gpu| {
            let loaded = gpu.load_plan(&plan.path, record)?;
            let engine = loaded.engine();
            let tensors = engine
                .tensors()
                .iter()
                .map(|t| format!("{} {:?} {} {:?}", t.name, t.mode, t.data_type, t.shape))
                .collect();
            let layers =
                layers(&engine.inspect()?).context("reading what TensorRT tells of layers")?;
            Ok(Self { tensors, memory: loaded.lane_bytes(), layers })
        })
    }
}

/// One line for each layer of `Engine::inspect`: names alone, or objects where the plan tells more.
fn layers(text: &str) -> Result<Vec<String>> {
    let object: Value = serde_json::from_str(text)?;
    let layers = object["Layers"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(layers
        .iter()
        .map(|layer| match layer {
            Value::String(name) => name.clone(),
            Value::Object(object) => {
                let word = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
                format!("{} {} {}", word("LayerType"), word("Name"), word("TacticName"))
                    .trim()
                    .to_owned()
            }
            other => other.to_string(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_names_or_more() {
        let text = r#"{"Layers": ["conv1", {"Name": "head", "LayerType": "Convolution", "TacticName": "sm80_x"}]}"#;
        assert_eq!(layers(text).unwrap(), ["conv1", "Convolution head sm80_x"]);
        assert_eq!(layers("{}").unwrap(), [""; 0]);
        assert!(layers("no").is_err());
    }
}
