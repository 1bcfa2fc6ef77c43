//! `eval davis --sweep`: the figures of all combinations of settings.

mod plot;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table};
use conceptseg::bundle::SizeRule;
use conceptseg::embed::Model;
use conceptseg::files::write_atomic;
use conceptseg::metrics::davis::{DavisReport, SequenceReport};
use indicatif::ProgressBar;
use serde_json::{Value as Json, json};

use super::carry::{Prepared, evaluate_all};
use super::setting::{
    CONTEXT_FRAMES, ProtocolArg, RADIUS, SHORT_SIDE, Setting, SettingArgs, TOPK, short, temperature,
};
use crate::davis::STYLE;

/// Most combinations of one sweep.
const MAX_COMBINATIONS: usize = 1000;
/// Values of a range that does not say how many.
const RANGE_VALUES: usize = 5;
/// Most values of a range.
const MAX_RANGE_VALUES: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Key {
    Protocol,
    Temperature,
    Topk,
    Radius,
    ContextFrames,
    ShortSide,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Protocol(ProtocolArg),
    Integer(u32),
    Temperature(f32),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Protocol(protocol) => f.write_str(protocol.letter()),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Temperature(value) => write!(f, "{value}"),
        }
    }
}

impl Value {
    fn json(self) -> Json {
        match self {
            Self::Protocol(protocol) => json!(protocol.letter()),
            Self::Integer(value) => json!(value),
            Self::Temperature(value) => json!(short(value)),
        }
    }

    /// Where the value lies on an axis; a protocol has no place.
    fn position(self) -> Option<f64> {
        match self {
            Self::Protocol(_) => None,
            Self::Integer(value) => Some(f64::from(value)),
            Self::Temperature(value) => Some(short(value)),
        }
    }
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Temperature => "temperature",
            Self::Topk => "topk",
            Self::Radius => "radius",
            Self::ContextFrames => "context-frames",
            Self::ShortSide => "short-side",
        }
    }

    /// The allowed whole numbers, of keys that have such.
    fn integers(self) -> Option<RangeInclusive<i64>> {
        match self {
            Self::Protocol | Self::Temperature => None,
            Self::Topk => Some(TOPK),
            Self::Radius => Some(RADIUS),
            Self::ContextFrames => Some(CONTEXT_FRAMES),
            Self::ShortSide => Some(SHORT_SIDE),
        }
    }

    fn value(self, text: &str) -> Result<Value, String> {
        if self == Self::Protocol {
            return ProtocolArg::from_str(text, true).map(Value::Protocol);
        }
        let Some(allowed) = self.integers() else {
            return temperature(text).map(Value::Temperature);
        };
        let number = text.parse::<i64>().ok().filter(|value| allowed.contains(value));
        number.and_then(|value| u32::try_from(value).ok()).map(Value::Integer).ok_or_else(|| {
            format!("{text:?} is no whole number from {} to {}", allowed.start(), allowed.end())
        })
    }

    /// `count` values from `low` to `high`, evenly spread; whole numbers are rounded, and those
    /// that come twice then left out.
    fn range(self, low: &str, high: &str, count: usize) -> Result<Vec<Value>, String> {
        if self == Self::Protocol {
            return Err("protocols are named one by one, such as a,b,c".to_owned());
        }
        let ends = [self.value(low)?, self.value(high)?].map(Value::position);
        let [Some(from), Some(to)] = ends else { return Ok(Vec::new()) };
        if from >= to {
            return Err(format!("the range {low}..{high} does not rise"));
        }
        let mut values: Vec<Value> = Vec::with_capacity(count);
        for i in 0..count {
            let place = from + (to - from) * i as f64 / (count - 1) as f64;
            let value = match self.integers() {
                Some(_) => Value::Integer(place.round() as u32),
                None => Value::Temperature(place as f32),
            };
            if values.last() != Some(&value) {
                values.push(value);
            }
        }
        Ok(values)
    }

    /// Whether an option fixes the setting already.
    fn is_given(self, args: &SettingArgs) -> bool {
        match self {
            Self::Protocol => args.protocol.is_some(),
            Self::Temperature => args.temperature.is_some(),
            Self::Topk => args.topk.is_some(),
            Self::Radius => args.radius.is_some(),
            Self::ContextFrames => args.context_frames.is_some(),
            Self::ShortSide => args.short_side.is_some(),
        }
    }

    fn set(self, value: Value, args: &mut SettingArgs) {
        match (self, value) {
            (_, Value::Protocol(protocol)) => args.protocol = Some(protocol),
            (_, Value::Temperature(value)) => args.temperature = Some(value),
            (Self::Radius, Value::Integer(value)) => args.radius = Some(value),
            (Self::ContextFrames, Value::Integer(value)) => args.context_frames = Some(value),
            (Self::ShortSide, Value::Integer(value)) => args.short_side = Some(value),
            (_, Value::Integer(value)) => args.topk = Some(value),
        }
    }
}

/// A key and the values to try, as `topk=5,10,20` or `temperature=0.05..0.2:4`.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    key: Key,
    values: Vec<Value>,
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} is not of the form KEY=VALUES, such as topk=5,10,20")
        })?;
        let key = Key::from_str(key.trim(), false).map_err(|_| {
            let keys: Vec<&str> = Key::value_variants().iter().map(|k| k.name()).collect();
            format!("there is no key {key:?}; the keys are {}", keys.join(", "))
        })?;
        let values = if let Some((low, rest)) = values.split_once("..") {
            let (high, count) = match rest.split_once(':') {
                None => (rest, RANGE_VALUES),
                Some((high, count)) => {
                    let count = count.trim().parse().ok();
                    let count = count.filter(|n| (2..=MAX_RANGE_VALUES).contains(n));
                    (high, count.ok_or_else(|| {
                        format!("a range has 2 to {MAX_RANGE_VALUES} values, such as {low}..{high}:4")
                    })?)
                }
            };
            key.range(low.trim(), high.trim(), count)?
        } else {
            let mut list = Vec::new();
            for text in values.split(',') {
                let value = key.value(text.trim())?;
                if list.contains(&value) {
                    return Err(format!("{} has the value {value} twice", key.name()));
                }
                list.push(value);
            }
            list
        };
        Ok(Self { key, values })
    }
}

/// All combinations of the values.
#[derive(Debug)]
pub struct Sweep {
    axes: Vec<Axis>,
    /// The values of each combination, in the order of the axes, and what they make.
    combinations: Vec<(Vec<Value>, Setting)>,
}

impl Sweep {
    /// The combinations of `axes` on top of the settings that `fixed` gives.
    pub fn new(axes: &[Axis], fixed: &SettingArgs) -> Result<Self> {
        for (i, axis) in axes.iter().enumerate() {
            let name = axis.key.name();
            ensure!(
                axes[..i].iter().all(|other| other.key != axis.key),
                "--sweep has the key {name} twice; give all its values in one"
            );
            ensure!(
                !axis.key.is_given(fixed),
                "{name} is swept and also given as --{name}; leave one of them out"
            );
        }
        let count = axes.iter().try_fold(1usize, |n, axis| n.checked_mul(axis.values.len()));
        if count.is_none_or(|count| count > MAX_COMBINATIONS) {
            let told = count.map_or("too many".to_owned(), |count| count.to_string());
            bail!(
                "the sweep has {told} combinations; at most {MAX_COMBINATIONS} are tried at once"
            );
        }
        let mut chosen: Vec<(Vec<Value>, SettingArgs)> = vec![(Vec::new(), fixed.clone())];
        for axis in axes {
            let longer = chosen.iter().flat_map(|(values, args)| {
                axis.values.iter().map(move |&value| {
                    let mut args = args.clone();
                    axis.key.set(value, &mut args);
                    ([values.as_slice(), &[value]].concat(), args)
                })
            });
            chosen = longer.collect();
        }
        let combinations =
            chosen.into_iter().map(|(values, args)| (values, args.setting())).collect();
        Ok(Self { axes: axes.to_vec(), combinations })
    }

    /// Number of combinations.
    pub fn len(&self) -> usize {
        self.combinations.len()
    }

    /// Runs all combinations on all sequences, one sequence after the other.
    pub fn run(
        self,
        prepared: &[Prepared],
        model: &Arc<Model>,
        bar: &ProgressBar,
    ) -> Result<Results> {
        if let SizeRule::Fixed([h, w]) = model.bundle().manifest.embedder.size {
            ensure!(
                self.axes.iter().all(|axis| axis.key != Key::ShortSide),
                "the bundle's network takes {w}x{h} pixels only; leave short-side out of the sweep"
            );
        }
        let settings: Vec<Setting> = self.combinations.iter().map(|c| c.1.clone()).collect();
        let mut sequences: Vec<BTreeMap<String, SequenceReport>> =
            settings.iter().map(|_| BTreeMap::new()).collect();
        for one in prepared {
            let name = &one.sequence.name;
            bar.set_message(name.clone());
            let scores = evaluate_all(one, model, &settings, &|n| bar.inc(n))
                .with_context(|| format!("cannot evaluate the sequence {name}"))?;
            for (sequences, score) in sequences.iter_mut().zip(&scores) {
                sequences.insert(name.clone(), SequenceReport::from(score));
            }
        }
        let mut all: Vec<Tried> = self
            .combinations
            .into_iter()
            .zip(sequences)
            .map(|((values, setting), sequences)| Tried {
                values,
                setting,
                report: DavisReport::new(sequences),
            })
            .collect();
        // Stable: of equal figures the combination that was named first comes first.
        all.sort_by(|a, b| b.jf().total_cmp(&a.jf()));
        Ok(Results { axes: self.axes, all, sequences: prepared.len() })
    }
}

/// One combination with its figures.
#[derive(Debug)]
struct Tried {
    values: Vec<Value>,
    setting: Setting,
    report: DavisReport,
}

impl Tried {
    fn jf(&self) -> f64 {
        self.report.global.jf_mean
    }
}

/// The figures of a sweep, the highest J&F first.
#[derive(Debug)]
pub struct Results {
    axes: Vec<Axis>,
    all: Vec<Tried>,
    sequences: usize,
}

impl Results {
    pub fn json(&self, model: &Model) -> Result<Json> {
        let values = |tried: &Tried| -> Json {
            let pairs = self.axes.iter().zip(&tried.values);
            pairs.map(|(axis, value)| (axis.key.name().to_owned(), value.json())).collect()
        };
        let mut results = Vec::new();
        for tried in &self.all {
            let mut object = serde_json::to_value(&tried.report)?;
            object["values"] = values(tried);
            object["settings"] = tried.setting.json(model);
            results.push(object);
        }
        Ok(json!({
            "method": {
                "bundle": model.bundle().manifest.name,
                "backend": model.backend_description(),
            },
            "swept": self.axes.iter().map(|axis| axis.key.name()).collect::<Vec<_>>(),
            "best": self.all.first().map(values),
            "results": results,
        }))
    }

    pub fn text(&self, model: &Model) -> String {
        let mut table = Table::new();
        table.load_style(STYLE);
        let keys = self.axes.iter().map(|axis| axis.key.name());
        table.set_header(keys.chain(["J", "recall", "F", "recall", "J&F"]));
        for tried in &self.all {
            let g = &tried.report.global;
            let figures = [g.j_mean, g.j_recall, g.f_mean, g.f_recall, g.jf_mean];
            let values = tried.values.iter().map(ToString::to_string);
            table.add_row(values.chain(figures.map(|figure| format!("{figure:.4}"))));
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{}\n", table.trim_fmt());
        if let Some(best) = self.all.first() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "best of {} on {} sequence{}: {}",
                self.all.len(),
                self.sequences,
                if self.sequences == 1 { "" } else { "s" },
                best.setting.text(model)
            );
        }
        let _ = writeln!(text, "network on {}", model.backend_description());
        text.push_str("chosen on these sequences; report figures on others only\n");
        text
    }

    /// Writes J&F over each swept key as SVG.
    pub fn write_plot(&self, path: &Path) -> Result<()> {
        let panels: Vec<plot::Panel> = self
            .axes
            .iter()
            .enumerate()
            .map(|(i, axis)| {
                let all = self.all.iter().map(|tried| (tried.values[i], tried.jf()));
                panel(axis, &all.collect::<Vec<_>>())
            })
            .collect();
        let svg = plot::draw(&panels).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
        write_atomic(path, |w| std::io::Write::write_all(w, svg.as_bytes()))
            .with_context(|| format!("cannot write the plot {}", path.display()))
    }
}

/// The figures over one key.
fn panel(axis: &Axis, all: &[(Value, f64)]) -> plot::Panel {
    let mut values = axis.values.clone();
    // Protocols stay in the order given.
    values.sort_by(|a, b| {
        a.position().partial_cmp(&b.position()).unwrap_or(std::cmp::Ordering::Equal)
    });
    let columns = values.iter().enumerate().map(|(i, value)| {
        let figures = all.iter().filter(|(v, jf)| v == value && jf.is_finite()).map(|(_, jf)| *jf);
        plot::Column {
            position: value.position().unwrap_or(i as f64),
            label: value.to_string(),
            figures: figures.collect(),
        }
    });
    plot::Panel { title: axis.key.name(), columns: columns.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::davis::tests::{dataset, tiny};

    fn axis(text: &str) -> Axis {
        text.parse().unwrap()
    }

    fn told(text: &str) -> String {
        axis(text).values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn refused(text: &str) -> String {
        text.parse::<Axis>().unwrap_err()
    }

    #[test]
    fn values_are_lists_or_ranges() {
        assert_eq!(told("topk=5, 10,20"), "5 10 20");
        assert_eq!(told("protocol=b,a"), "b a");
        assert_eq!(told("temperature=0.05..0.2:4"), "0.05 0.1 0.15 0.2");
        assert_eq!(told("temperature=0.1..0.2"), "0.1 0.125 0.15 0.175 0.2");
        assert_eq!(told("context-frames=0..7:3"), "0 4 7");
        assert_eq!(told("radius=1..3"), "1 2 3");
        assert_eq!(told("short-side=480"), "480");
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_allowed() {
        assert!(refused("topk").contains("KEY=VALUES"));
        assert!(refused("colour=1").contains("temperature, topk"));
        assert!(refused("topk=5,65").contains("\"65\" is no whole number from 1 to 64"));
        assert!(refused("topk=").contains("\"\""));
        assert!(refused("topk=5,5").contains("twice"));
        assert!(refused("temperature=0..1").contains("from 0.001"));
        assert!(refused("temperature=0.2..0.1").contains("does not rise"));
        for count in ["1", "101", "x"] {
            assert!(refused(&format!("topk=1..9:{count}")).contains("2 to 100 values"));
        }
        assert!(refused("protocol=a..c").contains("one by one"));
        assert!(refused("protocol=d").contains('d'));
    }

    #[test]
    fn all_combinations_are_made_and_not_too_many() {
        let fixed = SettingArgs { topk: Some(3), ..SettingArgs::default() };
        let axes = [axis("protocol=b,c"), axis("radius=4,8"), axis("short-side=96")];
        let sweep = Sweep::new(&axes, &fixed).unwrap();
        assert_eq!(sweep.len(), 4);
        let radii: Vec<usize> =
            sweep.combinations.iter().map(|(_, s)| s.propagation.radius).collect();
        assert_eq!(radii, [4, 8, 4, 8]);
        assert!(sweep.combinations.iter().all(|(_, s)| s.propagation.topk == 3));
        assert_eq!(sweep.combinations[2].1.propagation.context_frames, 20);

        let message = |axes: &[Axis]| Sweep::new(axes, &fixed).unwrap_err().to_string();
        assert!(message(&[axis("topk=1,2")]).contains("--topk"));
        assert!(message(&[axis("radius=1"), axis("radius=2")]).contains("twice"));
        let many = [axis("radius=1..100:100"), axis("temperature=0.1..0.2:11")];
        assert!(message(&many).contains("1100 combinations; at most 1000"));
    }

    #[test]
    fn the_best_combination_comes_first_everywhere() {
        let root = dataset(5, 1);
        let data = conceptseg::datasets::davis::DavisDataset::open(root.path(), "480p", None);
        let sequence = data.unwrap().sequences.remove(0);
        let prepared = [crate::eval::carry::prepare(sequence, None).unwrap()];
        let (_bundle, model) = tiny();
        let fixed = SettingArgs { short_side: Some(64), ..SettingArgs::default() };
        let axes = [axis("topk=1,2,4"), axis("radius=0,1"), axis("protocol=b,c")];
        let sweep = Sweep::new(&axes, &fixed).unwrap();
        let bar = ProgressBar::hidden();
        let results = sweep.run(&prepared, &model, &bar).unwrap();
        assert_eq!((results.all.len(), bar.position()), (12, 60));
        assert!(results.all.is_sorted_by(|a, b| a.jf() >= b.jf()));

        let json = results.json(&model).unwrap();
        assert_eq!(json["results"].as_array().unwrap().len(), 12);
        assert_eq!(json["best"], json["results"][0]["values"]);
        assert_eq!(json["results"][0]["values"]["topk"], json["results"][0]["settings"]["topk"]);
        assert!(json["results"][11]["sequences"]["box"]["objects"]["1"]["j_mean"].is_number());
        let text = results.text(&model);
        assert!(text.contains("best of 12 on 1 sequence: protocol "), "{text}");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        results.write_plot(&path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for title in ["topk", "radius", "protocol"] {
            assert!(svg.contains(title), "{title}");
        }
        assert!(svg.matches("<polyline").count() >= 6, "{svg}");
    }
}
