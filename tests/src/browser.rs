//! A headless Chromium, driven through its debugging protocol.
//!
//! The protocol is JSON over a WebSocket; the few commands that tests need are written out here
//! instead of taking a crate that holds all of it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// How long anything on a page may take. Machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running browser.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    last: u64,
    /// What pages complained about.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

/// A page in a [`Browser`].
#[derive(Debug, Clone)]
pub struct Tab {
    session: String,
}

impl Browser {
    /// Starts a browser; none, with a printed reason, where there is no Chromium.
    pub fn start() -> Option<Self> {
        let profile = tempfile::tempdir().expect("a temporary folder can be made");
        let started =
            ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|program| {
                Command::new(program)
                    .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
                    .args(["--disable-dev-shm-usage", "--window-size=1280,900"])
                    .args(["--remote-debugging-port=0", "about:blank"])
                    .arg(format!("--user-data-dir={}", profile.path().display()))
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .ok()
            });
        let Some(mut child) = started else {
            eprintln!("skipped: Chromium is not installed");
            return None;
        };
        let mut lines =
            BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            line.strip_prefix("DevTools listening on ").map(|rest| rest.trim().to_owned())
        });
        let Some(address) = address else {
            let _ = child.kill();
            panic!("Chromium ended without telling its address");
        };
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        let host = address.trim_start_matches("ws://").split('/').next().expect("a host");
        let stream = TcpStream::connect(host).expect("the browser listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let (socket, _) = tungstenite::client(&*address, stream).expect("a WebSocket opens");
        Some(Self { child, socket, last: 0, complaints: Vec::new(), _profile: profile })
    }

    /// Sends a command and waits for its result.
    fn call(&mut self, tab: Option<&Tab>, method: &str, parameters: &Value) -> Value {
        self.try_call(tab, method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Sends a command and waits for its result, or for what the browser says against it.
    fn try_call(
        &mut self,
        tab: Option<&Tab>,
        method: &str,
        parameters: &Value,
    ) -> Result<Value, Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(tab) = tab {
            message["sessionId"] = tab.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).expect("the browser listens");
        loop {
            let Message::Text(text) = self.socket.read().expect("the browser answers") else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).expect("the browser speaks JSON");
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(answer["params"]["exceptionDetails"].to_string());
                }
                Some("Log.entryAdded") if answer["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(answer["params"]["entry"].to_string());
                }
                _ => {}
            }
            if answer["id"] == self.last {
                return match answer.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(answer["result"].clone()),
                };
            }
        }
    }

    /// Opens a page and waits until it is ready.
    pub fn open(&mut self, url: &str) -> Tab {
        let target = self.call(None, "Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call(None, "Target.attachToTarget", &attach)["sessionId"].clone();
        let tab = Tab { session: session.as_str().expect("a session has an id").to_owned() };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.call(Some(&tab), domain, &json!({}));
        }
        // Pages behind others get no frames and no focus unless asked for.
        self.call(Some(&tab), "Emulation.setFocusEmulationEnabled", &json!({ "enabled": true }));
        self.call(Some(&tab), "Page.navigate", &json!({ "url": url }));
        self.wait(&tab, "document.body?.classList.contains('ready')");
        tab
    }

    /// Loads a page again.
    pub fn reload(&mut self, tab: &Tab) {
        self.eval(tab, "document.body.classList.remove('ready')");
        self.call(Some(tab), "Page.reload", &json!({}));
        self.wait(tab, "document.body?.classList.contains('ready')");
    }

    /// The value of an expression on a page.
    pub fn eval(&mut self, tab: &Tab, expression: &str) -> Value {
        self.try_eval(tab, expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The value of an expression on a page, or what the browser says against it.
    fn try_eval(&mut self, tab: &Tab, expression: &str) -> Result<Value, Value> {
        let parameters = json!({
            "expression": expression, "returnByValue": true, "awaitPromise": true,
        });
        let answer = self.try_call(Some(tab), "Runtime.evaluate", &parameters)?;
        let failed = answer.get("exceptionDetails");
        assert!(failed.is_none(), "{expression}: {failed:?}");
        Ok(answer["result"].get("value").cloned().unwrap_or(Value::Null))
    }

    /// Waits until an expression is true. While a page gives way to the next, nothing is.
    pub fn wait(&mut self, tab: &Tab, expression: &str) {
        let start = Instant::now();
        while self.try_eval(tab, &format!("Boolean({expression})")) != Ok(Value::Bool(true)) {
            let complaints = &self.complaints;
            assert!(start.elapsed() < PATIENCE, "never true: {expression}; {complaints:?}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Presses a key, as `KeyboardEvent.key` names it.
    pub fn press(&mut self, tab: &Tab, key: &str, control: bool) {
        let text = match key {
            "Enter" => "\r",
            key if key.chars().count() == 1 && !control => key,
            _ => "",
        };
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let parameters = json!({
                "type": kind, "key": key, "modifiers": if control { 2 } else { 0 },
                "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { text } else { "" },
            });
            self.call(Some(tab), "Input.dispatchKeyEvent", &parameters);
        }
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, tab: &Tab, text: &str) {
        self.call(Some(tab), "Input.insertText", &json!({ "text": text }));
    }

    /// Clicks the middle of the first element that fits a selector.
    pub fn click(&mut self, tab: &Tab, selector: &str) {
        let place = format!(
            "(() => {{ const e = document.querySelector({selector:?}); \
             e.scrollIntoView({{ block: 'center' }}); const b = e.getBoundingClientRect(); \
             return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        );
        let place = self.eval(tab, &place);
        for kind in ["mousePressed", "mouseReleased"] {
            let parameters = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call(Some(tab), "Input.dispatchMouseEvent", &parameters);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
