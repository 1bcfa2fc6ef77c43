//! Exists so that the crate has an `OUT_DIR`: there it keeps the libraries that it compiles when tests run.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
