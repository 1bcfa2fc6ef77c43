//! Names and colours that people give to concepts (`concepts.toml`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BundleError;

/// What people said about concepts; ids that nobody touched are absent.
///
/// ```toml
/// [concept.17]
/// name = "asphalt"
/// color = "#606068"
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptNames {
    /// Entries by concept id, written as decimal text.
    #[serde(default)]
    concept: BTreeMap<String, ConceptEntry>,
}

/// One named concept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptEntry {
    /// Name shown instead of the id.
    pub name: String,
    /// Colour as `#rrggbb`; the generated one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

impl ConceptEntry {
    /// The colour as red, green, blue, where one is given.
    pub fn rgb(&self) -> Option<[u8; 3]> {
        let digits = self.color.as_ref()?.strip_prefix('#')?;
        if digits.len() != 6 || !digits.is_ascii() {
            return None;
        }
        let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).ok();
        Some([byte(0)?, byte(2)?, byte(4)?])
    }
}

impl ConceptNames {
    /// The entry of a concept.
    pub fn get(&self, id: usize) -> Option<&ConceptEntry> {
        self.concept.get(&id.to_string())
    }

    /// Parses the text of a `concepts.toml` for a codebook of `count` concepts.
    ///
    /// # Errors
    /// [`BundleError::Parse`] or [`BundleError::Invalid`] with the entry.
    pub fn parse(text: &str, path: &Path, count: usize) -> Result<Self, BundleError> {
        let names: Self = toml::from_str(text).map_err(|e| BundleError::Parse {
            path: path.to_owned(),
            reason: e.to_string().trim_end().to_owned(),
        })?;
        for (id, entry) in &names.concept {
            let problem = if !id.parse().is_ok_and(|n: usize| n < count && n.to_string() == *id) {
                format!("[concept.{id}] is no concept of this bundle, ids are 0 to {}", count - 1)
            } else if entry.color.is_some() && entry.rgb().is_none() {
                format!("[concept.{id}] color must look like \"#a0b0c0\"")
            } else {
                continue;
            };
            return Err(BundleError::Invalid { path: path.to_owned(), what: problem });
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_colours_are_read_and_mistakes_are_named() {
        let parse = |text| ConceptNames::parse(text, Path::new("concepts.toml"), 4);
        let names = parse("[concept.3]\nname = \"sky\"\ncolor = \"#0080ff\"").unwrap();
        assert_eq!(names.get(3).unwrap().rgb(), Some([0, 128, 255]));
        assert!(names.get(0).is_none());
        for (text, part) in [
            ("[concept.4]\nname = \"x\"", "ids are 0 to 3"),
            ("[concept.03]\nname = \"x\"", "ids are 0 to 3"),
            ("[concept.1]\nname = \"x\"\ncolor = \"blue\"", "color must look like"),
            ("[concept.1]\nnome = \"x\"", "unknown field"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
