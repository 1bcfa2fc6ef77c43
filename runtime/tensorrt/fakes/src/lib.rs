//! Stand-ins for libraries that need a GPU, for tests on machines without one.
//!
//! [`Fakes`] is a folder with a fake `libcuda`, `libnvinfer` and `libnvonnxparser`, built by plain `rustc` from the
//! sources in `libraries/`, which share no code with the binding. Each test has copies of its own, so that tests do not
//! see each other's settings and calls. [`gpu`] is a fake GPU alone, whose kernels run on the CPU, see [`host_kernels`].
//! [`nvrtc()`] is no fake: the compiler of kernels works without a GPU.
//!
//! ```
//! use conceptseg_tensorrt::cuda::{Arg, CudaError, DeviceBuffer, Module};
//!
//! fn main() -> Result<(), CudaError> {
//!     let source = r#"extern "C" __global__ void twice(float* __restrict__ x, int n) {
//!         const int i = blockIdx.x * blockDim.x + threadIdx.x;
//!         if (i < n) x[i] *= 2.0f;
//!     }"#;
//!     let Some(gpu) = conceptseg_tensorrt_fakes::gpu(source) else { return Ok(()) };
//!     let twice = Module::load(&gpu.context, &gpu.image)?.function("twice")?;
//!     let buffer = DeviceBuffer::<f32>::new(&gpu.context, 3)?;
//!     buffer.write(&gpu.stream, &[1.0, 2.0, 3.0])?;
//!     let args = [Arg::Buffer(buffer.address()), Arg::I32(3)];
//!     // SAFETY: the kernel stays inside of the buffer, which lives until it is read.
//!     unsafe { twice.launch(&gpu.stream, [1, 1, 1], [32, 1, 1], &args)? };
//!     let mut values = [0.0; 3];
//!     buffer.read(&gpu.stream, &mut values)?; // waits for the kernel
//!     assert_eq!(values, [2.0, 4.0, 6.0]);
//!     Ok(())
//! }
//! ```
#![allow(unsafe_code)] // The fakes are controlled through C functions.
#![warn(clippy::undocumented_unsafe_blocks)]
#![allow(clippy::missing_panics_doc, reason = "what goes wrong here ends a test")]

mod compile;
mod host;
mod nvrtc;

use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, Driver, Stream};
use conceptseg_tensorrt::{Library, Search};

pub use host::host_kernels;
pub use nvrtc::nvrtc;

/// Interfaces of TensorRT that fakes are built for.
pub const VERSIONS: [&str; 5] = ["8.6", "10.3", "10.15", "11.1", "11.4"];

/// The controls of one loaded copy of a fake.
#[derive(Debug)]
pub struct Fake(libloading::Library);

impl Fake {
    fn load(path: &Path) -> Self {
        // SAFETY: a fake made here, without initializers.
        Self(unsafe { libloading::Library::new(path) }.unwrap())
    }

    /// Copies a fake to where it is looked for, and loads the copy.
    fn place(from: &Path, to: &Path) -> Self {
        fs::copy(from, to).unwrap();
        Self::load(to)
    }

    /// The controls of a copy that this process may have loaded already.
    pub fn open(path: &Path) -> Self {
        Self::load(path)
    }

    /// Memory on the fake GPU that belongs to a context of somebody else, with these bytes (fake driver only).
    pub fn foreign_memory(&self, bytes: &[u8]) -> u64 {
        // SAFETY: the signature is that in the fake's source; device memory is host memory of that length.
        unsafe {
            let memory = self.0.get::<extern "C" fn(usize) -> u64>("fake_foreign_memory").unwrap();
            let address = memory(bytes.len().max(1));
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
            address
        }
    }

    /// Frees what [`Fake::foreign_memory`] gave.
    pub fn free(&self, address: u64) {
        // SAFETY: the signature is that in the fake's source.
        unsafe { self.0.get::<extern "C" fn(u64)>("fake_free").unwrap()(address) };
    }

    /// An image of EGL whose planes lie at these addresses, with these distances between rows; its handle. `hidden`
    /// planes are CUDA arrays, as those of a Jetson's decoder (fake driver only).
    pub fn egl_image(
        &self,
        (width, height): (u32, u32),
        planes: &[(u64, usize)],
        hidden: bool,
    ) -> u64 {
        type Make = unsafe extern "C" fn(u32, u32, u32, usize, *const u64, *const usize) -> u64;
        let (addresses, pitches): (Vec<u64>, Vec<usize>) = planes.iter().copied().unzip();
        // SAFETY: the signature is that in the fake's source; both lists have that many elements.
        unsafe {
            let make = self.0.get::<Make>("fake_egl_image").unwrap();
            let (addresses, pitches) = (addresses.as_ptr(), pitches.as_ptr());
            make(u32::from(!hidden), width, height, planes.len(), addresses, pitches)
        }
    }

    /// Changes a setting. In the fake driver the name of a call sets what it answers, and `CALL:breaks` the number of
    /// the call that breaks the context. For child processes there are `FAKE_CUDA` and `FAKE_TENSORRT`
    /// (`name=value,name=value`), and `FAKE_TENSORRT_CALLS`, a file that gets the calls.
    pub fn set(&self, name: &str, value: i64) {
        let name = CString::new(name).unwrap();
        // SAFETY: the signature is that in the fake's source; the name lives during the call.
        unsafe {
            self.0.get::<unsafe extern "C" fn(*const c_char, i64)>("fake_set").unwrap()(
                name.as_ptr(),
                value,
            );
        }
    }

    /// Lets the next call of this name fail with `code` (fake driver only). After an error that breaks the context, such
    /// as 700, all calls fail until the context is reset.
    pub fn fail_once(&self, call: &str, code: i64) {
        self.set(&format!("{call}:once"), code);
    }

    /// The calls since this was asked for.
    pub fn take_calls(&self) -> Vec<String> {
        // SAFETY: the signature is that in the fake's source; the string is given away by it (and leaked here).
        let calls = unsafe {
            CStr::from_ptr(
                self.0.get::<extern "C" fn() -> *mut c_char>("fake_take_calls").unwrap()(),
            )
        };
        calls.to_str().unwrap().lines().map(str::to_owned).collect()
    }

    /// Objects that were made and not given back.
    pub fn live_objects(&self) -> i64 {
        // SAFETY: the signature is that in the fake's source.
        unsafe { self.0.get::<extern "C" fn() -> i64>("fake_live_objects").unwrap()() }
    }
}

/// A folder with fakes of one version of TensorRT and of the CUDA driver, none of which another test uses.
///
/// A child process finds them with the folder in `LD_LIBRARY_PATH`.
#[derive(Debug)]
pub struct Fakes {
    /// Where `libcuda.so.1`, `libnvinfer.so.N` and `libnvonnxparser.so.N` lie.
    pub folder: tempfile::TempDir,
    /// N.
    pub major: u32,
    /// Controls of the fake TensorRT.
    pub nvinfer: Fake,
    /// Controls of the fake parser.
    pub parser: Fake,
    /// Controls of the fake driver.
    pub cuda: Fake,
}

impl Fakes {
    /// Fakes of a version in [`VERSIONS`].
    pub fn new(version: &str) -> Self {
        Self::of(version, false)
    }

    /// The same with a lean runtime, which cannot build.
    pub fn lean(version: &str) -> Self {
        Self::of(version, true)
    }

    fn of(version: &str, lean: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let major = version.split('.').next().unwrap().parse().unwrap();
        let library = compile::fake("nvinfer.rs", Some(version), lean);
        let stem = if lean { "libnvinfer_lean" } else { "libnvinfer" };
        let path = |name: String| folder.path().join(name);
        let nvinfer = Fake::place(&library, &path(format!("{stem}.so.{major}")));
        let parser = Fake::place(&library, &path(format!("libnvonnxparser.so.{major}")));
        let cuda = fake_driver(folder.path());
        Self { folder, major, nvinfer, parser, cuda }
    }

    /// Lets the fake driver run these kernels, and answers the image that loads as their module; nothing, with a printed
    /// reason, where there is no C++ compiler.
    pub fn add_kernels(&self, source: &str) -> Option<CString> {
        add_kernels(self.folder.path(), source)
    }

    /// Adds what GStreamer's CUDA elements and NVIDIA's own look for beside the driver: a `libnvcuvid` that decodes
    /// nothing, and a `libnvbufsurface`.
    pub fn add_media_libraries(&self) {
        let path = |name: &str| self.folder.path().join(name);
        fs::copy(path("libcuda.so.1"), path("libnvcuvid.so.1")).unwrap();
        fs::copy(compile::fake("nvbufsurface.rs", None, false), path("libnvbufsurface.so"))
            .unwrap();
    }

    /// Where to look for TensorRT.
    pub fn search(&self) -> Search {
        Search::folder(self.folder.path())
    }

    /// The fake TensorRT, opened.
    pub fn library(&self) -> Library {
        Library::open(&self.search()).unwrap()
    }

    /// The fake driver, opened.
    pub fn driver(&self) -> Driver {
        Driver::open_file(self.folder.path().join("libcuda.so.1")).unwrap()
    }

    /// The first GPU.
    pub fn context(&self) -> Arc<Context> {
        Context::new(&self.driver(), 0).unwrap()
    }

    /// Checks that all objects were given back, none before what needs it.
    pub fn check_all_destroyed(&self) {
        assert_eq!(self.nvinfer.live_objects(), 0);
        assert_eq!(self.parser.live_objects(), 0);
        assert_eq!(self.cuda.live_objects(), 0);
        let calls = self.nvinfer.take_calls();
        assert!(!calls.iter().any(|call| call.contains("VIOLATION")), "{calls:?}");
    }
}

fn fake_driver(folder: &Path) -> Fake {
    Fake::place(&compile::fake("cuda/lib.rs", None, false), &folder.join("libcuda.so.1"))
}

fn add_kernels(folder: &Path, source: &str) -> Option<CString> {
    let library = host_kernels(source)?;
    fs::copy(&library, folder.join("kernels.so")).unwrap();
    Some(host::image(&library))
}

/// A fake GPU without TensorRT, with a stream.
#[derive(Debug)]
pub struct FakeGpu {
    /// The stream.
    pub stream: Arc<Stream>,
    /// The GPU.
    pub context: Arc<Context>,
    /// The opened driver.
    pub driver: Driver,
    /// What the driver loads as the module with the kernels: PTX without code.
    pub image: CString,
    /// Controls of the driver.
    pub cuda: Fake,
    /// Where its library lies.
    pub folder: tempfile::TempDir,
}

/// A fake GPU that runs the kernels of this source on the CPU; nothing, with a printed reason, where there is no C++
/// compiler. The source is that of [`host_kernels`].
pub fn gpu(source: &str) -> Option<FakeGpu> {
    let folder = tempfile::tempdir().unwrap();
    let cuda = fake_driver(folder.path());
    let image = add_kernels(folder.path(), source)?;
    let driver = Driver::open_file(folder.path().join("libcuda.so.1")).unwrap();
    let context = Context::new(&driver, 0).unwrap();
    let stream = Stream::new(&context).unwrap();
    Some(FakeGpu { stream, context, driver, image, cuda, folder })
}

/// The first real GPU, for the same comparisons on it; nothing, with a printed reason, where there is no driver.
pub fn real_gpu() -> Option<Arc<Context>> {
    match Driver::open().and_then(|driver| Context::new(&driver, 0)) {
        Ok(context) => Some(context),
        Err(error) => {
            println!("skipped: no GPU ({error})");
            None
        }
    }
}
