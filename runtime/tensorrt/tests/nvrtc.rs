//! The compiler of kernels: the real one, where PyPI can be reached.
#![allow(missing_docs)]

use conceptseg_tensorrt::cuda::{Nvrtc, NvrtcError};
use conceptseg_tensorrt_fakes::{Fakes, nvrtc};

const SOURCE: &str = "extern \"C\" __global__ void twice(float* x, int n) {\n\
                      int i = blockIdx.x * blockDim.x + threadIdx.x;\n\
                      if (i < n) x[i] *= 2;\n}\n";

#[test]
fn sources_become_ptx_or_the_messages_of_the_compiler() {
    for (package, version) in [("12.6.85", (12, 6)), ("13.0.88", (13, 0))] {
        let Some(path) = nvrtc(package) else { return };
        let nvrtc = Nvrtc::open_file(&path).unwrap();
        assert_eq!(nvrtc.version().unwrap(), version);
        assert_eq!(nvrtc.path(), path);
        let compiled =
            nvrtc.compile(SOURCE, "twice.cu", &["--gpu-architecture=compute_75"]).unwrap();
        let ptx = compiled.ptx.to_str().unwrap();
        assert!(ptx.contains(".target sm_75") && ptx.contains(".entry twice("), "{ptx}");
        assert_eq!(compiled.log, "");
        let error = nvrtc.compile(&SOURCE.replace("*= 2", "*= y"), "twice.cu", &[]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, NvrtcError::Compile { .. }), "{text}");
        assert!(
            text.starts_with("twice.cu does not compile:\ntwice.cu(3): error: identifier \"y\""),
            "{text}"
        );
        let error = nvrtc
            .compile(SOURCE, "twice.cu", &["--gpu-architecture=compute_72", "--no"])
            .unwrap_err();
        assert!(matches!(error, NvrtcError::Call { call: "nvrtcCompileProgram", .. }), "{error}");
        assert!(
            error.to_string().contains("invalid value for --gpu-architecture")
                || error.to_string().contains("unrecognized option"),
            "{error}"
        );
        let error = nvrtc.compile("a\0b", "twice.cu", &[]).unwrap_err();
        assert_eq!(error.to_string(), "the source has a zero byte in it; remove it");
    }
}

#[test]
fn no_library_and_another_library_are_told_apart() {
    let error = Nvrtc::open_file("/nowhere/libnvrtc.so.13").unwrap_err();
    assert!(matches!(error, NvrtcError::NotFound { .. }));
    assert!(
        error.to_string().starts_with("NVRTC was not found (/nowhere/libnvrtc.so.13: "),
        "{error}"
    );
    let fakes = Fakes::new("10.15");
    let error = Nvrtc::open_file(fakes.folder.path().join("libcuda.so.1")).unwrap_err();
    assert!(matches!(error, NvrtcError::MissingSymbol { symbol: "nvrtcVersion", .. }), "{error}");
}
