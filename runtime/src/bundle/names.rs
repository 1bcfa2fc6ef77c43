//! What people say about concepts (`concepts.toml`): names, colours, marks.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BundleError;

/// Most characters of a name.
pub const MAX_NAME: usize = 80;

/// What people said about concepts; ids that nobody touched are absent.
///
/// ```toml
/// [concept.17]
/// name = "asphalt"
/// color = "#606068"
/// mark = "ignore"
/// ```
///
/// Concepts of the same name are one thing for people: they have one colour, and what is asked
/// of a name is asked of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConceptNames {
    entries: BTreeMap<usize, ConceptEntry>,
    /// The concepts of each name, rising.
    named: HashMap<String, Vec<usize>>,
}

/// What was said about one concept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptEntry {
    /// Shown instead of the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Colour as `#rrggbb`; the generated one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// What to do where the concept is seen; nothing special where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
}

/// What to do where a concept is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It does not matter: overlays leave it uncoloured, monitors do not watch it.
    Ignore,
    /// Somebody wants to be told.
    Alert,
}

impl Mark {
    /// As files have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Alert => "alert",
        }
    }

    /// What files call so.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Ignore, Self::Alert].into_iter().find(|mark| mark.as_str() == name)
    }
}

impl ConceptEntry {
    /// The colour as red, green, blue, where one is given.
    pub fn rgb(&self) -> Option<[u8; 3]> {
        parse_color(self.color.as_ref()?)
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// # Errors
    /// What is wrong, to be read after the name of the concept.
    fn check(&self) -> Result<(), String> {
        if let Some(name) = &self.name {
            let length = name.chars().count();
            if name.trim() != name || name.is_empty() || name.contains(char::is_control) {
                return Err(
                    "name must be a single line without spaces around it, and not empty".to_owned()
                );
            }
            if length > MAX_NAME {
                return Err(format!("name has {length} characters, {MAX_NAME} are possible"));
            }
        }
        if self.color.is_some() && self.rgb().is_none() {
            return Err("color must look like \"#a0b0c0\"".to_owned());
        }
        Ok(())
    }
}

fn parse_color(text: &str) -> Option<[u8; 3]> {
    let digits = text.strip_prefix('#')?;
    if digits.len() != 6 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).ok();
    Some([byte(0)?, byte(2)?, byte(4)?])
}

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamesFile {
    /// Entries by concept id, written as decimal text.
    #[serde(default)]
    concept: BTreeMap<String, ConceptEntry>,
}

impl ConceptNames {
    /// The entries of a codebook of `count` concepts. Empty ones are left out.
    ///
    /// # Errors
    /// A sentence with the first entry that is not possible.
    pub fn new(
        entries: impl IntoIterator<Item = (usize, ConceptEntry)>,
        count: usize,
    ) -> Result<Self, String> {
        let mut names = Self::default();
        for (id, entry) in entries {
            if id >= count {
                return Err(no_concept(&id.to_string(), count));
            }
            entry.check().map_err(|what| format!("[concept.{id}] {what}"))?;
            if !entry.is_empty() {
                names.entries.insert(id, entry);
            }
        }
        for (&id, entry) in &names.entries {
            if let Some(name) = &entry.name {
                names.named.entry(name.clone()).or_default().push(id);
            }
        }
        Ok(names)
    }

    /// Parses the text of a `concepts.toml` for a codebook of `count` concepts.
    ///
    /// # Errors
    /// [`BundleError::Parse`] or [`BundleError::Invalid`] with the entry.
    pub fn parse(text: &str, path: &Path, count: usize) -> Result<Self, BundleError> {
        let file: NamesFile = toml::from_str(text).map_err(|e| BundleError::Parse {
            path: path.to_owned(),
            reason: e.to_string().trim_end().to_owned(),
        })?;
        let invalid = |what| BundleError::Invalid { path: path.to_owned(), what };
        let mut entries = Vec::with_capacity(file.concept.len());
        for (id, entry) in file.concept {
            // `03` would be a second way to write 3.
            let number = id.parse().ok().filter(|n: &usize| n.to_string() == id);
            let number = number.ok_or_else(|| invalid(no_concept(&id, count)))?;
            entries.push((number, entry));
        }
        Self::new(entries, count).map_err(invalid)
    }

    /// The entry of a concept.
    pub fn get(&self, id: usize) -> Option<&ConceptEntry> {
        self.entries.get(&id)
    }

    /// The name of a concept.
    pub fn name(&self, id: usize) -> Option<&str> {
        self.get(id)?.name.as_deref()
    }

    /// The mark of a concept.
    pub fn mark(&self, id: usize) -> Option<Mark> {
        self.get(id)?.mark
    }

    /// The concepts of a name, rising; none where nobody gave it.
    pub fn concepts_named(&self, name: &str) -> &[usize] {
        self.named.get(name).map_or(&[], Vec::as_slice)
    }

    /// The concept that stands for all of the same name, the lowest; `id` itself where it has no
    /// name.
    pub fn group(&self, id: usize) -> usize {
        let name = self.name(id).unwrap_or_default();
        self.concepts_named(name).first().copied().unwrap_or(id)
    }

    /// The colour that people gave to a concept, or else to another one of the same name, as
    /// red, green, blue.
    pub fn rgb(&self, id: usize) -> Option<[u8; 3]> {
        let own = self.get(id)?;
        own.rgb().or_else(|| {
            let others = self.concepts_named(own.name.as_ref()?);
            others.iter().find_map(|other| self.get(*other)?.rgb())
        })
    }

    /// All entries by rising id.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &ConceptEntry)> {
        self.entries.iter().map(|(&id, entry)| (id, entry))
    }

    /// All names in alphabetical order, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.named.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

fn no_concept(id: &str, count: usize) -> String {
    format!("[concept.{id}] is no concept of this bundle, ids are 0 to {}", count.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConceptNames, BundleError> {
        ConceptNames::parse(text, Path::new("concepts.toml"), 4)
    }

    #[test]
    fn names_colours_and_marks_are_read() {
        let text =
            "[concept.3]\nname = \"sky\"\ncolor = \"#0080ff\"\n[concept.1]\nmark = \"alert\"";
        let names = parse(text).unwrap();
        assert_eq!((names.name(3), names.rgb(3)), (Some("sky"), Some([0, 128, 255])));
        assert_eq!((names.name(1), names.mark(1)), (None, Some(Mark::Alert)));
        assert!(names.get(0).is_none() && names.mark(3).is_none());
        assert_eq!(names.iter().map(|(id, _)| id).collect::<Vec<_>>(), [1, 3]);
        // An entry that says nothing is none.
        assert_eq!(parse("[concept.2]").unwrap(), ConceptNames::default());
    }

    #[test]
    fn mistakes_are_named() {
        let long = format!("[concept.1]\nname = \"{}\"", "ä".repeat(81));
        for (text, part) in [
            ("[concept.4]\nname = \"x\"", "ids are 0 to 3"),
            ("[concept.03]\nname = \"x\"", "ids are 0 to 3"),
            ("[concept.1]\nname = \"x\"\ncolor = \"blue\"", "color must look like"),
            ("[concept.1]\ncolor = \"#+1+1+1\"", "color must look like"),
            ("[concept.1]\nname = \" x\"", "[concept.1] name must be a single line"),
            ("[concept.1]\nname = \"\"", "name must be a single line"),
            ("[concept.1]\nname = \"a\\nb\"", "name must be a single line"),
            (&long, "name has 81 characters, 80 are possible"),
            ("[concept.1]\nnome = \"x\"", "unknown field"),
            ("[concept.1]\nmark = \"x\"", "unknown variant"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn concepts_of_one_name_belong_together() {
        let text = "[concept.3]\nname = \"road\"\ncolor = \"#010203\"\n\
                    [concept.1]\nname = \"road\"\n[concept.2]\nname = \"sky\"";
        let names = parse(text).unwrap();
        assert_eq!(names.concepts_named("road"), [1, 3]);
        assert_eq!((names.group(3), names.group(2), names.group(0)), (1, 2, 0));
        assert_eq!((names.rgb(1), names.rgb(2)), (Some([1, 2, 3]), None));
        assert!(names.concepts_named("Road").is_empty());
        assert_eq!(names.names(), ["road", "sky"]);
    }
}
