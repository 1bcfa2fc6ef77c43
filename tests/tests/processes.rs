//! One training run over two processes, started as a launcher starts them.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use conceptseg_tests::{Answer, conceptseg, listing, run, scene, trainer_command};

/// Runs rank 0 and rank 1 with a recipe each.
fn both(dir: &Path, recipes: [&str; 2], out: &str) -> [Answer; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = trainer_command();
        command.args(["train", "--device", "cpu", "--images", "scene/frames", "--out", out]);
        command.args(["--config", recipes[rank]]).current_dir(dir);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        thread::spawn(move || run(&mut command))
    };
    [start(0), start(1)].map(|process| process.join().unwrap())
}

#[test]
fn two_processes_train_one_bundle_and_refuse_different_recipes() {
    let dir = tempfile::tempdir().unwrap();
    scene(dir.path(), 96, 64, 8);
    let recipe = "start_segments = 60\nexport_size = \"dynamic\"\n\
                  [network]\npreset = \"edge-mobilenet-v2\"\n\
                  [data]\nbatch = 2\ncrop = 64\nshort_side = 64\n\
                  [dictionary]\nconcepts = 16\n[optimizer]\niterations = 2\n";
    fs::write(dir.path().join("a.toml"), recipe).unwrap();
    fs::write(dir.path().join("b.toml"), format!("seed = 1\n{recipe}")).unwrap();

    let [first, second] = both(dir.path(), ["a.toml"; 2], "bundle");
    assert_eq!((first.code, second.code), (0, 0), "{first:?} {second:?}");
    assert_eq!((first.stdout.as_str(), second.stdout.as_str()), ("bundle\n", ""));
    let bundle = dir.path().join("bundle");
    assert_eq!(conceptseg(["bundle", "verify", bundle.to_str().unwrap()]).code, 0);
    let log = listing(&dir.path().join("bundle-log"));
    assert_eq!(log.iter().filter(|name| name.contains("tfevents")).count(), 1, "{log:?}");

    let answers = both(dir.path(), ["a.toml", "b.toml"], "other");
    for answer in &answers {
        answer.assert_one_sentence(&["recipe"]);
    }
}
