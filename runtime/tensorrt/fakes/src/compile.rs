//! Compiles each library once, also where several tests and processes want it at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use conceptseg_tensorrt::Seal;

/// The library made of `inputs` by `command`, which is given the path to write. `inputs` is all that the result
/// depends on.
///
/// # Errors
/// What the compiler says, or the loader about the compiler.
pub(crate) fn once(
    name: &str,
    inputs: &[&[u8]],
    command: impl FnOnce(&Path) -> Command,
) -> Result<PathBuf, String> {
    let mut all = Vec::new();
    for input in inputs {
        all.extend((input.len() as u64).to_le_bytes());
        all.extend(*input);
    }
    let digits = Seal::of(&all).digits();
    let folder = Path::new(env!("OUT_DIR"));
    let finished = folder.join(format!("{name}-{}.so", &digits[..24]));
    if finished.exists() {
        return Ok(finished);
    }
    // Each under a name of its own, renamed when it is whole.
    fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    let unfinished = tempfile::tempdir_in(folder).map_err(|error| error.to_string())?;
    let output = unfinished.path().join("library.so");
    let mut command = command(&output);
    command.current_dir(unfinished.path());
    let result = command.output().map_err(|error| error.to_string())?;
    if !result.status.success() {
        return Err(String::from_utf8_lossy(&result.stderr).into_owned());
    }
    fs::rename(output, &finished).map_err(|error| error.to_string())?;
    Ok(finished)
}

/// Compiles a fake, with plain `rustc` and without any crate.
pub(crate) fn fake(root: &str, version: Option<&str>, lean: bool) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("libraries");
    let root = sources.join(root);
    let table =
        version.map(|version| sources.join(format!("abi_{}.rs", version.replace('.', "_"))));
    let mut files: Vec<PathBuf> = table.iter().cloned().collect();
    if root.file_name().is_some_and(|name| name == "lib.rs") {
        let folder = root.parent().unwrap();
        files.extend(fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
        files.sort();
    } else {
        files.extend([root.clone(), sources.join("network.rs")]);
    }
    let texts: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut inputs: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
    inputs.push(if lean { b"lean" } else { b"full" });
    let name = format!("fake-{}", version.unwrap_or("cuda"));
    let library = once(&name, &inputs, |output| {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "fake"]);
        rustc.args(["-Awarnings", "-Copt-level=1", "-o"]).arg(output).arg(&root);
        if let (Some(table), Some(version)) = (table, version) {
            let major = version.split('.').next().unwrap_or_default();
            rustc.env("FAKE_ABI", table).args(["--cfg", &format!("fake_v{major}")]);
        }
        if lean {
            rustc.args(["--cfg", "fake_lean"]);
        }
        rustc
    });
    library.unwrap_or_else(|error| panic!("{} was not compiled: {error}", root.display()))
}
