//! The monitor's metrics in a real Prometheus: the queries of the dashboard, and the alerts of
//! the documentation.

use std::collections::HashSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use conceptseg_tests::{built, root, run, scene};
use serde_json::Value;

const DASHBOARD: &str = "configs/grafana/conceptseg-monitor.json";
/// Machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Running {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Running(child.unwrap_or_else(|e| panic!("cannot start {command:?}: {e}")))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join(DASHBOARD)).unwrap()).unwrap()
}

/// Every query of the dashboard, with its variables filled in.
fn queries() -> Vec<String> {
    let fill = |text: &Value| text.as_str().unwrap().replace("$job", ".*").replace("$stream", ".*");
    let board = dashboard();
    let targets = board["panels"].as_array().unwrap().iter();
    let targets = targets.flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut all: Vec<String> = targets.map(|target| fill(&target["expr"])).collect();
    for variable in board["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            // Grafana's own function: the values that a label has.
            let text = fill(&variable["query"]);
            let inner = text.strip_prefix("label_values(").and_then(|t| t.strip_suffix(')'));
            let (metric, label) = inner.unwrap().rsplit_once(", ").unwrap();
            all.push(format!("count by ({label}) ({metric})"));
        }
    }
    all
}

/// The block of alerts in the documentation.
fn alerts() -> String {
    let text = fs::read_to_string(root().join("docs/fleet.md")).unwrap();
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.into_iter().find(|block| block.starts_with("groups:")).unwrap().to_owned()
}

/// A monitor with a rule that always holds, so that every query has something to find.
fn monitor(dir: &Path, port: u16) -> Running {
    let bundle = root().join("models/starter");
    let frames = scene(dir, 160, 96, 30).join("frames");
    fs::write(dir.join("rules.toml"), "[[rule]]\nname = \"always\"\nwhen = \"novelty() >= 0\"\n")
        .unwrap();
    fs::write(dir.join("settings.toml"), "warm_up = 2.0\n").unwrap();
    start(
        Command::new(&built().conceptseg)
            .args(["monitor", "run", "--pace", "--fps", "5", "--repeat", "10000"])
            .args(["--short-side", "96", "--listen", &format!("127.0.0.1:{port}"), "--bundle"])
            .arg(bundle)
            .arg("--frames")
            .arg(frames)
            .arg("--rules")
            .arg(dir.join("rules.toml"))
            .arg("--settings")
            .arg(dir.join("settings.toml")),
    )
}

#[test]
fn every_query_of_dashboard_and_alerts_is_answered() {
    let exists = |program| Command::new(program).arg("--version").output().is_ok();
    if !exists("prometheus") || !exists("promtool") {
        eprintln!("skipped: prometheus is not installed (Debian: apt install prometheus)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (watched, served) = (free_port(), free_port());
    let _monitor = monitor(dir.path(), watched);

    fs::write(dir.path().join("alerts.yml"), alerts()).unwrap();
    let answer =
        run(Command::new("promtool").args(["check", "rules"]).arg(dir.path().join("alerts.yml")));
    assert!(answer.code == 0 && answer.stdout.contains("2 rules found"), "{answer:?}");
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [alerts.yml]\n\
         scrape_configs:\n\
         - job_name: conceptseg\n  static_configs: [{{targets: [\"127.0.0.1:{watched}\"]}}]\n"
    );
    fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let _prometheus = start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{served}")),
    );

    let ask = |query: &str| {
        let url = format!("http://127.0.0.1:{served}");
        run(Command::new("promtool").args(["query", "instant", "-o", "json", &url, query]))
    };
    // Without a drift there is no quotient yet: every query has data in the end.
    let until = Instant::now() + PATIENCE;
    let mut waiting = queries();
    assert!(waiting.len() >= 9, "{waiting:?}");
    waiting.push("up{job=\"conceptseg\"} == 1".to_owned());
    while !waiting.is_empty() {
        assert!(Instant::now() < until, "no data: {waiting:?}; {:?}", ask(&waiting[0]));
        std::thread::sleep(Duration::from_millis(500));
        waiting.retain(|query| {
            let answer = ask(query);
            // While it starts, Prometheus refuses; what it says of a mistake is in its answer.
            assert!(!answer.stderr.contains("parse error"), "{query}: {answer:?}");
            let data: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
            answer.code != 0 || data.as_array().is_none_or(Vec::is_empty)
        });
    }

    // The alerts are evaluated, and silent: the device is there, and sees.
    let rules: Value = loop {
        assert!(Instant::now() < until, "the rules are not evaluated");
        let text = get(served, "/api/v1/rules").unwrap_or_default();
        if !text.contains("\"unknown\"") && text.contains("DeviceGone") {
            break serde_json::from_str(&text).unwrap();
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 2);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    let gone = rules.iter().find(|rule| rule["name"] == "DeviceGone").unwrap();
    assert_eq!(gone["state"], "inactive");
}

/// What Grafana's provisioning of files asks for.
#[test]
fn the_dashboard_is_one_that_can_be_provisioned() {
    let board = dashboard();
    // The id is of one data base; inputs are asked for in the import dialog, which provisioning
    // does not show.
    assert!(board["id"].is_null() && board["__inputs"].is_null());
    assert!(!board["title"].as_str().unwrap().is_empty());
    assert!(matches!(board["uid"].as_str().unwrap().len(), 8..=40));
    assert!(board["schemaVersion"].as_u64().unwrap() >= 16, "panels have a gridPos");
    let variables = board["templating"]["list"].as_array().unwrap();
    let names: HashSet<_> = variables.iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert!(names.contains("datasource"));
    let mut ids = HashSet::new();
    let mut taken = HashSet::new();
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "panels overlap: {panel}");
            }
        }
        let targets = panel["targets"].as_array().unwrap();
        let refs: HashSet<_> = targets.iter().map(|t| t["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && refs.len() == targets.len(), "{panel}");
        for target in targets {
            for used in target["expr"].as_str().unwrap().split('$').skip(1) {
                let end = used.find(|c: char| !c.is_alphanumeric()).unwrap_or(used.len());
                assert!(names.contains(&used[..end]), "no variable {used}: {panel}");
            }
        }
    }
}
