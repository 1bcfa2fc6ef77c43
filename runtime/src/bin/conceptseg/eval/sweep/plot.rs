//! The plot of a sweep: J&F over each key.

use plotters::prelude::*;

/// Width of the picture and height of a panel in pixels.
const SIZE: (u32, u32) = (640, 240);
/// Readable on white and on black.
const INK: RGBColor = RGBColor(128, 128, 128);
/// Told apart by colour-blind people too (Okabe and Ito).
const BEST: RGBColor = RGBColor(0, 114, 178);
const MEAN: RGBColor = RGBColor(230, 159, 0);

/// One swept key.
pub(super) struct Panel {
    pub title: &'static str,
    /// By rising position.
    pub columns: Vec<Column>,
}

/// One of its values.
pub(super) struct Column {
    pub position: f64,
    pub label: String,
    /// J&F of every combination with that value.
    pub figures: Vec<f64>,
}

/// Draws the panels below each other, as SVG.
pub(super) fn draw(panels: &[Panel]) -> Result<String, String> {
    let figures = || panels.iter().flat_map(|p| &p.columns).flat_map(|c| &c.figures);
    let (low, high) = figures().fold((f64::MAX, f64::MIN), |(l, h), &f| (l.min(f), h.max(f)));
    // One scale for all panels, so that they show which key matters.
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let margin = ((high - low) * 0.08).max(0.001);
    let range = low - margin..high + margin;
    let mut svg = String::new();
    {
        let size = (SIZE.0, SIZE.1 * panels.len().max(1) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (panel, area) in panels.iter().zip(root.split_evenly((panels.len().max(1), 1))) {
            draw_panel(panel, range.clone(), &area).map_err(|e| e.to_string())?;
        }
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(svg)
}

fn draw_panel<B: DrawingBackend>(
    panel: &Panel,
    range: std::ops::Range<f64>,
    area: &DrawingArea<B, plotters::coord::Shift>,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let first = panel.columns.first().map_or(0.0, |c| c.position);
    let last = panel.columns.last().map_or(1.0, |c| c.position);
    let margin = if last > first { (last - first) * 0.06 } else { 0.5 };
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(first - margin..last + margin, range.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.3))
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 12).into_font().color(&INK))
        .y_label_formatter(&|y| format!("{y:.3}"))
        .y_labels(5)
        .draw()?;

    let line = |figure: fn(&[f64]) -> f64, colour: RGBColor| {
        let points = panel.columns.iter().filter(|c| !c.figures.is_empty());
        let points: Vec<(f64, f64)> = points.map(|c| (c.position, figure(&c.figures))).collect();
        LineSeries::new(points, colour.stroke_width(2))
    };
    let mean = |figures: &[f64]| figures.iter().sum::<f64>() / figures.len() as f64;
    chart.draw_series(line(mean, MEAN))?;
    chart.draw_series(line(|f| f.iter().copied().fold(f64::MIN, f64::max), BEST))?;
    for column in &panel.columns {
        let points = column.figures.iter().map(|&f| (column.position, f));
        chart.draw_series(points.map(|point| Circle::new(point, 2, INK.filled())))?;
    }

    // The values themselves as labels, not round numbers between them.
    let bottom = range.start;
    let text = |size: u32, colour: &RGBColor| {
        use plotters::style::text_anchor::{HPos, Pos, VPos};
        ("sans-serif", size).into_font().color(colour).pos(Pos::new(HPos::Center, VPos::Top))
    };
    let place = |position: f64| chart.backend_coord(&(position, bottom));
    let origin = area.get_base_pixel();
    let local = |(x, y): (i32, i32), down: i32| (x - origin.0, y - origin.1 + down);
    for column in &panel.columns {
        let at = local(place(column.position), 6);
        area.draw(&Text::new(column.label.clone(), at, text(12, &INK)))?;
    }
    let middle = local(place(f64::midpoint(first, last)), 22);
    let title = format!("{} (J&F: best, mean)", panel.title);
    area.draw(&Text::new(title, middle, text(13, &INK)))?;
    for (colour, left) in [(BEST, 92), (MEAN, 84)] {
        let at = local(place(f64::midpoint(first, last)), 28);
        let spot = (at.0 - left - 10, at.1);
        area.draw(&Circle::new(spot, 3, colour.filled()))?;
    }
    Ok(())
}
