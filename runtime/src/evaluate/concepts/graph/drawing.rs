//! The graph as a picture.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::ConceptSummary;
use super::{Edge, layout};

/// Concepts drawn at most, those of the most images; more cannot be told apart.
const MAX_NODES: usize = 80;
/// Edges that a concept brings along at most, its strongest.
const MAX_EDGES: usize = 3;
/// Size of the picture in pixels; the page scales it.
const SIZE: (f64, f64) = (1200.0, 900.0);
/// Height above the graph for the caption.
const HEAD: f64 = 34.0;
/// Smallest and largest radius of a node in pixels.
const RADII: (f64, f64) = (19.0, 38.0);
/// Space around a node, of which a part is for its name, in pixels.
const GAP: f64 = 11.0;
/// Characters of a name that are shown.
const NAME: usize = 14;

/// How a concept is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Written below it.
    pub name: String,
    /// Colour of its ring, red, green, blue.
    pub colour: [u8; 3],
    /// A picture that fills it, as JPEG.
    pub thumbnail: Option<Vec<u8>>,
}

/// Draws the concepts that are joined with others; `legend` says what the colours mean.
///
/// Of large graphs the concepts of the most images are drawn, and of each only the strongest
/// edges; the caption says how many of how many.
pub fn svg(
    summary: &ConceptSummary,
    look: &dyn Fn(u16) -> Look,
    legend: &[(String, [u8; 3])],
) -> String {
    let images: HashMap<u16, u32> =
        summary.dictionary.per_concept.iter().map(|one| (one.concept, one.images)).collect();
    let (nodes, joined) = largest(&summary.graph.edges, &images);
    let edges = strongest(&summary.graph.edges, &nodes);
    let most = f64::from(nodes.iter().map(|node| images[node]).max().unwrap_or(1));
    // The area of a node stands for its images.
    let radii: Vec<f64> = nodes
        .iter()
        .map(|node| (RADII.1 * (f64::from(images[node]) / most).sqrt()).max(RADII.0))
        .collect();
    let place = |id: u16| nodes.binary_search(&id).unwrap_or(0);
    let ends: Vec<(usize, usize)> = edges.iter().map(|e| (place(e.a), place(e.b))).collect();
    let padded: Vec<f64> = radii.iter().map(|radius| radius + GAP).collect();
    let foot = if legend.is_empty() { 0.0 } else { 34.0 };
    let at = layout::place(&padded, &ends, (SIZE.0, SIZE.1 - HEAD - foot));
    let at = |i: usize| (at[i][0], at[i][1] + HEAD);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" \
         height=\"{h}\" font-family=\"sans-serif\">\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n\
         <text x=\"14\" y=\"23\" font-size=\"14\" fill=\"#444\">{caption}</text>\n",
        w = SIZE.0,
        h = SIZE.1,
        caption = caption(summary, nodes.len(), joined, edges.len()),
    );
    // Writing to a string cannot fail.
    let strongest = edges.iter().map(|edge| edge.pmi).fold(f64::MIN_POSITIVE, f64::max);
    for (edge, &(i, j)) in edges.iter().zip(&ends) {
        let ((x1, y1), (x2, y2)) = (at(i), at(j));
        let share = (edge.pmi / strongest).max(0.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#5b6b7b\" \
             stroke-opacity=\"{:.2}\" stroke-width=\"{:.1}\"><title>{} and {}: {} images, PMI \
             {:.2}</title></line>",
            0.25 + 0.5 * share,
            0.8 + 3.2 * share,
            edge.a,
            edge.b,
            edge.images,
            edge.pmi
        );
    }
    for (i, &node) in nodes.iter().enumerate() {
        draw_node(&mut svg, node, &look(node), at(i), radii[i], images[&node]);
    }
    draw_legend(&mut svg, legend);
    svg.push_str("</svg>\n");
    svg
}

/// The joined concepts of the most images, in the order of the dictionary, and how many there
/// are in all.
fn largest(edges: &[Edge], images: &HashMap<u16, u32>) -> (Vec<u16>, usize) {
    let joined: BTreeSet<u16> = edges.iter().flat_map(|edge| [edge.a, edge.b]).collect();
    let mut nodes: Vec<u16> = joined.iter().copied().collect();
    nodes.sort_by_key(|node| std::cmp::Reverse(images[node]));
    nodes.truncate(MAX_NODES);
    nodes.sort_unstable();
    (nodes, joined.len())
}

/// The strongest edges of each node among `nodes`.
fn strongest<'a>(edges: &'a [Edge], nodes: &[u16]) -> Vec<&'a Edge> {
    let drawn = |id: u16| nodes.binary_search(&id).is_ok();
    let mut sorted: Vec<&Edge> = edges.iter().filter(|e| drawn(e.a) && drawn(e.b)).collect();
    sorted.sort_by(|x, y| y.pmi.total_cmp(&x.pmi));
    let mut degree: HashMap<u16, usize> = HashMap::new();
    sorted.retain(|edge| {
        // Kept for the sake of either end.
        let mut keep = false;
        for end in [edge.a, edge.b] {
            let degree = degree.entry(end).or_default();
            keep |= *degree < MAX_EDGES;
            *degree += 1;
        }
        keep
    });
    sorted
}

fn caption(summary: &ConceptSummary, nodes: usize, joined: usize, edges: usize) -> String {
    let all = summary.graph.edges.len();
    if all == 0 {
        return format!(
            "No two concepts occur together often enough in {} images.",
            summary.images
        );
    }
    format!(
        "Concepts that occur together in {} images: {nodes} of {joined} joined concepts, their \
         {edges} strongest of {all} pairs. Size: images of the concept; width of a line: PMI.",
        summary.images
    )
}

fn draw_node(svg: &mut String, node: u16, look: &Look, (x, y): (f64, f64), r: f64, images: u32) {
    let [red, green, blue] = look.colour;
    let colour = format!("#{red:02x}{green:02x}{blue:02x}");
    let _ = writeln!(svg, "<g><title>{}: {images} images</title>", escaped(&look.name));
    if let Some(jpeg) = &look.thumbnail {
        let _ = writeln!(
            svg,
            "<clipPath id=\"c{node}\"><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/></clipPath>\
             <image x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             clip-path=\"url(#c{node})\" preserveAspectRatio=\"xMidYMid slice\" \
             href=\"data:image/jpeg;base64,{}\"/>",
            x - r,
            y - r,
            2.0 * r,
            2.0 * r,
            STANDARD.encode(jpeg)
        );
    }
    let fill = if look.thumbnail.is_some() { "none" } else { &colour };
    let _ = writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\" fill=\"{fill}\" stroke=\"{colour}\" \
         stroke-width=\"3\"/>",
    );
    draw_name(svg, &look.name, (x, y), r);
    svg.push_str("</g>\n");
}

/// The name below a node, on a white edge. It is written twice: not every program knows
/// `paint-order`.
fn draw_name(svg: &mut String, name: &str, (x, y): (f64, f64), r: f64) {
    let name = escaped(&shortened(name));
    for style in ["stroke=\"#fff\" stroke-width=\"3\" stroke-linejoin=\"round\"", ""] {
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"middle\" \
             fill=\"#111\" {style}>{name}</text>",
            y + r + 11.0
        );
    }
}

/// A row of colours and what they mean.
fn draw_legend(svg: &mut String, legend: &[(String, [u8; 3])]) {
    // As much room as each name takes, about; all of them closer where they do not fit.
    let width = |name: &str| 34.0 + 7.0 * name.chars().count() as f64;
    let all: f64 = legend.iter().map(|(name, _)| width(name)).sum();
    let scale = ((SIZE.0 - 28.0) / all.max(1.0)).min(1.0);
    let (mut x, y) = (14.0, SIZE.1 - 14.0);
    for (name, [red, green, blue]) in legend {
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"6\" fill=\"#{red:02x}{green:02x}{blue:02x}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\" font-size=\"{:.1}\" fill=\"#333\">{}</text>",
            x + 6.0,
            y - 4.0,
            x + 16.0,
            12.5 * scale,
            escaped(name)
        );
        x += width(name) * scale;
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME {
        return name.to_owned();
    }
    name.chars().take(NAME - 1).chain(['…']).collect()
}

/// Text as XML holds it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML cannot hold them at all.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::{ImageConcepts, Segment, SummarySettings, summary};
    use super::*;

    /// Images `i` hold the concepts given.
    fn summed(images: &[&[u16]]) -> ConceptSummary {
        let record = |(i, concepts): (usize, &&[u16])| ImageConcepts {
            image: format!("{i:04}"),
            size: [10, 10],
            segments: concepts
                .iter()
                .map(|&concept| Segment {
                    concept,
                    similarity: 1.0,
                    area: 10,
                    bbox: [0, 0, 5, 2],
                    class: None,
                })
                .collect(),
        };
        let records: Vec<ImageConcepts> = images.iter().enumerate().map(record).collect();
        let settings = SummarySettings { min_images: 1, ..SummarySettings::default() };
        summary(&records, 300, &settings).unwrap()
    }

    #[test]
    fn joined_concepts_are_drawn_with_their_names() {
        let summary = summed(&[&[3, 4], &[3, 4], &[9]]);
        let look = |id: u16| Look {
            name: if id == 3 { "a <very> long & odd name".to_owned() } else { id.to_string() },
            colour: [255, 0, 16],
            thumbnail: (id == 4).then(|| vec![1, 2, 3]),
        };
        let svg = svg(&summary, &look, &[("all".to_owned(), [255, 0, 16])]);
        assert_eq!(svg.matches("<line").count(), 1);
        assert_eq!(svg.matches("<g>").count(), 2);
        assert!(svg.contains("a &lt;very&gt; long…</text>"), "{svg}");
        assert!(svg.contains("data:image/jpeg;base64,AQID"), "{svg}");
        assert!(svg.contains("2 of 2 joined concepts") && svg.contains("#ff0010"), "{svg}");
    }

    #[test]
    fn a_large_graph_is_cut_to_what_can_be_seen_and_an_empty_one_says_so() {
        // 150 pairs, the later ones in more images.
        let images: Vec<Vec<u16>> = (0..150u16)
            .flat_map(|i| vec![vec![2 * i, 2 * i + 1]; 1 + usize::from(i / 50)])
            .collect();
        let images: Vec<&[u16]> = images.iter().map(Vec::as_slice).collect();
        let look = |id: u16| Look { name: id.to_string(), ..Look::default() };
        let large = svg(&summed(&images), &look, &[]);
        assert_eq!(large.matches("<g>").count(), MAX_NODES);
        assert!(large.contains("80 of 300 joined") && large.contains(">200</text>"));
        assert!(!large.contains(">3</text>"));
        let empty = svg(&summed(&[&[1], &[2]]), &look, &[]);
        assert!(empty.contains("No two concepts") && !empty.contains("<line"));
    }

    #[test]
    fn a_hub_does_not_hide_the_strongest_edges() {
        let edge = |a, b, pmi| Edge { a, b, images: 9, pmi };
        let edges: Vec<Edge> = (1..10).map(|b| edge(0, b, f64::from(b))).collect();
        let nodes: Vec<u16> = (0..10).collect();
        // Each is among the three strongest of its other end.
        assert_eq!(strongest(&edges, &nodes).len(), 9);
        let all: Vec<Edge> =
            (0..10).flat_map(|a| (a + 1..10).map(move |b| edge(a, b, f64::from(a + b)))).collect();
        let kept = strongest(&all, &nodes);
        assert!(kept.len() <= 30 && kept.len() < all.len());
        assert_eq!((kept[0].a, kept[0].b), (8, 9));
    }
}
