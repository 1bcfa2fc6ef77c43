//! What people said about concepts as CSV and JSON, for spreadsheets and other programs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BundleError, Change, ConceptEntry, ConceptNames, Field};

/// A row of the CSV file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    concept: usize,
    #[serde(default)]
    name: String,
    #[serde(default)]
    color: String,
    #[serde(default)]
    mark: String,
}

/// A row for each of `count` concepts: `concept,name,color,mark`, empty where nothing is said.
pub fn names_csv(names: &ConceptNames, count: usize) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for concept in 0..count {
        let value = |field: Field| {
            names.get(concept).and_then(|entry| field.get(entry)).unwrap_or_default().to_owned()
        };
        let row = Row {
            concept,
            name: value(Field::Name),
            color: value(Field::Color),
            mark: value(Field::Mark),
        };
        // Writing rows of one shape to memory cannot fail.
        let _ = writer.serialize(row);
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

/// An object with an entry for each concept of which something is said.
pub fn names_json(names: &ConceptNames) -> serde_json::Value {
    let entries: BTreeMap<usize, &ConceptEntry> = names.iter().collect();
    serde_json::json!({ "concepts": entries })
}

/// The changes that lead from `now` to what a CSV or JSON file says of the concepts that it
/// names; others stay as they are. `path` is for messages, its ending tells the format.
///
/// # Errors
/// [`BundleError::Parse`] with the place of the mistake.
pub fn changes_to(text: &str, path: &Path, now: &ConceptNames) -> Result<Vec<Change>, BundleError> {
    let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let wanted = if is_json { from_json(text) } else { from_csv(text) };
    let wanted = wanted.map_err(|reason| BundleError::Parse { path: path.to_owned(), reason })?;
    let mut changes = Vec::new();
    for (concept, entry) in &wanted {
        for field in Field::ALL {
            let from = now.get(*concept).and_then(|entry| field.get(entry)).map(str::to_owned);
            let to = entry[field as usize].clone();
            if from != to {
                changes.push(Change { concept: *concept, field, from, to });
            }
        }
    }
    Ok(changes)
}

/// Values in the order of [`Field::ALL`].
type Wanted = BTreeMap<usize, [Option<String>; 3]>;

fn from_json(text: &str) -> Result<Wanted, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Names {
        concepts: BTreeMap<usize, ConceptEntry>,
    }
    let names: Names = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let values = |entry: &ConceptEntry| Field::ALL.map(|f| f.get(entry).map(str::to_owned));
    Ok(names.concepts.iter().map(|(&id, entry)| (id, values(entry))).collect())
}

fn from_csv(text: &str) -> Result<Wanted, String> {
    // Spreadsheets put a mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut wanted = Wanted::new();
    for row in reader.deserialize::<Row>() {
        let row = row.map_err(|e| format!("{e}; the columns are concept,name,color,mark"))?;
        let values = [row.name, row.color, row.mark].map(|v| Some(v).filter(|v| !v.is_empty()));
        if wanted.insert(row.concept, values).is_some() {
            return Err(format!("the concept {} has two rows", row.concept));
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ConceptNames {
        let text =
            "[concept.1]\nname = \"sky, blue\"\ncolor = \"#0102ff\"\n[concept.2]\nmark = \"alert\"";
        ConceptNames::parse(text, Path::new("concepts.toml"), 3).unwrap()
    }

    #[test]
    fn both_formats_read_back_as_nothing_to_change() {
        let csv = names_csv(&names(), 3);
        assert_eq!(csv, "concept,name,color,mark\n0,,,\n1,\"sky, blue\",#0102ff,\n2,,,alert\n");
        assert!(changes_to(&csv, Path::new("a.csv"), &names()).unwrap().is_empty());
        let json = names_json(&names()).to_string();
        assert!(changes_to(&json, Path::new("a.JSON"), &names()).unwrap().is_empty());
        // Into an empty bundle it is all new.
        let all = changes_to(&json, Path::new("a.json"), &ConceptNames::default()).unwrap();
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn only_the_concepts_of_the_file_change() {
        let csv = "\u{feff}concept, name\n2, tree\n";
        let changes = changes_to(csv, Path::new("a.csv"), &names()).unwrap();
        let told: Vec<_> = changes.iter().map(|c| (c.concept, c.field, c.to.as_deref())).collect();
        assert_eq!(told, [(2, Field::Name, Some("tree")), (2, Field::Mark, None)]);
    }

    #[test]
    fn mistakes_are_named() {
        for (file, text, part) in [
            ("a.csv", "concept,name\nx,y\n", "line: 2"),
            ("a.csv", "concept,nome\n1,y\n", "the columns are concept,name,color,mark"),
            ("a.csv", "concept,name\n1,y\n1,z\n", "the concept 1 has two rows"),
            ("a.json", "{\"concepts\": {\"1\": {\"nome\": 1}}}", "unknown field `nome`"),
            ("a.json", "[]", "line 1"),
        ] {
            let message = changes_to(text, Path::new(file), &names()).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(file), "{message}");
        }
    }
}
