//! The report of an evaluation as one page that loads nothing from elsewhere.

use conceptseg::evaluate::report::{Report, Scores};
use conceptseg::labels::PALETTE;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Follows the reader's choice of a dark or light screen.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --line: #ddd; --ground: #fff;
  --bar: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #999; --line: #383838; --ground: #161616; --bar: #56a5d8 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1180px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: normal; color: var(--soft) }
th, td { padding: .2em 1.2em .2em 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right }
td.b { width: 260px; vertical-align: middle }
.bar { background: var(--bar); height: .7em; min-width: 1px }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5em; margin-bottom: .7em }
.row img { width: 100%; display: block }
figure { margin: 0 } figcaption, .note { color: var(--soft); font-size: 13px }
svg { max-width: 100%; height: auto }
.wide { overflow-x: auto }
.heat td { padding: .1em .35em; font-size: 11px; text-align: right; border: 0 }
.heat td.strong { color: var(--ground) }
.heat th { font-size: 11px; padding: .1em .35em }
.spark { vertical-align: middle } .spark polyline { fill: none; stroke: var(--bar); stroke-width: 1.5 }
.spark line { stroke: var(--line) }
pre { overflow-x: auto; border: 1px solid var(--line); padding: 1em; font-size: 12px }
";

/// A part of the page.
pub struct Section {
    pub title: String,
    pub body: Markup,
}

impl Section {
    pub fn new(title: &str, body: Markup) -> Self {
        Self { title: title.to_owned(), body }
    }
}

/// An image, what it shows in truth, and what was found, as data URIs.
pub struct Shown {
    pub name: String,
    pub pictures: [String; 3],
}

pub fn page(report: &Report, sections: Vec<Section>) -> Markup {
    let inputs = &report.inputs;
    let method = ["bundle", "baseline"].iter().find_map(|key| inputs.settings.get(key)?.as_str());
    let bundle = method.unwrap_or_default();
    let settings = serde_json::to_string_pretty(inputs).unwrap_or_default();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (bundle) " – " (inputs.kind) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (bundle) " on " (inputs.kind) }
                p.note { (report.units) " " (unit_name(&report.scores)) ", conceptseg " (inputs.version) }
                (figures(report))
                (tables(&report.scores))
                @for section in sections {
                    h2 { (section.title) }
                    (section.body)
                }
                h2 { "Inputs" }
                p.note { "Everything that decides the figures: settings, and SHA-256 of what came from files." }
                details { summary { "every setting" } pre { (settings) } }
            }
        }
    }
}

/// What the units are called.
pub fn unit_name(scores: &Scores) -> &'static str {
    match scores {
        Scores::Masks { .. } => "sequences",
        Scores::Classes { .. } | Scores::Concepts { .. } => "images",
    }
}

fn figures(report: &Report) -> Markup {
    html! {
        @if !report.figures.is_empty() {
            table {
                tr { th { "figure" } th.n { "%" } th.n { "95 % confidence" } th {} }
                @for (name, figure) in &report.figures {
                    tr {
                        td { (name) }
                        td.n { b { (percent(figure.value)) } }
                        td.n {
                            @if let Some((low, high)) = figure.interval {
                                (percent(low)) " to " (percent(high))
                            }
                        }
                        td.b { (bar(figure.value)) }
                    }
                }
            }
            p.note {
                "Intervals: " (report.bootstrap.resamples) " draws of the " (unit_name(&report.scores))
                " with replacement. They tell how far other " (unit_name(&report.scores))
                " of the same kind could move a figure, not how far another data set could."
            }
        }
    }
}

/// Figures by class or by sequence.
fn tables(scores: &Scores) -> Markup {
    let all = vec![1; scores.units().len()];
    if let (Some(report), Scores::Classes { classes, images }) = (scores.miou(&all), scores) {
        let rows = classes.iter().zip(report.iou.iter().zip(&report.pixels)).enumerate();
        return html! {
            h2 { "Classes" }
            table {
                tr { th { "class" } th.n { "IoU %" } th.n { "pixels" } th {} }
                @for (id, (name, (iou, pixels))) in rows {
                    @if let Some(iou) = iou {
                        tr {
                            td { (key(id)) (name) }
                            td.n { (percent(*iou)) }
                            td.n { (pixels) }
                            td.b { (bar(*iou)) }
                        }
                    }
                }
            }
            (confusion(classes, images.iter().flat_map(|i| i.pixels.iter().copied())))
        };
    }
    if let Some(report) = scores.masks() {
        return html! {
            h2 { "Sequences" }
            table {
                tr {
                    th { "sequence" } th.n { "frames" } th.n { "J&F" } th.n { "J" } th.n { "recall" }
                    th.n { "decay" } th.n { "F" } th.n { "recall" } th.n { "decay" } th {}
                }
                @for (name, sequence) in &report.sequences {
                    (sequence_row(name, Some(sequence.frames), &sequence.figures))
                    @if sequence.objects.len() > 1 {
                        @for (id, figures) in &sequence.objects {
                            (sequence_row(&format!("– object {id}"), None, figures))
                        }
                    }
                }
            }
        };
    }
    html! {}
}

fn sequence_row(
    name: &str,
    frames: Option<usize>,
    f: &conceptseg::metrics::davis::Figures,
) -> Markup {
    let columns = [f.jf_mean, f.j_mean, f.j_recall, f.j_decay, f.f_mean, f.f_recall, f.f_decay];
    html! {
        tr {
            td { (name) }
            td.n { @if let Some(frames) = frames { (frames) } }
            @for value in columns { td.n { (percent(value)) } }
            td.b { (bar(f.jf_mean)) }
        }
    }
}

/// Which classes are taken for which: the share of each true class, by row.
fn confusion(classes: &[String], pixels: impl Iterator<Item = (u8, u8, u64)>) -> Markup {
    let n = classes.len();
    let mut counts = vec![0u64; n * n];
    for (truth, found, pixels) in pixels {
        if let Some(count) = counts.get_mut(usize::from(truth) * n + usize::from(found)) {
            *count += pixels;
        }
    }
    let rows: Vec<(usize, Vec<f64>)> = counts
        .chunks_exact(n.max(1))
        .enumerate()
        .filter_map(|(class, row)| {
            let sum: u64 = row.iter().sum();
            (sum > 0).then(|| (class, row.iter().map(|&c| c as f64 / sum as f64).collect()))
        })
        .collect();
    html! {
        h2 { "What is taken for what" }
        p.note { "A row for each true class, a column for each class found; percent of the row's pixels." }
        div.wide {
            table.heat {
                tr { th {} @for name in classes { th { (name) } } }
                @for (class, shares) in rows {
                    tr {
                        th { (key(class)) (classes[class]) }
                        @for share in shares {
                            td.strong[share > 0.5] style=(strength(share)) { @if share >= 0.005 { (format!("{:.0}", 100.0 * share)) } }
                        }
                    }
                }
            }
        }
    }
}

/// A background as strong as the share.
fn strength(share: f64) -> String {
    format!("background:color-mix(in srgb, var(--bar) {:.0}%, transparent)", 100.0 * share)
}

/// Rows of three pictures.
pub fn pictures(shown: &[Shown], captions: [&str; 3]) -> Markup {
    html! {
        p.note { "Left: " (captions[0]) ". Middle: " (captions[1]) ". Right: " (captions[2]) "." }
        @for one in shown {
            div.row title=(one.name) {
                @for (picture, caption) in one.pictures.iter().zip(captions) {
                    img src=(picture) alt={ (one.name) ", " (caption) } loading="lazy";
                }
            }
        }
    }
}

/// A line over frames, values 0..1.
pub fn sparkline(values: &[f64]) -> Markup {
    let (width, height) = (320.0, 36.0);
    let step = width / (values.len().max(2) - 1) as f64;
    let points: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(i, v)| format!("{:.1},{:.1}", i as f64 * step, 1.0 + (1.0 - v) * (height - 2.0)))
        .collect();
    html! {
        svg.spark width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) } {
            // Closed: in SVG no element is void.
            line x1="0" y1=(height - 1.0) x2=(width) y2=(height - 1.0) {}
            line x1="0" y1="1" x2=(width) y2="1" {}
            polyline points=(points.join(" ")) {}
        }
    }
}

/// The colour of a class in pictures.
fn key(class: usize) -> Markup {
    let [r, g, b] = PALETTE.get(class).copied().unwrap_or_default();
    html! { span.key style={ "background:rgb(" (r) "," (g) "," (b) ")" } {} }
}

fn bar(share: f64) -> Markup {
    html! { div.bar style={ "width:" (format!("{:.1}", 100.0 * share.clamp(0.0, 1.0))) "%" } {} }
}

fn percent(value: f64) -> String {
    // Adding zero after rounding turns -0.00 into 0.00.
    format!("{:.2}", (1e4 * value).round() / 1e2 + 0.0)
}

#[cfg(test)]
mod tests {
    use conceptseg::evaluate::report::ImageClasses;
    use conceptseg::evaluate::run::Inputs;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_loads_nothing_and_shows_what_the_report_holds() {
        let pixels = vec![(0, 0, 60), (0, 1, 20), (1, 1, 20)];
        let images = vec![ImageClasses { name: "x".to_owned(), pixels }];
        let classes = vec!["ground".to_owned(), "<dog>".to_owned()];
        let inputs = Inputs::new("voc", json!({ "bundle": "mine" }));
        let report = Report::new(inputs, Scores::Classes { classes, images });
        let shown = Shown { name: "x".to_owned(), pictures: [const { String::new() }; 3] };
        let section = Section::new("Images", pictures(&[shown], ["a", "b", "c"]));
        let text = page(&report, vec![section]).into_string();
        for part in ["mine on voc", "&lt;dog&gt;", "80.00", "<h2>Images</h2>", "every setting"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("http") && !text.contains("<dog>"), "{text}");
    }

    #[test]
    fn lines_are_drawn_from_1_above_to_0_below() {
        let text = sparkline(&[1.0, 0.0, 0.5]).into_string();
        assert!(text.contains("points=\"0.0,1.0 160.0,35.0 320.0,18.0\""), "{text}");
        assert!(text.ends_with("</polyline></svg>"), "{text}");
        assert_eq!(percent(-0.000_01), "0.00");
    }
}
