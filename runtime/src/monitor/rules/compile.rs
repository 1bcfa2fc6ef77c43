//! From the tree of a condition to something that frames are tested with: names are looked up,
//! and numbers and conditions told apart, once and for all.

use super::Mistake;
use super::grammar::{InfixOp, Kind, Node, PrefixOp};
use crate::monitor::readings::Readings;
use crate::monitor::reference::Reference;

/// Something with a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(f64),
    /// Area share of a concept; of the present frame where no window is given.
    Area(usize, Option<usize>),
    Presence(usize, Option<usize>),
    Novelty(Option<usize>),
    Drift,
    DriftScore,
    Minus(Box<Value>),
    Infix(InfixOp, Box<Value>, Box<Value>),
}

/// Something that holds or not.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Test {
    Novel,
    Drifted,
    Frozen,
    Covered,
    Blurred,
    Not(Box<Test>),
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
    Compare(InfixOp, Value, Value),
}

/// What conditions may speak of.
pub(super) struct Scope<'a> {
    pub(super) reference: &'a Reference,
    pub(super) windows: &'a [f64],
    /// Concepts that were spoken of, in order.
    pub(super) concepts: Vec<usize>,
}

const FUNCTIONS: &str = "area, presence, novelty, drift, drift_score";
const STATES: &str = "novel, drifted, frozen, covered, blurred";

impl Scope<'_> {
    pub(super) fn test(&mut self, node: &Node) -> Result<Test, Mistake> {
        Ok(match &node.kind {
            Kind::Infix(InfixOp::And, a, b) => {
                Test::And(Box::new(self.test(a)?), Box::new(self.test(b)?))
            }
            Kind::Infix(InfixOp::Or, a, b) => {
                Test::Or(Box::new(self.test(a)?), Box::new(self.test(b)?))
            }
            Kind::Infix(
                op
                @ (InfixOp::Less | InfixOp::LessEqual | InfixOp::Greater | InfixOp::GreaterEqual),
                a,
                b,
            ) => Test::Compare(*op, self.value(a)?, self.value(b)?),
            Kind::Prefix(PrefixOp::Not, a) => Test::Not(Box::new(self.test(a)?)),
            Kind::Call(name, arguments) if state(name).is_some() => {
                if let Some(first) = arguments.first() {
                    return Err(mistake(first, format!("`{name}` takes no arguments")));
                }
                state(name).unwrap_or(Test::Novel)
            }
            _ => {
                return Err(mistake(
                    node,
                    format!("expected a condition: a comparison, or one of {STATES}"),
                ));
            }
        })
    }

    fn value(&mut self, node: &Node) -> Result<Value, Mistake> {
        Ok(match &node.kind {
            Kind::Number(number) => Value::Number(*number),
            Kind::Prefix(PrefixOp::Minus, a) => Value::Minus(Box::new(self.value(a)?)),
            Kind::Infix(
                op @ (InfixOp::Plus | InfixOp::Minus | InfixOp::Times | InfixOp::Over),
                a,
                b,
            ) => Value::Infix(*op, Box::new(self.value(a)?), Box::new(self.value(b)?)),
            Kind::Call(name, arguments) => self.function(node, name, arguments)?,
            Kind::Duration(_) => {
                return Err(mistake(
                    node,
                    "a time stands only behind `for` and as the window of a function".to_owned(),
                ));
            }
            _ => return Err(mistake(node, "expected a number".to_owned())),
        })
    }

    fn function(&mut self, node: &Node, name: &str, arguments: &[Node]) -> Result<Value, Mistake> {
        match (name, arguments) {
            ("area", [concept]) => Ok(Value::Area(self.concept(concept)?, None)),
            ("area", [concept, window]) => {
                Ok(Value::Area(self.concept(concept)?, Some(self.window(window)?)))
            }
            ("presence", [concept]) => Ok(Value::Presence(self.concept(concept)?, None)),
            ("presence", [concept, window]) => {
                Ok(Value::Presence(self.concept(concept)?, Some(self.window(window)?)))
            }
            ("novelty", []) => Ok(Value::Novelty(None)),
            ("novelty", [window]) => Ok(Value::Novelty(Some(self.window(window)?))),
            ("drift", []) => Ok(Value::Drift),
            ("drift_score", []) => Ok(Value::DriftScore),
            ("area" | "presence", _) => Err(mistake(
                node,
                format!("`{name}` takes a concept and perhaps a window: {name}('person', 2s)"),
            )),
            ("novelty", _) => {
                Err(mistake(node, "`novelty` takes at most a window: novelty(2s)".to_owned()))
            }
            ("drift" | "drift_score", _) => {
                Err(mistake(node, format!("`{name}` takes no arguments")))
            }
            _ if state(name).is_some() => {
                Err(mistake(node, format!("`{name}` holds or not; it has no number")))
            }
            _ => Err(mistake(node, format!("`{name}` is unknown; there are {FUNCTIONS}"))),
        }
    }

    fn concept(&mut self, node: &Node) -> Result<usize, Mistake> {
        let count = self.reference.count();
        let id = match &node.kind {
            Kind::Text(name) => {
                let named = self.reference.names().concepts_named(name).first();
                *named.ok_or_else(|| {
                    let all = self.reference.names().names();
                    let near = all
                        .into_iter()
                        .find(|other| other.to_lowercase() == name.trim().to_lowercase());
                    let hint = near.map_or_else(
                        || "names are given in the bundle's concepts.toml".to_owned(),
                        |near| format!("is it '{near}'?"),
                    );
                    mistake(node, format!("no concept has the name '{name}'; {hint}"))
                })?
            }
            Kind::Number(number) if number.fract() == 0.0 && *number < count as f64 => {
                *number as usize
            }
            _ => {
                return Err(mistake(
                    node,
                    format!(
                        "expected a concept: its name in quotes, or its id, 0 to {}",
                        count - 1
                    ),
                ));
            }
        };
        let lead = u16::try_from(id).ok().and_then(|id| self.reference.group(id));
        let lead = lead.ok_or_else(|| mistake(node, format!("{id} is no concept")))?;
        if !self.concepts.contains(&lead) {
            self.concepts.push(lead);
        }
        Ok(lead)
    }

    fn window(&self, node: &Node) -> Result<usize, Mistake> {
        if let Kind::Duration(seconds) = node.kind {
            let same = |&length: &f64| (length - seconds).abs() < 1e-6;
            if let Some(window) = self.windows.iter().position(same) {
                return Ok(window);
            }
        }
        let all: Vec<_> = self.windows.iter().map(|length| format!("{length}s")).collect();
        Err(mistake(node, format!("expected the length of a window: {}", all.join(", "))))
    }
}

fn state(name: &str) -> Option<Test> {
    Some(match name {
        "novel" => Test::Novel,
        "drifted" => Test::Drifted,
        "frozen" => Test::Frozen,
        "covered" => Test::Covered,
        "blurred" => Test::Blurred,
        _ => return None,
    })
}

fn mistake(node: &Node, what: String) -> Mistake {
    Mistake { at: node.span.start, what }
}

impl Value {
    fn of(&self, readings: &Readings) -> f64 {
        let over = |values: &crate::monitor::windows::Windows, channel, window: Option<usize>| {
            window.map_or_else(|| values.latest(channel), |w| values.mean(w, channel))
        };
        match self {
            Self::Number(number) => *number,
            Self::Area(id, window) => over(&readings.area, *id, *window),
            Self::Presence(id, window) => over(&readings.presence, *id, *window),
            Self::Novelty(window) => over(&readings.novelty, 0, *window),
            Self::Drift => readings.drift,
            Self::DriftScore => readings.drift_band.score(readings.drift),
            Self::Minus(a) => -a.of(readings),
            Self::Infix(op, a, b) => {
                let (a, b) = (a.of(readings), b.of(readings));
                match op {
                    InfixOp::Plus => a + b,
                    InfixOp::Minus => a - b,
                    InfixOp::Times => a * b,
                    // Division by 0 is no number, and no comparison with it holds.
                    _ if b == 0.0 => f64::NAN,
                    _ => a / b,
                }
            }
        }
    }
}

impl Test {
    pub(super) fn holds(&self, readings: &Readings) -> bool {
        match self {
            Self::Novel => readings.novel,
            Self::Drifted => readings.drifted,
            Self::Frozen => readings.frozen,
            Self::Covered => readings.covered,
            Self::Blurred => readings.blurred,
            Self::Not(a) => !a.holds(readings),
            Self::And(a, b) => a.holds(readings) && b.holds(readings),
            Self::Or(a, b) => a.holds(readings) || b.holds(readings),
            Self::Compare(op, a, b) => {
                let (a, b) = (a.of(readings), b.of(readings));
                match op {
                    InfixOp::Less => a < b,
                    InfixOp::LessEqual => a <= b,
                    InfixOp::Greater => a > b,
                    _ => a >= b,
                }
            }
        }
    }
}
