//! Lets the trainer and its tests find libtorch without `LD_LIBRARY_PATH`.

fn main() {
    // torch-sys tells its direct dependents which library folder it linked against, be it
    // third_party/libtorch or that of an installed PyTorch.
    if let Ok(directory) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // RPATH rather than RUNPATH: it also holds for what the libraries themselves load.
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{directory}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
