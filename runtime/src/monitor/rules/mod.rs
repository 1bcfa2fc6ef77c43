//! Rules of the user's own.
//!
//! ```toml
//! [[rule]]
//! name = "somebody at the gate"
//! when = "area('person') > 0.05 for 2s"
//! clear_after = "10s"
//! message = "somebody stands at the gate"
//! ```
//!
//! Conditions compare numbers (`<`, `<=`, `>`, `>=`; `+`, `-`, `*`, `/`, brackets) and are joined
//! by `and`, `or`, `not`. Numbers are `area(concept)` and `presence(concept)` of the present
//! frame, or over one of the windows with `area(concept, 60s)`; `novelty()`, `novelty(60s)`;
//! `drift()` in bits and `drift_score()` in deviations. A concept is its name in quotes or its
//! id. The states `novel`, `drifted`, `frozen`, `covered` and `blurred` are conditions by
//! themselves. `for` and a time at the end say how long all of it must hold.

mod compile;
mod grammar;
#[cfg(test)]
mod tests;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::hysteresis::Levels;
use super::readings::Readings;
use super::reference::Reference;
use compile::{Scope, Test};

/// Most rules of a file.
const MAX_RULES: usize = 256;
/// Longest file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Longest time that a rule may ask for, in seconds.
const MAX_TIME: f64 = 86_400.0;

/// A mistake in a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    /// Byte of the text.
    at: usize,
    what: String,
}

/// Why rules could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The file could not be read.
    #[error("cannot read the rules {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: std::io::Error,
    },
    /// The file is no list of rules.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        reason: String,
    },
    /// A rule is not possible.
    #[error("{path}, line {line}, rule \"{rule}\": {what}")]
    Rule {
        /// The file.
        path: PathBuf,
        /// Line of the file, from 1.
        line: usize,
        /// Name of the rule.
        rule: String,
        /// What is wrong; of a condition with its text and a mark below the place.
        what: String,
    },
}

/// Rules that are ready to test frames.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    name: String,
    message: String,
    test: Test,
    concepts: Vec<usize>,
    hold: f64,
    clear: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    when: Spanned<String>,
    clear_after: Option<Spanned<String>>,
    message: Option<String>,
}

impl RuleSet {
    /// Reads a file of rules, for streams whose monitors have windows of these lengths.
    ///
    /// # Errors
    /// [`RuleError`] with the place of the first mistake.
    pub fn open(path: &Path, reference: &Reference, windows: &[f64]) -> Result<Self, RuleError> {
        Self::parse(&Self::read(path)?, path, reference, windows)
    }

    /// The text of a file of rules.
    pub(super) fn read(path: &Path) -> Result<String, RuleError> {
        let io = |source| RuleError::Io { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            let reason = format!("the file is longer than {MAX_BYTES} bytes");
            return Err(RuleError::Parse { path: path.to_owned(), reason });
        }
        Ok(text)
    }

    /// Reads the text of a file of rules; `path` is for messages.
    ///
    /// # Errors
    /// [`RuleError`] with the place of the first mistake.
    pub fn parse(
        text: &str,
        path: &Path,
        reference: &Reference,
        windows: &[f64],
    ) -> Result<Self, RuleError> {
        let wrong = |reason| RuleError::Parse { path: path.to_owned(), reason };
        let file: File =
            toml::from_str(text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        if file.rule.len() > MAX_RULES {
            return Err(wrong(format!("{MAX_RULES} rules are possible")));
        }
        let mut set = Self::default();
        for entry in file.rule {
            let name = entry.name.get_ref().clone();
            let wrong = |byte: usize, what: String| RuleError::Rule {
                path: path.to_owned(),
                line: 1 + text.bytes().take(byte).filter(|&b| b == b'\n').count(),
                rule: name.clone(),
                what,
            };
            if name.trim().is_empty()
                || name.chars().count() > 80
                || name.contains(char::is_control)
            {
                return Err(wrong(
                    entry.name.span().start,
                    "a name is one line of 1 to 80 characters".to_owned(),
                ));
            }
            if set.names().any(|other| other == name) {
                return Err(wrong(
                    entry.name.span().start,
                    "an earlier rule has this name".to_owned(),
                ));
            }
            let time = |seconds: f64, byte| {
                if (0.0..=MAX_TIME).contains(&seconds) {
                    return Ok(seconds);
                }
                Err(wrong(byte, format!("{seconds} s is too long, one day is possible")))
            };
            let when = entry.when.get_ref();
            let start = entry.when.span().start;
            let show = |m: Mistake| wrong(start, point_out(when, &m));
            let condition = grammar::parse(when).map_err(show)?;
            let mut scope = Scope { reference, windows, concepts: Vec::new() };
            let test = scope.test(&condition.root).map_err(show)?;
            let clear = match &entry.clear_after {
                None => 0.0,
                Some(text) => {
                    let seconds = grammar::parse_duration(text.get_ref()).ok_or_else(|| {
                        let what = "clear_after must be a time such as 2s, 500ms, 5min or 1h";
                        wrong(text.span().start, what.to_owned())
                    })?;
                    time(seconds, text.span().start)?
                }
            };
            set.rules.push(Rule {
                message: entry.message.unwrap_or_else(|| format!("{name}: {when}")),
                hold: time(condition.hold, start)?,
                concepts: scope.concepts,
                name,
                test,
                clear,
            });
        }
        Ok(set)
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, as the file has them.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(Rule::name)
    }
}

impl Rule {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is told when it holds.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Concepts that it speaks of.
    pub fn concepts(&self) -> &[usize] {
        &self.concepts
    }

    /// Whether its condition holds at present, for however short a time.
    pub fn holds(&self, readings: &Readings) -> bool {
        self.test.holds(readings)
    }

    /// When a [`Switch`](super::hysteresis::Switch) over 0 and 1 goes on and off.
    pub(super) fn levels(&self) -> Levels {
        Levels { on: 0.5, off: 0.5, on_for: self.hold, off_for: self.clear }
    }
}

/// The mistake, the condition, and a mark below the place.
fn point_out(text: &str, mistake: &Mistake) -> String {
    let at = mistake.at.min(text.len());
    let before = text.get(..at).unwrap_or(text).chars().count();
    format!(
        "{} at character {} of `when`\n  {text}\n  {:>width$}",
        mistake.what,
        before + 1,
        "^",
        width = before + 1
    )
}
