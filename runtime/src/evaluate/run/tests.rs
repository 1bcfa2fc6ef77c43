use std::fs;

use serde_json::json;

use super::*;

fn inputs(k: u32) -> Inputs {
    Inputs::new("test", json!({ "k": k }))
}

/// `count` units, each with a file of its own.
fn units(root: &Path, count: usize) -> Vec<Unit> {
    let unit = |i: usize| {
        let file = root.join(format!("{i}.txt"));
        fs::write(&file, i.to_string()).unwrap();
        Unit { name: format!("u{i}"), files: vec![file] }
    };
    (0..count).map(unit).collect()
}

/// Works on at most `most` pending units and says which ones.
fn work(run: &Run, units: &[Unit], most: usize) -> (Vec<usize>, Result<Vec<f64>, usize>) {
    let stage = run.stage::<f64>("values", units).unwrap();
    let done: Vec<usize> = stage.pending().iter().copied().take(most).collect();
    for &unit in &done {
        // A figure that only an exact decimal round trip keeps.
        stage.put(unit, 0.1 + unit as f64 / 3.0).unwrap();
    }
    let values = stage.finish().map_err(|unfinished| match unfinished {
        Unfinished::Missing(count) => count,
        Unfinished::Run(error) => panic!("{error}"),
    });
    (done, values)
}

fn expected(count: usize) -> Vec<f64> {
    (0..count).map(|i| 0.1 + i as f64 / 3.0).collect()
}

#[test]
fn a_run_goes_on_where_the_last_one_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 5), dir.path().join("out"));
    let open = || Run::open(&out, inputs(1), Shard::default(), false).unwrap();
    assert_eq!(work(&open(), &units, 2), (vec![0, 1], Err(3)));
    assert_eq!(work(&open(), &units, 9), (vec![2, 3, 4], Ok(expected(5))));
    assert_eq!(work(&open(), &units, 9), (vec![], Ok(expected(5))));
    let fresh = Run::open(&out, inputs(1), Shard::default(), true).unwrap();
    assert_eq!(work(&fresh, &units, 0), (vec![], Err(5)));
}

#[test]
fn a_run_without_a_folder_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(dir.path(), 2);
    let run = Run::in_memory(inputs(1));
    assert_eq!(work(&run, &units, 9).1, Ok(expected(2)));
    assert_eq!(work(&run, &units, 0).1, Err(2));
}

#[test]
fn a_line_cut_short_is_done_again_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 3), dir.path().join("out"));
    let open = || Run::open(&out, inputs(1), Shard::default(), false).unwrap();
    drop(work(&open(), &units, 2));
    let journal = out.join("journal/values-1-of-1.jsonl");
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..bytes.len() - 4]).unwrap();
    assert_eq!(work(&open(), &units, 9), (vec![1, 2], Ok(expected(3))));
    assert_eq!(work(&open(), &units, 9).0, [] as [usize; 0]);
    // A process that died in its first line has left nothing.
    fs::write(&journal, &bytes[..20]).unwrap();
    assert_eq!(work(&open(), &units, 9).0, [0, 1, 2]);
}

#[test]
fn shards_give_the_values_of_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 7), dir.path().join("out"));
    let shard = |text: &str| Run::open(&out, inputs(1), text.parse().unwrap(), false).unwrap();
    assert_eq!(work(&shard("2/3"), &units, 9), (vec![1, 4], Err(5)));
    assert_eq!(work(&shard("1/3"), &units, 9), (vec![0, 3, 6], Err(2)));
    assert_eq!(work(&shard("3/3"), &units, 9), (vec![2, 5], Ok(expected(7))));
    // Another number of processes finds it all done.
    assert_eq!(work(&shard("1/2"), &units, 9), (vec![], Ok(expected(7))));
}

#[test]
fn the_last_of_several_processes_to_end_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 4), dir.path().join("out"));
    let open = |text: &str| Run::open(&out, inputs(1), text.parse().unwrap(), false).unwrap();
    // Both begin before either has written anything.
    let stages = ["1/2", "2/2"].map(|shard| open(shard).stage::<f64>("values", &units).unwrap());
    for stage in &stages {
        for &unit in stage.pending() {
            stage.put(unit, 0.1 + unit as f64 / 3.0).unwrap();
        }
    }
    for stage in stages {
        assert_eq!(stage.finish().unwrap(), expected(4));
    }
}

#[test]
fn folders_of_shards_are_merged_once() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(dir.path(), 4);
    let part = |text: &str, name: &str| {
        let out = dir.path().join(name);
        drop(work(&Run::open(&out, inputs(1), text.parse().unwrap(), false).unwrap(), &units, 9));
        out
    };
    let parts = [part("1/2", "a"), part("2/2", "b")];
    let whole = Run::open(&dir.path().join("all"), inputs(1), Shard::default(), false).unwrap();
    for _ in 0..2 {
        whole.import(&parts).unwrap();
        assert_eq!(work(&whole, &units, 9), (vec![], Ok(expected(4))));
        assert_eq!(fs::read_dir(dir.path().join("all/journal")).unwrap().count(), 3);
    }
    let other = Run::open(&dir.path().join("other"), inputs(2), Shard::default(), false).unwrap();
    assert!(matches!(other.import(&parts), Err(RunError::OtherInputs { .. })));
    let message = whole.import(&[dir.path().join("none")]).unwrap_err().to_string();
    assert!(message.contains("holds no journal"), "{message}");
}

#[test]
fn results_of_other_inputs_are_never_used() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 2), dir.path().join("out"));
    drop(work(&Run::open(&out, inputs(1), Shard::default(), false).unwrap(), &units, 9));
    let message = Run::open(&out, inputs(2), Shard::default(), false).unwrap_err().to_string();
    assert!(message.contains("settings.k is 1 there and 2 here"), "{message}");
    Run::open(&out, inputs(2), Shard::default(), true).unwrap();
}

#[test]
fn a_file_that_has_changed_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 2), dir.path().join("out"));
    let run = Run::open(&out, inputs(1), Shard::default(), false).unwrap();
    drop(work(&run, &units, 1));
    fs::write(&units[0].files[0], "other").unwrap();
    let message = run.stage::<f64>("values", &units).unwrap_err().to_string();
    assert!(message.contains("0.txt has changed"), "{message}");
}

#[test]
fn two_processes_cannot_write_one_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (units(dir.path(), 2), dir.path().join("out"));
    let run = Run::open(&out, inputs(1), Shard::default(), false).unwrap();
    let first = run.stage::<f64>("values", &units).unwrap();
    assert!(matches!(run.stage::<f64>("values", &units), Err(RunError::Busy { .. })));
    // Another stage has a journal of its own.
    run.stage::<f64>("others", &units).unwrap();
    drop(first);
    run.stage::<f64>("values", &units).unwrap();
}

#[test]
fn damage_and_doubled_names_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut units, out) = (units(dir.path(), 2), dir.path().join("out"));
    let run = Run::open(&out, inputs(1), Shard::default(), false).unwrap();
    drop(work(&run, &units, 9));
    let journal = out.join("journal/values-1-of-1.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, text.replace("\"value\":0.1", "\"value\":\"x\"")).unwrap();
    let message = run.stage::<f64>("values", &units).unwrap_err().to_string();
    assert!(message.contains("line 2 of the journal"), "{message}");
    units[1].name = units[0].name.clone();
    let message = run.stage::<f64>("values", &units).unwrap_err().to_string();
    assert!(message.contains("u0 stands for two entries"), "{message}");
}
