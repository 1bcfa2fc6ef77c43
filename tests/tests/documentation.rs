//! What the documentation tells people to run exists.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use conceptseg_tests::{conceptseg, gstreamer, root, run};

/// README.md and everything under docs/.
fn documents() -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    let mut found = vec![root().join("README.md")];
    collect(&root().join("docs"), &mut found);
    found
}

/// Commands in fenced blocks marked `sh`, with lines joined that end in a backslash.
fn commands(document: &Path) -> Vec<String> {
    let text = fs::read_to_string(document)
        .unwrap_or_else(|e| panic!("{}: {e}", document.display()))
        .replace("\\\n", " ");
    let (mut commands, mut in_shell) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            in_shell = matches!(language, "sh" | "bash" | "console");
        } else if in_shell && !line.is_empty() && !line.starts_with('#') {
            commands.push(line.trim_start_matches("$ ").to_owned());
        }
    }
    commands
}

/// The words of a command up to its first option, path or value: the chain of subcommands.
fn subcommands(words: &[&str]) -> Vec<String> {
    let is_name =
        |w: &&&str| w.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !w.starts_with('-');
    words.iter().take_while(is_name).map(|w| (*w).to_owned()).collect()
}

#[test]
fn documented_scripts_commands_options_and_elements_exist() {
    let mut checked = BTreeSet::new();
    for document in documents() {
        for command in commands(&document) {
            let place = format!("{}: {command}", document.display());
            let words: Vec<&str> = command.split_whitespace().collect();
            // Programs may follow variables or stand behind `cargo run … --`.
            for (i, word) in words.iter().enumerate() {
                if let Some(script) = word.strip_prefix("scripts/") {
                    let path = root().join("scripts").join(script);
                    let mode = fs::metadata(&path).unwrap_or_else(|e| panic!("{place}: {e}"));
                    assert!(mode.permissions().mode() & 0o111 != 0, "{place}");
                    checked.insert(format!("scripts/{script}"));
                }
                // As a program, not as an element of a pipeline or a package's name.
                let is_program = *word == "conceptseg" && i == 0 || word.ends_with("/conceptseg");
                if is_program && !checked.contains(&command) {
                    let mut arguments = subcommands(&words[i + 1..]);
                    if arguments.is_empty() {
                        continue;
                    }
                    arguments.push("--help".to_owned());
                    let answer = conceptseg(&arguments);
                    assert_eq!(answer.code, 0, "{place}: {answer:?}");
                    for option in words[i + 1..].iter().filter(|w| w.starts_with("--")) {
                        let option = option.split('=').next().unwrap_or(option);
                        assert!(answer.stdout.contains(option), "{place}: no {option}");
                    }
                    checked.insert(command.clone());
                }
            }
            if command.contains("gst-launch-1.0") {
                for element in ["conceptseg", "conceptoverlay"] {
                    if words.contains(&element) {
                        let answer = run(gstreamer("gst-inspect-1.0").arg(element));
                        assert_eq!(answer.code, 0, "{place}");
                        checked.insert(element.to_owned());
                    }
                }
            }
        }
    }
    for main in ["scripts/demo", "scripts/test"] {
        assert!(checked.contains(main), "README.md does not tell of {main}: {checked:?}");
    }
}
