//! Who is told: files, Prometheus, MQTT, a page.
//!
//! All of them are fed by a [`Hub`], which streams report to from any thread.

mod http;
mod hub;
mod log;
mod metrics;
pub mod mqtt;
mod page;
mod spool;

#[cfg(test)]
mod tests;

pub use http::{Server, ServerError};
pub use hub::{Hub, Latest, Timeline};
pub use log::{EventLog, Rotation};
pub use metrics::render as render_metrics;
pub use spool::{Message, Place, Spool, SpoolError};
