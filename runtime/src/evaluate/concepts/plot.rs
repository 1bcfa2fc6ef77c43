//! The histogram of purities as SVG.

use plotters::prelude::*;

use crate::evaluate::EvaluateError;
use crate::metrics::purity::{BINS, PURE, PurityReport};

/// Size of the picture in pixels; the page scales it.
const SIZE: (u32, u32) = (720, 380);
const INK: RGBColor = RGBColor(70, 70, 70);
/// Colours of the sets, told apart by colour-blind people too (Okabe and Ito).
const BARS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Draws which share of the scored concepts is how pure, one bar in each bin for each of up to
/// four sets of images, which `sets` names.
///
/// # Errors
/// [`EvaluateError::Plot`].
pub fn purity_svg(sets: &[(&str, &PurityReport)]) -> Result<String, EvaluateError> {
    draw(sets).map_err(EvaluateError::Plot)
}

fn draw(sets: &[(&str, &PurityReport)]) -> Result<String, String> {
    let share = |report: &PurityReport, bin: usize| {
        100.0 * report.histogram[bin] as f64 / report.scored.max(1) as f64
    };
    let all = sets.iter().flat_map(|(_, report)| (0..BINS).map(|bin| share(report, bin)));
    // Room for the legend above the bars.
    let top = (1.3 * all.fold(0.0, f64::max)).max(10.0);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| e.to_string())?;
        let mut chart = ChartBuilder::on(&root)
            .margin(14)
            .x_label_area_size(46)
            .y_label_area_size(58)
            .build_cartesian_2d(0.0..100.0, 0.0..top)
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.2))
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
            .x_desc("purity of a concept, %")
            .y_desc("share of the scored concepts, %")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_labels(11)
            .y_labels(6)
            .draw()
            .map_err(|e| e.to_string())?;
        let bin_width = 100.0 / BINS as f64;
        let bar_width = 0.8 * bin_width / sets.len().max(1) as f64;
        for ((i, (_, report)), colour) in sets.iter().enumerate().zip(BARS) {
            let bars = (0..BINS).map(|bin| {
                let left = bin as f64 * bin_width + 0.1 * bin_width + i as f64 * bar_width;
                let corners = [(left, 0.0), (left + bar_width, share(report, bin))];
                Rectangle::new(corners, colour.filled())
            });
            chart.draw_series(bars).map_err(|e| e.to_string())?;
        }
        let pure = 100.0 * PURE;
        chart
            .draw_series(LineSeries::new([(pure, 0.0), (pure, top)], INK.stroke_width(1)))
            .map_err(|e| e.to_string())?;
        for ((i, (name, report)), colour) in (0i32..).zip(sets).zip(BARS) {
            let y = 26 + 22 * i;
            let text = format!(
                "{name}: {} concepts, {:.1} % above {pure:.0} %, mean {:.3}",
                report.scored,
                100.0 * report.above_80,
                report.mean
            );
            let swatch = Rectangle::new([(86, y), (100, y + 12)], colour.filled());
            root.draw(&swatch).map_err(|e| e.to_string())?;
            let style = ("sans-serif", 15).into_font().color(&INK);
            root.draw(&Text::new(text, (108, y - 1), style)).map_err(|e| e.to_string())?;
        }
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::purity::PurityCounts;

    #[test]
    fn every_set_has_its_bars_and_says_its_figures() {
        let mut counts = PurityCounts::new(3, 2);
        for (concept, class) in [(0, 0), (0, 1), (1, 0), (2, 1)] {
            counts.add_segment(concept, Some(class));
        }
        let report = counts.report(1);
        let one = purity_svg(&[("val", &report)]).unwrap();
        assert!(one.starts_with("<svg") && one.contains("val: 3 concepts, 66.7 % above 80 %"));
        let bars = |svg: &str, colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        // Ten bars and the swatch.
        assert_eq!((bars(&one, "#0072B2"), bars(&one, "#E69F00")), (11, 0));
        let two = purity_svg(&[("train", &report), ("val", &report)]).unwrap();
        assert_eq!((bars(&two, "#0072B2"), bars(&two, "#E69F00")), (11, 11));
        // Nothing scored is drawn empty, not broken.
        let none = purity_svg(&[("val", &PurityCounts::new(3, 2).report(1))]).unwrap();
        assert!(none.contains("val: 0 concepts") && !none.contains("NaN"));
    }
}
