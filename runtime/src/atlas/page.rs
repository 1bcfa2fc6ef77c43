//! The atlas as one page that loads nothing from elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Atlas, pictures};
use crate::bundle::{ConceptNames, names_json};

const STYLE: &str = include_str!("page/atlas.css");
/// In the order in which they build on each other.
const SCRIPTS: [&str; 5] = [
    include_str!("page/data.js"),
    include_str!("page/panel.js"),
    include_str!("page/list.js"),
    include_str!("page/plane.js"),
    include_str!("page/naming.js"),
];
/// Marks the codebook that a page is about.
const CODEBOOK_META: &str = "conceptseg-codebook";

/// The page of an atlas.
pub fn html(atlas: &Atlas) -> String {
    let script = SCRIPTS.concat();
    let data = &atlas.data;
    // Only this very script runs, whatever names hold.
    let policy = format!(
        "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; connect-src 'self'; \
         script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        STANDARD.encode(Sha256::digest(&script))
    );
    let layout = json!({
        "tile": pictures::TILE, "small": pictures::SMALL, "columns": pictures::COLUMNS,
    });
    let strips: Vec<String> = atlas.strips.strips.iter().map(|s| STANDARD.encode(s)).collect();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name=(CODEBOOK_META) content=(atlas.codebook);
                meta http-equiv="Content-Security-Policy" content=(policy);
                title { "Atlas of " (data.bundle) }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                (header(atlas))
                main #main {
                    section #list role="list" aria-label="Concepts" {}
                    p #none hidden { "No concept fits." }
                    section #plane hidden aria-label="Map of the concepts" {}
                    section #figures hidden { (figures(atlas)) }
                }
                aside #panel hidden aria-label="Concept" tabindex="-1" {}
                div #bulk hidden role="group" aria-label="Chosen concepts" {}
                dialog #conflicts {}
                div #told role="status" aria-live="polite" {}
                noscript { "This page needs JavaScript." }
                (block("atlas", "application/json", data))
                (block("layout", "application/json", &layout))
                (block("said", "application/json", &names_object(&atlas.names, "")))
                script #small type="text/plain" { (STANDARD.encode(&atlas.strips.small)) }
                script #strips type="text/plain" { (strips.join("\n")) }
                script type="module" { (PreEscaped(&script)) }
            }
        }
    }
    .into_string()
}

/// The SHA-256 of the codebook that a page is about; none where it is no atlas.
pub fn codebook_of(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(&format!("<meta name=\"{CODEBOOK_META}\" content=\""))?;
    rest.split_once('"').map(|(hash, _)| hash)
}

/// Names as the page reads them.
pub(super) fn names_object(names: &ConceptNames, version: &str) -> Value {
    let mut object = names_json(names);
    object["version"] = version.into();
    object
}

/// A value inside of a page: nothing in it ends the element.
fn block(id: &str, kind: &str, value: &impl Serialize) -> Markup {
    let text = serde_json::to_string(value).unwrap_or_default().replace('<', "\\u003c");
    html! { script id=(id) type=(kind) { (PreEscaped(text)) } }
}

fn header(atlas: &Atlas) -> Markup {
    let data = &atlas.data;
    html! {
        header {
            div.title {
                h1 { (data.bundle) }
                p.note {
                    (data.used) " of " (data.concepts.len()) " concepts seen in " (data.images)
                    " images of " (data.source)
                }
            }
            nav role="tablist" aria-label="View" {
                button role="tab" #tab-list aria-controls="list" aria-selected="true" { "Concepts" }
                button role="tab" #tab-plane aria-controls="plane" aria-selected="false" tabindex="-1" { "Map" }
                button role="tab" #tab-figures aria-controls="figures" aria-selected="false" tabindex="-1" { "Figures" }
            }
            div.tools role="search" {
                input #find type="search" placeholder="Name, id or class  ( / )" aria-label="Search" autocomplete="off";
                label { "Show " select #show {
                    option value="used" { "in use" }
                    option value="all" { "all" }
                    option value="unseen" { "never seen" }
                    option value="unnamed" { "without a name" }
                    option value="named" { "with a name" }
                    option value="alert" { "alert" }
                    option value="ignore" { "ignored" }
                } }
                label { "by " select #sort {
                    option value="area" { "area" }
                    option value="segments" { "segments" }
                    option value="images" { "images" }
                    option value="similarity" { "similarity" }
                    @if !data.classes.is_empty() {
                        option value="purity" { "purity" }
                        option value="class" { "class" }
                    }
                    option value="name" { "name" }
                    option value="id" { "id" }
                } }
                span #count role="status" {}
            }
            div.saving #saving hidden {
                button #export hidden title="for conceptseg concepts import" { "Export changes" }
                button #undo { "Undo all" }
                button.main #save { "Save" }
            }
        }
    }
}

fn figures(atlas: &Atlas) -> Markup {
    let data = &atlas.data;
    html! {
        @if let Some(svg) = &atlas.purity {
            h2 { "Purity" }
            p.note { "How far the segments of a concept show one class: the share of them in its most frequent one." }
            figure.plot { (PreEscaped(svg)) }
            @if let Some([mean, above]) = data.purity {
                p { "Mean " (percent(mean)) " %; " (percent(above)) " % of the scored concepts lie above 80 %." }
            }
        }
        h2 { "Use of the dictionary" }
        p {
            (data.segments) " segments of " (data.used) " of " (data.concepts.len())
            " concepts; as uneven as " (format!("{:.1}", data.perplexity)) " equally frequent concepts by area."
        }
        figure.plot #use {}
        h2 { "Similarity" }
        p.note { "Cosine of all segments to their concepts." }
        figure.plot #similarity {}
        h2 { "Keys" }
        table {
            @for (key, what) in [
                ("/", "search"), ("← ↑ → ↓", "go from concept to concept"), ("Enter", "open a concept"),
                ("N", "name the open concept"), ("Space", "choose a concept, to name several at once"),
                ("Ctrl S", "save"), ("+ −", "zoom the map"), ("Esc", "close, leave the search"),
            ] { tr { th { kbd { (key) } } td { (what) } } }
        }
        p.note { "Naming needs the page that conceptseg atlas --serve opens; a file can be looked at only." }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}
