//! Programs around the plugin as a file: the examples.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::Fixture;

/// Long enough for a machine under load; a program that hangs takes it whole.
const PATIENCE: Duration = Duration::from_mins(2);

/// The folder of the plugin that was built with these tests. The one beside them is of the same
/// build; the one above is there after `cargo build` only.
pub fn plugin_folder() -> Option<PathBuf> {
    built("libgstconceptseg.so").and_then(|file| Some(file.parent()?.to_owned()))
}

/// A file that was built with these tests.
fn built(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let beside = test.parent()?;
    let folders = [beside, beside.parent()?];
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.exists())
}

/// The program of an example in Rust.
pub fn built_example(name: &str) -> Option<PathBuf> {
    built(&format!("examples/{name}"))
}

/// The source of an example.
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A Python that has these modules of GStreamer.
pub fn python(modules: &[&str]) -> Option<&'static str> {
    let names = modules.join(", ");
    let script = format!(
        "import gi\nfor name in '{names}'.split(', '): gi.require_version(name, '1.0')\n\
         from gi.repository import {names}"
    );
    ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        Command::new(python)
            .args(["-c", &script])
            .output()
            .is_ok_and(|output| output.status.success())
    })
}

/// Lets a program find the plugin of this build, with a registry of its own.
pub fn with_plugin(fixture: &Fixture, mut program: Command) -> Option<Command> {
    let Some(plugins) = plugin_folder() else {
        println!("skipped: libgstconceptseg.so is not built");
        return None;
    };
    program
        .env("GST_PLUGIN_PATH", plugins)
        .env("GST_REGISTRY", fixture.path("registry.bin"))
        .env("G_DEBUG", "fatal_warnings");
    Some(program)
}

/// A program that runs, and the lines that it writes.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    pub fn start(mut program: Command) -> Self {
        let mut child = program
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program:?}: {error}"));
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line that `is_it`, and answers how many came until then, with it.
    pub fn wait_for(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> usize {
        let begin = self.seen.len();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no {what}: {error}, {:#?}", self.seen));
            let found = is_it(&line);
            self.seen.push(line);
            if found {
                return self.seen.len() - begin;
            }
        }
    }

    /// What Ctrl-C sends.
    pub fn interrupt(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }

    /// Waits for the end; answers the status and all lines.
    pub fn end(mut self) -> (ExitStatus, Vec<String>) {
        // The lines end with the program, unless it hangs.
        let hangs = loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(error) => break error == std::sync::mpsc::RecvTimeoutError::Timeout,
            }
        };
        assert!(!hangs, "the program does not end: {:#?}", self.seen);
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
