//! Streams as cameras send them: an RTSP server, and results as they arrive.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Answer, gst_launch_command, gstreamer, root, run};

/// Whether an element is installed; says what is skipped where it is not.
pub fn has_element(name: &str) -> bool {
    let there = run(gstreamer("gst-inspect-1.0").args(["--exists", name])).code == 0;
    if !there {
        println!("skipped: the element {name} is not installed; scripts/setup --tests installs it");
    }
    there
}

/// An H.264 encoder for small frames that is installed, with its properties.
pub fn h264_encoder() -> Option<&'static str> {
    let known = [("openh264enc", "openh264enc"), ("x264enc", "x264enc tune=zerolatency")];
    let decoder = ["openh264dec", "avdec_h264"].into_iter().any(has_element);
    let parser = has_element("h264parse");
    let (_, line) = known.into_iter().find(|(name, _)| decoder && parser && has_element(name))?;
    Some(line)
}

/// A running `gst-rtsp-server`, which ends with this value.
#[derive(Debug)]
pub struct RtspServer {
    child: Child,
    lines: Receiver<String>,
    port: u16,
}

impl RtspServer {
    /// Serves each of the pipelines. Says what is skipped where there is no server to run.
    pub fn start(launches: &[&str]) -> Option<Self> {
        // The first one in the path may be one without the system's packages.
        ["python3", "/usr/bin/python3"]
            .iter()
            .find_map(|python| Self::run(python, launches))
            .or_else(|| {
                println!(
                    "skipped: no RTSP server; scripts/setup --tests installs python3-gi and \
                     gir1.2-gst-rtsp-server-1.0"
                );
                None
            })
    }

    fn run(python: &str, launches: &[&str]) -> Option<Self> {
        let mut child = Command::new(python)
            .arg(root().join("tests/rtsp_server.py"))
            .args(launches)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let stdout = BufReader::new(child.stdout.take()?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Ends with the server.
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut server = Self { child, lines, port: 0 };
        // A server that cannot start ends.
        let line = server.lines.recv_timeout(Duration::from_mins(1)).ok()?;
        server.port = line.strip_prefix("port ")?.parse().ok()?;
        Some(server)
    }

    /// Where the pipeline with that index is.
    pub fn location(&self, index: usize) -> String {
        format!("rtsp://127.0.0.1:{}/{index}", self.port)
    }

    /// Waits until the server says that a client did this, as `teardown`.
    pub fn wait_for(&self, what: &str) {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_mins(1) {
            if self.lines.recv_timeout(Duration::from_secs(1)).is_ok_and(|line| line == what) {
                return;
            }
        }
        panic!("no {what} from a client");
    }

    /// Ends as a camera does whose cable is pulled.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A line of results, and when it came.
#[derive(Debug)]
pub struct Arrived {
    /// When it was read.
    pub at: Instant,
    /// The line.
    pub record: Value,
}

impl Arrived {
    /// The number of the frame that the result is of.
    pub fn frame(&self) -> u64 {
        self.record["frame"].as_u64().unwrap_or_else(|| panic!("{}", self.record))
    }

    /// Its presentation time.
    pub fn pts(&self) -> Duration {
        let pts = self.record["pts_ns"].as_u64();
        Duration::from_nanos(pts.unwrap_or_else(|| panic!("{}", self.record)))
    }
}

/// Runs a pipeline that writes its results to descriptor 1, and calls `each` as they come.
pub fn gst_launch_results(
    pipeline: &str,
    mut each: impl FnMut(&Arrived),
) -> (Vec<Arrived>, Answer) {
    let mut child = gst_launch_command(pipeline)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("gst-launch-1.0 starts");
    let mut errors = child.stderr.take().expect("it is piped");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut arrived = Vec::new();
    let mut rest = String::new();
    for line in BufReader::new(child.stdout.take().expect("it is piped")).lines() {
        let line = line.expect("results are text");
        let Ok(record) = serde_json::from_str(&line) else {
            rest += &line;
            rest.push('\n');
            continue;
        };
        let new = Arrived { at: Instant::now(), record };
        each(&new);
        arrived.push(new);
    }
    let code = child.wait().expect("it ends").code().unwrap_or(-1);
    let stderr = errors.join().expect("reading does not panic");
    (arrived, Answer { code, stdout: rest, stderr })
}
