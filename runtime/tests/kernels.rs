//! The kernels under the real compiler, which needs no GPU: NVRTC from PyPI, where that can be reached.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use conceptseg::cuda::CudaPathError;
use conceptseg::cuda::kernels::{Kernels, OPTIONS, PTX, SOURCE};
use conceptseg_tensorrt::Seal;
use conceptseg_tensorrt::cuda::{Context, Nvrtc, NvrtcError};
use conceptseg_tensorrt_fakes::{gpu, nvrtc};

/// What makes the shipped PTX, and for which GPUs: all from this compute capability on.
const SHIPPED: (&str, &str) = ("12.6.85", "compute_75");

fn compile(nvrtc: &Nvrtc, architecture: &str, more: &[&str]) -> (String, String) {
    let architecture = format!("--gpu-architecture={architecture}");
    let options = [&[architecture.as_str()], &OPTIONS[..], more].concat();
    let compiled = nvrtc.compile(SOURCE, "kernels.cu", &options).unwrap_or_else(|e| panic!("{e}"));
    (compiled.ptx.into_string().unwrap(), compiled.log)
}

/// With `CONCEPTSEG_WRITE_PTX=1` the file is written instead.
#[test]
fn the_shipped_ptx_is_made_of_this_source() {
    let (version, architecture) = SHIPPED;
    let Some(library) = nvrtc(version) else { return };
    let nvrtc = Nvrtc::open_file(library).unwrap();
    let (ptx, log) = compile(&nvrtc, architecture, &[]);
    assert_eq!(log, "", "a warning is an error");
    let digest = Seal::of(SOURCE.as_bytes()).digits();
    let expected = format!(
        "// source sha256:{digest}\n// NVRTC {version} --gpu-architecture={architecture} {}\n{ptx}",
        OPTIONS.join(" ")
    );
    if std::env::var_os("CONCEPTSEG_WRITE_PTX").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/kernels.ptx");
        fs::write(&path, expected).unwrap();
        println!("written: {}", path.display());
        return;
    }
    assert!(
        PTX == expected,
        "src/cuda/kernels.ptx is not made of this source: \
         CONCEPTSEG_WRITE_PTX=1 cargo test -p conceptseg --test kernels"
    );
}

/// Down to machine code: so registers and shared memory are known to be enough. `--nocapture` shows them.
#[test]
fn the_source_compiles_for_every_gpu_that_is_served() {
    let all = ["75", "80", "86", "87", "89", "90", "100", "103", "110", "120"];
    for (version, capabilities) in [(SHIPPED.0, &all[..6]), ("13.0.88", &all[..])] {
        let Some(library) = nvrtc(version) else { return };
        let nvrtc = Nvrtc::open_file(library).unwrap();
        for capability in capabilities {
            let (ptx, log) = compile(&nvrtc, &format!("sm_{capability}"), &["--ptxas-options=-v"]);
            assert!(ptx.contains(".entry"), "{ptx}");
            println!("NVRTC {version}, sm_{capability}:\n{log}");
        }
    }
}

#[test]
fn at_run_time_the_source_is_compiled_for_the_gpu_at_hand() {
    let (Some(library), Some(gpu)) = (nvrtc("12.6.85"), gpu(SOURCE)) else { return };
    let nvrtc = Nvrtc::open_file(library).unwrap();
    let kernels = Kernels::compile(&gpu.context, &nvrtc).unwrap();
    assert_eq!(kernels.function("copy_floats").unwrap().name(), "copy_floats");
    // A GPU that came after this NVRTC.
    gpu.cuda.set("compute_major", 12);
    gpu.cuda.set("compute_minor", 0);
    let newer = Context::new(&gpu.driver, 0).unwrap();
    let error = Kernels::compile(&newer, &nvrtc).unwrap_err();
    assert!(matches!(error, CudaPathError::Nvrtc(NvrtcError::Call { .. })), "{error}");
    assert!(error.to_string().contains("gpu-architecture"), "{error}");
}
