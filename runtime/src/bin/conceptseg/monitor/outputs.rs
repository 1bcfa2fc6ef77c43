//! What `conceptseg monitor run` tells, and where.

use std::path::PathBuf;

use anyhow::Result;
use conceptseg::monitor::output::mqtt::{MqttConfig, TlsFiles};
use conceptseg::monitor::output::{MqttOutput, OutputConfig, Outputs, Rotation};

#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// File that events are appended to, one line of JSON each.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Length at which the file of events gives way to a new one, in MiB.
    #[arg(long, default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    rotate: u64,
    /// Older files of events that are kept.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    keep: u32,
    /// Address of the live page and of the metrics for Prometheus (/metrics), such as
    /// 127.0.0.1:9464. It has no passwords: keep it to this machine unless the network is yours.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// MQTT broker to publish to: HOST:PORT, or `mqtts://HOST` for an encrypted connection.
    #[arg(long, value_name = "BROKER", requires = "spool")]
    mqtt: Option<String>,
    /// Certificates (PEM) of the authorities that may vouch for an mqtts:// broker; without it,
    /// those that the system trusts.
    #[arg(long, value_name = "FILE", requires = "mqtt")]
    mqtt_ca: Option<PathBuf>,
    /// Certificate (PEM) that this device shows to the broker.
    #[arg(long, value_name = "FILE", requires = "mqtt_key")]
    mqtt_certificate: Option<PathBuf>,
    /// Key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", requires = "mqtt_certificate")]
    mqtt_key: Option<PathBuf>,
    /// Folder where events wait for the broker.
    #[arg(long, value_name = "DIR", requires = "mqtt")]
    spool: Option<PathBuf>,
    /// Space of the spool, in MiB; when it is full, the oldest events give way.
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u64).range(2..=65536))]
    spool_size: u64,
    /// Name of this device, in topics PREFIX/DEVICE/STREAM/event.
    #[arg(long, value_name = "DEVICE", default_value = "device")]
    device_name: String,
    /// First part of all topics.
    #[arg(long, default_value = "conceptseg")]
    prefix: String,
    /// User name for the broker.
    #[arg(long, value_name = "NAME", env = "CONCEPTSEG_MQTT_USER", requires = "mqtt_password")]
    mqtt_user: Option<String>,
    /// Password for the broker; the variable keeps it out of the list of processes.
    #[arg(long, value_name = "TEXT", env = "CONCEPTSEG_MQTT_PASSWORD", hide_env_values = true)]
    mqtt_password: Option<String>,
}

impl OutputArgs {
    pub fn open(&self) -> Result<Outputs> {
        let rotation = Rotation { max_bytes: self.rotate << 20, keep: self.keep };
        let mqtt = self.mqtt.clone().zip(self.spool.clone()).map(|(broker, spool)| MqttOutput {
            config: MqttConfig {
                broker,
                tls: TlsFiles {
                    ca: self.mqtt_ca.clone(),
                    certificate: self.mqtt_certificate.clone(),
                    key: self.mqtt_key.clone(),
                },
                device: self.device_name.clone(),
                prefix: self.prefix.clone(),
                login: self.mqtt_user.clone().zip(self.mqtt_password.clone()),
            },
            spool,
            spool_bytes: self.spool_size << 20,
        });
        let outputs = Outputs::open(&OutputConfig {
            log: self.events.clone().map(|path| (path, rotation)),
            listen: self.listen.clone(),
            mqtt,
        })?;
        if let Some(address) = outputs.address() {
            tracing::info!(
                "the live page is at http://{address}/, metrics at http://{address}/metrics"
            );
        }
        Ok(outputs)
    }
}
