//! The page itself.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Source;
use super::curves::Chart;
use super::pictures::Pictures;

/// Follows the reader's choice of a dark or light screen.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --line: #ddd; --ground: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #999; --line: #383838; --ground: #161616 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1180px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse }
th { text-align: left; font-weight: normal; color: var(--soft) }
th, td { padding: .2em 1.5em .2em 0; vertical-align: top; border-bottom: 1px solid var(--line) }
td { overflow-wrap: anywhere }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(520px, 100%), 1fr)); gap: 1em }
.charts svg { width: 100%; height: auto }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5em; margin-bottom: .5em }
.row img { width: 100%; display: block }
.crops { display: flex; flex-wrap: wrap; gap: .5em; align-items: flex-end }
figure { margin: 0 } figcaption, .note { color: var(--soft); font-size: 13px }
pre { overflow-x: auto; border: 1px solid var(--line); padding: 1em }
";

pub(super) fn page(source: &Source<'_>, charts: &[Chart], pictures: &Pictures) -> Result<Markup> {
    let config = source.config;
    let recipe = toml::to_string(config)?;
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (config.name) " – training report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (config.name) }
                (summary(source))
                h2 { "Curves" }
                p.note { "Over the steps, means over ten of them." }
                div.charts {
                    @for chart in charts {
                        figure {
                            figcaption {
                                b { (chart.title) }
                                @for (name, colour) in &chart.lines {
                                    span.key style={ "background:" (colour) } {} (name)
                                }
                            }
                            (PreEscaped(&chart.svg))
                        }
                    }
                }
                h2 { "Images" }
                p.note {
                    "Left: the image. Middle: the pseudo segments that were learnt from, white where "
                    "there is none. Right: the first three principal components of the embeddings as "
                    "red, green and blue; a colour means the same in all pictures."
                }
                @for shown in &pictures.shown {
                    div.row title=(shown.name) {
                        img src=(shown.image) alt=(shown.name);
                        img src=(shown.segments) alt={ "segments of " (shown.name) };
                        img src=(shown.embedding) alt={ "embeddings of " (shown.name) };
                    }
                }
                h2 { "Concepts" }
                p.note {
                    "The concepts with the most segments in " (pictures.images) " images, each with its "
                    "most similar segments, at most one of an image; below, the similarity."
                }
                @for concept in &pictures.concepts {
                    h3 { "Concept " (concept.id) " " small.note { (concept.count) " segments" } }
                    div.crops {
                        @for (similarity, picture) in &concept.crops {
                            figure {
                                img src=(picture) alt={ "a segment of concept " (concept.id) };
                                figcaption { (format!("{similarity:.2}")) }
                            }
                        }
                    }
                }
                h2 { "Recipe" }
                details { summary { "every key" } pre { (recipe) } }
            }
        }
    })
}

fn summary(source: &Source<'_>) -> Markup {
    let (config, trained) = (source.config, source.trained);
    let (start, end) = trained.loss_start_end;
    let weights = source.weights.map_or_else(
        || "random".to_owned(),
        |path| format!("{} {}", path.display(), config.provenance.backbone),
    );
    let rows = [
        ("Bundle", source.bundle.display().to_string()),
        ("Network", format!("{:?}, {} dimensions", config.network.preset, config.network.dim)),
        ("Images", source.dataset.len().to_string()),
        ("Steps", format!("{} of {} images", config.optimizer.iterations, config.data.batch)),
        ("Time", time(trained.seconds)),
        ("Device", format!("{:?}", source.device)),
        ("Seed", config.seed.to_string()),
        ("First weights", weights),
        ("Loss", format!("{start:.3} → {end:.3} (first and last tenth of the steps)")),
        ("Batches without a segment", trained.void_batches.to_string()),
    ];
    html! {
        table {
            @for (name, value) in rows { tr { th { (name) } td { (value) } } }
        }
    }
}

fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60) {
        (0, 0) => format!("{seconds:.1} s"),
        (0, minutes) => format!("{minutes} min {} s", whole % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_size() {
        let told = [2.26, 61.0, 7384.0].map(time);
        assert_eq!(told, ["2.3 s", "1 min 1 s", "2 h 3 min"]);
    }
}
