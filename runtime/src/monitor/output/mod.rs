//! Who is told: files, Prometheus, MQTT, a page.
//!
//! [`Outputs`] holds all of them; streams tell it from any thread what they see.

mod http;
mod hub;
mod log;
mod metrics;
pub mod mqtt;
mod outputs;
mod page;
mod spool;
mod tls;
mod writer;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

pub use http::{Server, ServerError};
pub use hub::{Hub, Latest, Timeline};
pub use log::{EventLog, Rotation};
pub use metrics::render as render_metrics;
pub use outputs::{MqttOutput, OutputConfig, OutputError, Outputs};
pub use spool::{Message, Place, Spool, SpoolError};
