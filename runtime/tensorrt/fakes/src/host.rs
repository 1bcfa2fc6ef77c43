//! CUDA kernels compiled for the CPU.

use std::ffi::{CStr, CString, c_char};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compile;

const HOST: &str = include_str!("../host/host.h");

/// Compiles CUDA C++ for the CPU, and answers the library, which [`Fakes::add_kernels`](crate::Fakes::add_kernels) puts
/// where the fake driver finds it. Nothing, with a printed reason, where there is no C++ compiler.
///
/// Every `extern "C" __global__ void NAME(` of the source becomes a kernel. `host/host.h` says what a kernel may use and
/// what is noticed.
///
/// # Panics
/// If the source does not compile.
pub fn host_kernels(source: &str) -> Option<PathBuf> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        println!("skipped: no C++ compiler ({}) to run kernels on the CPU", compiler.display());
        return None;
    }
    let text =
        format!("{HOST}\n#line 1 \"kernels.cu\"\n{source}\n{}", table(&kernel_names(source)));
    let mut flags = vec!["-std=c++17", "-O2", "-g1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"];
    // As NVRTC with `--fmad=false`: products are rounded before they are added, except in `fmaf`.
    flags.push("-ffp-contract=off");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        flags.push("-mfma");
    }
    // Trapping, so that no library of the sanitizer is needed.
    flags.push(
        "-fsanitize=bounds,alignment,shift,integer-divide-by-zero,float-cast-overflow,signed-integer-overflow",
    );
    flags.push("-fsanitize-undefined-trap-on-error");
    flags.extend(["-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable"]);
    let options = flags.join(" ");
    let inputs = [text.as_bytes(), options.as_bytes(), compiler.as_encoded_bytes()];
    let library = compile::once("kernels", &inputs, |output| {
        let file = output.with_extension("cpp");
        std::fs::write(&file, &text).unwrap();
        let mut command = Command::new(&compiler);
        command.args(&flags).arg("-o").arg(output).arg(file);
        command
    });
    Some(library.unwrap_or_else(|error| panic!("the kernels do not compile for the CPU:\n{error}")))
}

/// What a driver takes as the module with the kernels of a library: PTX of their parameters only.
pub(crate) fn image(library: &Path) -> CString {
    // SAFETY: a library made here; its initializers touch nothing but its own tables.
    let library = unsafe { libloading::Library::new(library) }.unwrap();
    // SAFETY: `host_image` is made below, and answers a text that lives as long as the library.
    unsafe {
        let image = library.get::<extern "C" fn() -> *const c_char>("host_image").unwrap();
        CStr::from_ptr(image()).to_owned()
    }
}

fn kernel_names(source: &str) -> Vec<&str> {
    let begin = "extern \"C\" __global__ void";
    let starts = source.match_indices(begin).map(|(at, _)| at + begin.len());
    let names = starts.filter_map(|at| {
        let mut rest = source[at..].trim_start();
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            rest = bounds.split_once(')')?.1.trim_start();
        }
        Some(rest.split_once('(')?.0.trim())
    });
    names.collect()
}

/// The end of the C++ source: a table of the kernels, and the functions that read it.
fn table(names: &[&str]) -> String {
    let mut text = "static const host::Kernel host_table[] = {".to_owned();
    for name in names {
        let _ = write!(text, "host::Bound<&{name}>::kernel(\"{name}\"), ");
    }
    text.push_str(
        "{nullptr, nullptr, nullptr, nullptr, nullptr}};
extern \"C\" const host::Kernel* host_kernel(const char* name) {
    for (const host::Kernel* k = host_table; k->name; k++) if (!strcmp(k->name, name)) return k;
    return nullptr;
}
extern \"C\" const char* host_image() {
    static const std::string text = [] {
        std::string text = \".version 7.5\\n.target sm_75\\n.address_size 64\\n\";
        for (const host::Kernel* k = host_table; k->name; k++) {
            text += std::string(\".visible .entry \") + k->name + \"(\";
            for (size_t i = 0; k->types[i]; i++)
                text += std::string(i ? \",\" : \"\") + \"\\n\\t.param \" + k->types[i] + \" \" + k->name + \"_param_\" +
                        std::to_string(i);
            text += \"\\n)\\n{\\n}\\n\";
        }
        return text;
    }();
    return text.c_str();
}
",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_their_declaration() {
        let source = "extern \"C\" __global__ void one(int n) {}\n__device__ void two(int) {}\n\
                      extern \"C\" __global__ void __launch_bounds__(256) three(\n int n) {}";
        assert_eq!(kernel_names(source), ["one", "three"]);
    }
}
