//! The part of OpenVINO's C interface that is used, found in a library at run time.
//!
//! The crates that bind it cannot be used here: they look for the library while they are built,
//! panic on one that lacks a function or has an unusual version, and take its answers for one of
//! the numbers they know.
#![allow(unsafe_code)] // The interface is made of C functions.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::{fmt, mem, slice};

use crate::backend::library::open_library;
use crate::backend::one_line;

/// The oldest release whose numbers for the types of elements are those of today.
const OLDEST: (u32, u32) = (2025, 1);
/// `f32` in `ov_element_type_e`.
const F32: c_int = 4;
const CPU: &CStr = c"CPU";
/// Most axes of a tensor that is looked at.
const MAX_RANK: usize = 8;

/// `ov_version_t`.
#[repr(C)]
struct Version {
    build: *const c_char,
    description: *const c_char,
}

/// `ov_shape_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    rank: i64,
    dims: *mut i64,
}

/// `ov_partial_shape_t`; the rank is a range.
#[repr(C)]
#[derive(Clone, Copy)]
struct PartialShape {
    rank: [i64; 2],
    dims: *mut c_void,
}

type Raw = *mut c_void;
type Text = *const c_char;
type Free = unsafe extern "C" fn(Raw);

/// Declares the functions and how they are found.
macro_rules! functions {
    ($($name:ident: $type:ty;)*) => {
        struct Functions {
            $($name: $type,)*
        }

        impl Functions {
            fn load(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of the C headers, unchanged since release 2023.1.
                    $($name: *unsafe { library.get::<$type>(stringify!($name)) }
                        .map_err(|_| stringify!($name))?,)*
                })
            }
        }
    };
}

functions! {
    ov_get_openvino_version: unsafe extern "C" fn(*mut Version) -> c_int;
    ov_version_free: unsafe extern "C" fn(*mut Version);
    ov_get_last_err_msg: unsafe extern "C" fn() -> Text;
    ov_free: unsafe extern "C" fn(Text);
    ov_core_create: unsafe extern "C" fn(*mut Raw) -> c_int;
    ov_core_free: Free;
    ov_core_get_property: unsafe extern "C" fn(Raw, Text, Text, *mut *mut c_char) -> c_int;
    ov_core_read_model_from_memory_buffer: unsafe extern "C" fn(Raw, Text, usize, Raw, *mut Raw) -> c_int;
    ov_core_compile_model: unsafe extern "C" fn(Raw, Raw, Text, usize, *mut Raw, ...) -> c_int;
    ov_model_free: Free;
    ov_model_inputs_size: unsafe extern "C" fn(Raw, *mut usize) -> c_int;
    ov_model_outputs_size: unsafe extern "C" fn(Raw, *mut usize) -> c_int;
    ov_model_const_input_by_index: unsafe extern "C" fn(Raw, usize, *mut Raw) -> c_int;
    ov_model_const_output_by_index: unsafe extern "C" fn(Raw, usize, *mut Raw) -> c_int;
    ov_model_const_input_by_name: unsafe extern "C" fn(Raw, Text, *mut Raw) -> c_int;
    ov_model_const_output_by_name: unsafe extern "C" fn(Raw, Text, *mut Raw) -> c_int;
    ov_model_reshape_input_by_name: unsafe extern "C" fn(Raw, Text, PartialShape) -> c_int;
    ov_port_get_any_name: unsafe extern "C" fn(Raw, *mut *mut c_char) -> c_int;
    ov_output_const_port_free: Free;
    ov_partial_shape_create_static: unsafe extern "C" fn(i64, *const i64, *mut PartialShape) -> c_int;
    ov_partial_shape_free: unsafe extern "C" fn(*mut PartialShape);
    ov_compiled_model_create_infer_request: unsafe extern "C" fn(Raw, *mut Raw) -> c_int;
    ov_compiled_model_free: Free;
    ov_infer_request_set_tensor: unsafe extern "C" fn(Raw, Text, Raw) -> c_int;
    ov_infer_request_get_tensor: unsafe extern "C" fn(Raw, Text, *mut Raw) -> c_int;
    ov_infer_request_infer: unsafe extern "C" fn(Raw) -> c_int;
    ov_infer_request_free: Free;
    ov_tensor_create_from_host_ptr: unsafe extern "C" fn(c_int, Shape, Raw, *mut Raw) -> c_int;
    ov_tensor_get_element_type: unsafe extern "C" fn(Raw, *mut c_int) -> c_int;
    ov_tensor_get_shape: unsafe extern "C" fn(Raw, *mut Shape) -> c_int;
    ov_tensor_data: unsafe extern "C" fn(Raw, *mut Raw) -> c_int;
    ov_tensor_free: Free;
    ov_shape_free: unsafe extern "C" fn(*mut Shape) -> c_int;
}

/// An open library.
pub(super) struct Api {
    path: PathBuf,
    version: String,
    functions: Functions,
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, self.path.display())
    }
}

impl Api {
    /// Opens the library in the file `path`.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let library = open_library(path)?;
        let functions = Functions::load(&library).map_err(|missing| {
            format!("it is not a complete OpenVINO library (it has no {missing})")
        })?;
        // Its threads live until the process ends, and so does it.
        mem::forget(library);
        let mut this = Self { path: path.to_owned(), version: String::new(), functions };
        this.version = this.read_version()?;
        if release(&this.version).is_none_or(|found| found < OLDEST) {
            let (year, minor) = OLDEST;
            return Err(format!(
                "version {} is too old, {year}.{minor} or newer is needed",
                this.version
            ));
        }
        Ok(this)
    }

    fn read_version(&self) -> Result<String, String> {
        let mut version = Version { build: ptr::null(), description: ptr::null() };
        // SAFETY: the structure is written and freed by the library; its texts are C strings or null.
        unsafe {
            let status = (self.functions.ov_get_openvino_version)(&raw mut version);
            if status != 0 || version.build.is_null() {
                return Err("it is damaged (it does not tell its version)".to_owned());
            }
            let text = CStr::from_ptr(version.build).to_string_lossy().into_owned();
            (self.functions.ov_version_free)(&raw mut version);
            Ok(text)
        }
    }

    /// Release and number of the build, without its hash and branch.
    pub(super) fn version(&self) -> String {
        self.version.split('-').take(2).collect::<Vec<_>>().join("-")
    }

    /// `Ok` for 0, otherwise what the library says.
    fn check(&self, call: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function gives a C string or null. Whether the caller frees it is not said anywhere, so it is not
        // freed: errors are rare and short.
        let text = unsafe {
            let text = (self.functions.ov_get_last_err_msg)();
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        Err(explained(call, status, &text.unwrap_or_default()))
    }

    /// Calls a function that creates an object.
    fn create(
        &'static self,
        call: &str,
        free: Free,
        make: impl FnOnce(*mut Raw) -> c_int,
    ) -> Result<Handle, String> {
        let mut raw = ptr::null_mut();
        self.check(call, make(&raw mut raw))?;
        let raw = NonNull::new(raw).ok_or_else(|| format!("{call} gave nothing"))?;
        Ok(Handle { raw, free })
    }

    /// Copies a text of the library and frees it.
    fn take_text(&self, text: *mut c_char) -> String {
        if text.is_null() {
            return String::new();
        }
        // SAFETY: a C string of the library, which `ov_free` frees.
        unsafe {
            let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
            (self.functions.ov_free)(text);
            copy
        }
    }
}

/// Year and number of a release such as `2026.4.1-22982-e213a147257`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The library's message without the places in its source.
fn explained(call: &str, status: c_int, text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("Exception from "));
    match one_line(lines.collect::<Vec<_>>().join(" ")) {
        text if text.is_empty() => format!("{call} failed ({status})"),
        text => text,
    }
}

/// Something that the library created.
struct Handle {
    raw: NonNull<c_void>,
    free: Free,
}

impl Handle {
    fn raw(&self) -> Raw {
        self.raw.as_ptr()
    }
}

// SAFETY: no object of the library belongs to a thread. Sharing is up to the types that hold one.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by the library, with the function that frees its kind, and dropped once.
        unsafe { (self.free)(self.raw()) }
    }
}

/// OpenVINO with its CPU plugin.
pub(super) struct Core {
    api: &'static Api,
    handle: Handle,
}

// SAFETY: `ov::Core` says that its methods may be called from several threads.
unsafe impl Sync for Core {}

impl Core {
    pub(super) fn new(api: &'static Api) -> Result<Self, String> {
        let f = &api.functions;
        // SAFETY: the pointer is written to.
        let handle =
            api.create("ov_core_create", f.ov_core_free, |out| unsafe { (f.ov_core_create)(out) })?;
        Ok(Self { api, handle })
    }

    pub(super) fn api(&self) -> &'static Api {
        self.api
    }

    /// What the CPU computes in, as OpenVINO names it: `FP32`, `BF16`, `INT8` …
    pub(super) fn capabilities(&self) -> Result<Vec<String>, String> {
        let mut text = ptr::null_mut();
        // SAFETY: C strings go in, and a text of the library comes out.
        let status = unsafe {
            (self.api.functions.ov_core_get_property)(
                self.handle.raw(),
                CPU.as_ptr(),
                c"OPTIMIZATION_CAPABILITIES".as_ptr(),
                &raw mut text,
            )
        };
        self.api.check("ov_core_get_property", status)?;
        Ok(self.api.take_text(text).split_whitespace().map(str::to_owned).collect())
    }

    /// Reads an ONNX file from memory.
    pub(super) fn read(&self, onnx: &[u8]) -> Result<Network, String> {
        let f = &self.api.functions;
        let call = "ov_core_read_model_from_memory_buffer";
        // SAFETY: the bytes are read, with their length, and kept by nobody; ONNX has no separate weights.
        let handle = self.api.create(call, f.ov_model_free, |out| unsafe {
            (f.ov_core_read_model_from_memory_buffer)(
                self.handle.raw(),
                onnx.as_ptr().cast(),
                onnx.len(),
                ptr::null_mut(),
                out,
            )
        })?;
        Ok(Network { api: self.api, handle })
    }

    /// Makes a program for the CPU of the network, with options as names and values.
    pub(super) fn compile(
        &self,
        network: &Network,
        options: &[(&CStr, &CStr); 4],
    ) -> Result<Program, String> {
        let f = &self.api.functions;
        let [[a, b, c, d], [p, q, r, s]] =
            [options.map(|(name, _)| name.as_ptr()), options.map(|(_, value)| value.as_ptr())];
        // SAFETY: the variable arguments are as many C strings as their number says.
        let handle =
            self.api.create("ov_core_compile_model", f.ov_compiled_model_free, |out| unsafe {
                (f.ov_core_compile_model)(
                    self.handle.raw(),
                    network.handle.raw(),
                    CPU.as_ptr(),
                    2 * options.len(),
                    out,
                    a,
                    p,
                    b,
                    q,
                    c,
                    r,
                    d,
                    s,
                )
            })?;
        Ok(Program { api: self.api, handle })
    }
}

/// A network that was read.
pub(super) struct Network {
    api: &'static Api,
    handle: Handle,
}

/// The inputs or the outputs of a network.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Inputs,
    Outputs,
}

impl Network {
    /// A name of each tensor of a side, and `named` where one has it: a tensor can have several.
    pub(super) fn names(&self, side: Side, named: &CStr) -> Result<Vec<String>, String> {
        let f = &self.api.functions;
        let (size, by_index, by_name) = match side {
            Side::Inputs => (
                f.ov_model_inputs_size,
                f.ov_model_const_input_by_index,
                f.ov_model_const_input_by_name,
            ),
            Side::Outputs => (
                f.ov_model_outputs_size,
                f.ov_model_const_output_by_index,
                f.ov_model_const_output_by_name,
            ),
        };
        let model = self.handle.raw();
        let mut count = 0;
        // SAFETY: the number is written.
        self.api.check("ov_model_inputs_size", unsafe { size(model, &raw mut count) })?;
        let port = |make: &dyn Fn(*mut Raw) -> c_int| {
            self.api.create("ov_model_const_input", f.ov_output_const_port_free, make)
        };
        // SAFETY: a C string goes in, an object comes out.
        let has = port(&|out| unsafe { by_name(model, named.as_ptr(), out) }).is_ok();
        let mut names = Vec::new();
        for index in 0..count {
            // SAFETY: as above; the index is below the count.
            let port = port(&|out| unsafe { by_index(model, index, out) })?;
            let mut text = ptr::null_mut();
            // SAFETY: the text of the library is taken. A tensor without a name is an error, and no loss.
            if unsafe { (f.ov_port_get_any_name)(port.raw(), &raw mut text) } == 0 {
                names.push(self.api.take_text(text));
            }
        }
        if has {
            let named = named.to_string_lossy().into_owned();
            if !names.contains(&named) {
                names.push(named);
            }
        }
        Ok(names)
    }

    /// Fixes the shape of an input.
    pub(super) fn reshape(&mut self, input: &CStr, dims: [i64; 4]) -> Result<(), String> {
        let f = &self.api.functions;
        let mut shape = PartialShape { rank: [0; 2], dims: ptr::null_mut() };
        // SAFETY: four numbers are read, and what is written is freed below.
        let status =
            unsafe { (f.ov_partial_shape_create_static)(4, dims.as_ptr(), &raw mut shape) };
        self.api.check("ov_partial_shape_create_static", status)?;
        // SAFETY: the shape is copied; `self` is borrowed alone.
        let status = unsafe {
            let status =
                (f.ov_model_reshape_input_by_name)(self.handle.raw(), input.as_ptr(), shape);
            (f.ov_partial_shape_free)(&raw mut shape);
            status
        };
        self.api.check("ov_model_reshape_input_by_name", status)
    }
}

/// A network compiled for the CPU and one size.
pub(super) struct Program {
    api: &'static Api,
    handle: Handle,
}

// SAFETY: `ov::CompiledModel` creates requests from several threads at once; nothing else is done.
unsafe impl Sync for Program {}

impl Program {
    /// A place to run it in.
    pub(super) fn request(&self) -> Result<Request, String> {
        let f = &self.api.functions;
        let call = "ov_compiled_model_create_infer_request";
        // SAFETY: an object comes out, which holds the program itself.
        let handle = self.api.create(call, f.ov_infer_request_free, |out| unsafe {
            (f.ov_compiled_model_create_infer_request)(self.handle.raw(), out)
        })?;
        Ok(Request { api: self.api, handle })
    }
}

/// A place to run a program in, for one caller at a time.
pub(super) struct Request {
    api: &'static Api,
    handle: Handle,
}

impl Request {
    /// Runs the program on numbers of the shape `dims`, and shows the shape and the numbers of the output.
    pub(super) fn run<T>(
        &mut self,
        (input, numbers, mut dims): (&CStr, &[f32], [i64; 4]),
        output: &CStr,
        see: impl FnOnce(&[usize], &[f32]) -> T,
    ) -> Result<T, String> {
        let f = &self.api.functions;
        let request = self.handle.raw();
        let needed = dims.iter().try_fold(1_usize, |all, &n| all.checked_mul(n.try_into().ok()?));
        if needed != Some(numbers.len()) {
            return Err(format!("{} numbers do not fill {dims:?}", numbers.len()));
        }
        let shape = Shape { rank: 4, dims: dims.as_mut_ptr() };
        let data = numbers.as_ptr().cast_mut().cast();
        // SAFETY: the tensor borrows the numbers, of which there are as many as the shape says, and only reads them as
        // an input. The request keeps the tensor, but looks at it in `infer` only, before which every run sets it.
        let tensor =
            self.api.create("ov_tensor_create_from_host_ptr", f.ov_tensor_free, |out| unsafe {
                (f.ov_tensor_create_from_host_ptr)(F32, shape, data, out)
            })?;
        // SAFETY: the objects are alive, and nobody else has the request.
        unsafe {
            let status = (f.ov_infer_request_set_tensor)(request, input.as_ptr(), tensor.raw());
            self.api.check("ov_infer_request_set_tensor", status)?;
            self.api.check("ov_infer_request_infer", (f.ov_infer_request_infer)(request))?;
        }
        // SAFETY: the output's tensor comes out.
        let tensor =
            self.api.create("ov_infer_request_get_tensor", f.ov_tensor_free, |out| unsafe {
                (f.ov_infer_request_get_tensor)(request, output.as_ptr(), out)
            })?;
        let dims = self.shape(&tensor)?;
        let count = dims.iter().try_fold(1_usize, |all, &n| all.checked_mul(n));
        let mut data: Raw = ptr::null_mut();
        // SAFETY: the pointer is written.
        let status = unsafe { (f.ov_tensor_data)(tensor.raw(), &raw mut data) };
        self.api.check("ov_tensor_data", status)?;
        let (Some(count), Some(data)) = (count, NonNull::new(data.cast::<f32>())) else {
            return Err("the output is empty".to_owned());
        };
        // SAFETY: 32-bit floats as the type says, as many as the shape says; `tensor` keeps them.
        Ok(see(&dims, unsafe { slice::from_raw_parts(data.as_ptr(), count) }))
    }

    /// The shape of a tensor, which must hold 32-bit floats.
    fn shape(&self, tensor: &Handle) -> Result<Vec<usize>, String> {
        let f = &self.api.functions;
        let (mut kind, mut shape) = (0, Shape { rank: 0, dims: ptr::null_mut() });
        // SAFETY: number and shape are written.
        unsafe {
            let status = (f.ov_tensor_get_element_type)(tensor.raw(), &raw mut kind);
            self.api.check("ov_tensor_get_element_type", status)?;
            if kind != F32 {
                return Err("the output is not float32".to_owned());
            }
            let status = (f.ov_tensor_get_shape)(tensor.raw(), &raw mut shape);
            self.api.check("ov_tensor_get_shape", status)?;
        }
        let rank = usize::try_from(shape.rank).unwrap_or(0).min(MAX_RANK);
        let mut dims = Vec::with_capacity(rank);
        if !shape.dims.is_null() {
            // SAFETY: the library gives as many numbers as the rank says.
            let sides = unsafe { slice::from_raw_parts(shape.dims, rank) };
            // No output has a negative side.
            dims.extend(sides.iter().map(|&n| usize::try_from(n).unwrap_or(0)));
        }
        // SAFETY: made by the library, freed once.
        unsafe { (f.ov_shape_free)(&raw mut shape) };
        Ok(dims)
    }
}

/// A name as C wants it.
pub(super) fn c_text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("the name {text:?} has a zero byte in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_stands_before_the_build() {
        assert_eq!(release("2026.4.1-22982-e213a147257-releases/2026/4"), Some((2026, 4)));
        assert_eq!(release("2025.0.0-1"), Some((2025, 0)));
        assert!(release("2025.0.0-1") < Some(OLDEST));
        assert_eq!(release("custom_master_1"), None);
    }

    #[test]
    fn messages_leave_out_where_the_source_failed() {
        let text = "Exception from src/inference/src/cpp/core.cpp:105:\nException from \
                    src/inference/src/model_reader.cpp:188:\nUnable to read the model.\n\n";
        assert_eq!(explained("ov_core_create", -1, text), "Unable to read the model.");
        assert_eq!(explained("ov_core_create", -17, "\n"), "ov_core_create failed (-17)");
    }
}
