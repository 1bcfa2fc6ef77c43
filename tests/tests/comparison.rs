//! The tests that `docs/comparison.md` names exist.

use std::fs;

use conceptseg_tests::root;

/// The names `file::test` in a cell.
fn named(cell: &str) -> Vec<(&str, &str)> {
    cell.split('`').filter_map(|part| part.split_once("::")).collect()
}

#[test]
fn every_row_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join("docs/comparison.md")).unwrap();
    // Without the head and the line below it.
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let cells: Vec<_> = row.split('|').collect();
        assert_eq!(cells.len(), 9, "{row}");
        let tests = named(cells[3]);
        assert!(!tests.is_empty(), "no test covers this: {row}");
        for (file, test) in tests {
            let places = ["plugins/tests", "tests/tests"];
            let source = places.map(|folder| root().join(folder).join(format!("{file}.rs")));
            let source = source.iter().find_map(|path| fs::read_to_string(path).ok());
            let source = source.unwrap_or_else(|| panic!("no {file}.rs in {places:?}: {row}"));
            let declared = format!("#[test]\nfn {test}()");
            assert!(source.contains(&declared), "{file}.rs has no test {test}: {row}");
        }
    }
}

#[test]
fn every_source_that_is_referred_to_is_listed_and_the_other_way_round() {
    let text = fs::read_to_string(root().join("docs/comparison.md")).unwrap();
    let (table, sources) = text.split_once("## Sources").unwrap();
    let listed: Vec<_> =
        sources.lines().filter_map(|line| line.strip_prefix("- ")?.split_once(' ')).collect();
    assert!(listed.iter().all(|(_, address)| address.starts_with("<https://")));
    for (mark, _) in &listed {
        assert!(table.contains(mark), "nothing refers to {mark}");
    }
    for part in table.split('[').skip(1) {
        let mark = format!("[{}]", part.split(']').next().unwrap());
        assert!(listed.iter().any(|(known, _)| *known == mark), "{mark} is not listed");
    }
}
