//! Curves of a run as SVG.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::tensorboard::Curve;

/// Size of a chart in pixels; the page scales it.
const SIZE: (u32, u32) = (560, 260);
/// Readable on white and on black.
const INK: RGBColor = RGBColor(128, 128, 128);
/// Colours of the lines of a chart, told apart by colour-blind people too (Okabe and Ito).
const LINES: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Titles, and tags with their names.
const CHARTS: [(&str, &[(&str, &str)]); 5] = [
    (
        "Losses",
        &[
            ("loss/total", "total"),
            ("loss/local", "local"),
            ("loss/quantization", "quantization"),
            ("loss/cooccurrence", "co-occurrence"),
        ],
    ),
    ("Learning rate", &[("rate", "rate")]),
    ("Concepts", &[("concepts/used", "used"), ("concepts/perplexity", "perplexity")]),
    ("Seconds per step", &[("seconds/step", "step"), ("seconds/input", "waiting for images")]),
    ("Gradient", &[("gradient/norm", "norm")]),
];

/// A chart with its title.
pub(super) struct Chart {
    pub title: &'static str,
    /// Names of the lines and their colours as CSS writes them.
    pub lines: Vec<(&'static str, String)>,
    pub svg: String,
}

/// A line of a chart: name, colour, and points of step and value.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

/// The charts for which there are figures.
pub(super) fn charts(curves: &BTreeMap<String, Curve>) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for (title, tags) in CHARTS {
        let found: Vec<Line> = tags
            .iter()
            .zip(LINES)
            .filter_map(|(&(tag, name), colour)| {
                let points: Vec<(f64, f64)> = curves
                    .get(tag)?
                    .iter()
                    .filter(|(_, value)| value.is_finite())
                    .map(|(&step, &value)| (step as f64, value))
                    .collect();
                (!points.is_empty()).then_some((name, colour, points))
            })
            .collect();
        if found.is_empty() {
            continue;
        }
        let svg = draw(&found).map_err(|e| anyhow!("cannot draw the curve {title}: {e}"))?;
        let css = |c: RGBColor| format!("rgb({},{},{})", c.0, c.1, c.2);
        let lines = found.iter().map(|&(name, colour, _)| (name, css(colour))).collect();
        charts.push(Chart { title, lines, svg });
    }
    Ok(charts)
}

fn draw(lines: &[Line]) -> Result<String, String> {
    let points = || lines.iter().flat_map(|(_, _, points)| points);
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    // From 0, unless a figure lies below it.
    let low = points().map(|p| p.1).fold(0.0, f64::min);
    let high = points().map(|p| p.1).fold(low, f64::max);
    let high = if high > low { high + 0.05 * (high - low) } else { low + 1.0 };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..last, low..high)
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.3))
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 12).into_font().color(&INK))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| number(*y))
            .x_labels(6)
            .y_labels(5)
            .draw()
            .map_err(|e| e.to_string())?;
        for (_, colour, points) in lines {
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
                .map_err(|e| e.to_string())?;
        }
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(svg)
}

/// A figure at an axis, as short as it can be told.
fn number(value: f64) -> String {
    match value.abs() {
        size if size < 1e-9 => "0".to_owned(),
        size if size < 1e-2 => format!("{value:.0e}"),
        size if size < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_drawn_for_what_was_logged() {
        let curve: Curve = (1..20).map(|i| (10 * i, 5.0 / i as f64)).collect();
        let broken: Curve = [(10, f64::NAN)].into();
        let curves = BTreeMap::from([
            ("loss/total".to_owned(), curve.clone()),
            ("rate".to_owned(), [(10, 1e-4)].into()),
            ("gradient/norm".to_owned(), broken),
        ]);
        let charts = charts(&curves).unwrap();
        let titles: Vec<&str> = charts.iter().map(|c| c.title).collect();
        assert_eq!(titles, ["Losses", "Learning rate"]);
        assert!(charts[0].svg.starts_with("<svg") && charts[0].svg.contains("polyline"));
        assert_eq!(charts[0].lines, [("total", "rgb(0,114,178)".to_owned())]);
    }

    #[test]
    fn figures_are_short() {
        let told = [0.0, 2e-4, 0.5, 7.25, 311.6].map(number);
        assert_eq!(told, ["0", "2e-4", "0.50", "7.25", "312"]);
    }
}
