//! The live page.

use super::hub::Hub;

/// Self-contained: nothing else is loaded but `/events`.
pub(super) const PAGE: &str = include_str!("page.html");

/// The streams as the page reads them.
pub(super) fn streams(hub: &Hub) -> String {
    let streams = hub.streams();
    let list: Vec<_> = streams.iter().map(|latest| &latest.status).collect();
    // Numbers and text can always be written as JSON.
    serde_json::to_string(&list).unwrap_or_else(|_| "[]".to_owned())
}

/// What the streams showed before the page was opened.
pub(super) fn timelines(hub: &Hub) -> String {
    serde_json::to_string(&hub.timelines()).unwrap_or_else(|_| "{}".to_owned())
}
