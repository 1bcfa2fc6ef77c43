//! `scripts/install`: what it installs is found by a shell that knows nothing of the build.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use conceptseg_tests::{Answer, built, listing, root, run};

/// A user with an empty home.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A program in a shell of this user, with nothing set for GStreamer.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        for name in
            ["GST_PLUGIN_PATH", "GST_REGISTRY", "XDG_DATA_HOME", "XDG_CACHE_HOME", "DESTDIR"]
        {
            command.env_remove(name);
        }
        command.env("HOME", self.home.path());
        command
    }

    fn install(&self, arguments: &[&str]) -> Answer {
        run(self.command(root().join("scripts/install")).args(arguments))
    }

    /// Installs what the tests have built.
    fn install_built(&self, arguments: &[&str]) -> Answer {
        let built = built().conceptseg.parent().unwrap().to_str().unwrap();
        self.install(&[&["--from", built], arguments].concat())
    }
}

#[test]
fn a_user_installs_twice_looks_and_removes() {
    let user = User::new();
    let answer = user.install_built(&[]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains("GStreamer finds the plugin"), "{answer:?}");
    let plugin = user.path(".local/share/gstreamer-1.0/plugins/libgstconceptseg.so");
    let command = user.path(".local/bin/conceptseg");
    let model = user.path(".local/share/conceptseg/models/starter");
    assert!(answer.stderr.contains(".local/bin is not in PATH yet"), "{answer:?}");

    // The same files stay in their place, so that nothing that runs is disturbed.
    let inode = fs::metadata(&plugin).unwrap().ino();
    let again = user.install_built(&[]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stdout.contains("libgstconceptseg.so (as it was)"), "{again:?}");
    assert_eq!(fs::metadata(&plugin).unwrap().ino(), inode);
    // Others are replaced whole.
    fs::write(&plugin, "an older one").unwrap();
    assert_eq!(user.install_built(&[]).code, 0);
    assert!(fs::metadata(&plugin).unwrap().len() > 100_000);
    assert_eq!(listing(plugin.parent().unwrap()), ["libgstconceptseg.so"]);

    let report = run(user.command(&command).args(["doctor", "--check", "--json"])).json();
    assert_eq!(report["gstreamer"]["plugin"]["file"], plugin.to_str().unwrap(), "{report}");
    assert_eq!(report["models"][0]["folder"], model.canonicalize().unwrap().to_str().unwrap());
    let pipeline = format!(
        "videotestsrc num-buffers=2 ! video/x-raw,width=64,height=64 ! conceptseg bundle={} \
         short-side=64 ! fakesink",
        model.display()
    );
    let played = run(user.command("gst-launch-1.0").arg("-q").args(pipeline.split_whitespace()));
    assert_eq!(played.code, 0, "{played:?}");

    // Names that people gave are not from here.
    fs::write(model.join("concepts.toml"), "[concept.1]\nname = \"road\"\n").unwrap();
    let removed = user.install(&["--uninstall"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(listing(&model), ["concepts.toml"]);
    assert!(removed.stderr.contains("they were kept"), "{removed:?}");
    assert!(!plugin.exists() && !command.exists());
    assert_eq!(user.install(&["--uninstall"]).code, 0);
}

#[test]
fn a_prefix_with_blanks_and_a_staging_folder_hold_everything() {
    let user = User::new();
    let prefix = user.path("a prefix");
    let answer = user.install_built(&["--prefix", prefix.to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains("export GST_PLUGIN_PATH=\""), "{answer:?}");
    assert_eq!(listing(&prefix.join("lib/gstreamer-1.0")), ["libgstconceptseg.so"]);
    assert_eq!(listing(&prefix.join("bin")), ["conceptseg"]);
    assert!(prefix.join("share/conceptseg/models/starter/bundle.toml").is_file());

    let folder = built().conceptseg.parent().unwrap();
    let mut staged = user.command(root().join("scripts/install"));
    staged.env("DESTDIR", user.path("stage")).args(["--system", "--from"]).arg(folder);
    let answer = run(&mut staged);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(user.path("stage/usr/local/bin/conceptseg").is_file());
    assert!(user.path("stage/usr/local/share/conceptseg/models/starter/bundle.toml").is_file());
}

#[test]
fn mistakes_are_told_in_one_sentence() {
    let user = User::new();
    for (arguments, code, words) in [
        (&["--sytem"][..], 2, "there is no option --sytem"),
        (&["--prefix"], 2, "--prefix needs a folder"),
        (&["--system", "--prefix", "/p"], 2, "do not go together"),
        (&["--prefix", "/p", "--system"], 2, "do not go together"),
        (&["--uninstall", "--from", "/p"], 2, "do not go together"),
        (&["--from", "/nowhere"], 1, "there is no conceptseg in /nowhere"),
    ] {
        let answer = user.install(arguments);
        assert_eq!(answer.code, code, "{arguments:?}: {answer:?}");
        assert!(
            answer.stderr.starts_with("install: ") && answer.stderr.contains(words),
            "{answer:?}"
        );
        assert_eq!((answer.stdout.as_str(), answer.stderr.lines().count()), ("", 1), "{answer:?}");
    }
    let help = user.install(&["--help"]);
    assert_eq!(help.code, 0);
    for option in ["--system", "--prefix", "--from", "--uninstall"] {
        assert!(help.stdout.contains(option), "{help:?}");
    }
}
