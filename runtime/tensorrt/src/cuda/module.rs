//! Kernels.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;

use super::{Context, CudaError, Stream};

/// Options of `cuModuleLoadDataEx`: a buffer for what the compiler says about errors, and its size.
const ERROR_LOG: i32 = 5;
const ERROR_LOG_BYTES: i32 = 6;

/// Kernels, loaded on a GPU.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    raw: *mut c_void,
    parameters: BTreeMap<String, Vec<Parameter>>,
}

// SAFETY: modules may be used by any thread, and by several at a time.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads PTX, which the driver compiles for the GPU unless it has done that before.
    ///
    /// # Errors
    /// [`CudaError::Module`] with what the driver's compiler says, and [`CudaError::Call`].
    pub fn load(context: &Arc<Context>, ptx: &CStr) -> Result<Arc<Self>, CudaError> {
        context.make_current()?;
        let mut log = [0_u8; 4096];
        let mut options = [ERROR_LOG, ERROR_LOG_BYTES];
        // The size is given as the value itself; the last byte stays zero.
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len() - 1)];
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` takes one `CUmodule`, the PTX ends with a zero, and both options have values, of which the first
        // names as many bytes as the second says.
        let answer = unsafe {
            (context.functions().module_load)(
                &raw mut raw,
                ptx.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match context.check("cuModuleLoadDataEx", answer) {
            Err(CudaError::Call { code, name, .. }) if log[0] != 0 => {
                let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
                let log = String::from_utf8_lossy(&log[..end]).trim().to_owned();
                return Err(CudaError::Module { code, name, log });
            }
            answer => answer?,
        }
        let parameters = parameters(&ptx.to_string_lossy());
        Ok(Arc::new(Self { context: Arc::clone(context), raw, parameters }))
    }

    /// A kernel of the module, which it keeps.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`] and [`CudaError::Call`].
    pub fn function(self: &Arc<Self>, name: &'static str) -> Result<Function, CudaError> {
        let (Ok(c_name), Some(parameters)) = (CString::new(name), self.parameters.get(name)) else {
            return Err(CudaError::NoKernel { kernel: name });
        };
        self.context.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` takes one `CUfunction`; the module lives, the name ends with a zero.
        let answer = unsafe {
            (self.context.functions().module_function)(&raw mut raw, self.raw, c_name.as_ptr())
        };
        self.context.check("cuModuleGetFunction", answer)?;
        Ok(Function { module: Arc::clone(self), raw, name, parameters: parameters.clone() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: loaded in `load`, unloaded only here, after all its functions are gone.
            let _ = unsafe { (self.context.functions().module_unload)(self.raw) };
        }
    }
}

/// What a kernel takes in one place, as far as PTX tells: 32-bit integers with and without sign look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Address,
    Integer,
    Float,
    /// Something that [`Arg`] does not have.
    Other,
}

impl Parameter {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Other => "other",
        }
    }
}

/// Parameters of all kernels of a PTX text.
fn parameters(ptx: &str) -> BTreeMap<String, Vec<Parameter>> {
    let entries = ptx.split(".entry").skip(1).filter_map(|entry| {
        let (name, rest) = entry.split_once('(')?;
        let (list, _) = rest.split_once(')')?;
        let types = list.split(',').filter(|parameter| !parameter.trim().is_empty());
        let types = types.map(|parameter| {
            // An array, as structures passed by value are, has brackets.
            if parameter.contains('[') {
                return Parameter::Other;
            }
            match parameter.split_whitespace().nth(1) {
                Some(".u64" | ".b64" | ".s64") => Parameter::Address,
                Some(".u32" | ".b32" | ".s32") => Parameter::Integer,
                Some(".f32") => Parameter::Float,
                _ => Parameter::Other,
            }
        });
        Some((name.trim().to_owned(), types.collect()))
    });
    entries.collect()
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A device address, of [`DeviceBuffer::address`](super::DeviceBuffer::address), or 0.
    Buffer(u64),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `float`.
    F32(f32),
}

impl Arg {
    fn parameter(&self) -> Parameter {
        match self {
            Self::Buffer(_) => Parameter::Address,
            Self::I32(_) | Self::U32(_) => Parameter::Integer,
            Self::F32(_) => Parameter::Float,
        }
    }

    fn value(&self) -> *const c_void {
        match self {
            Self::Buffer(value) => std::ptr::from_ref(value).cast(),
            Self::I32(value) => std::ptr::from_ref(value).cast(),
            Self::U32(value) => std::ptr::from_ref(value).cast(),
            Self::F32(value) => std::ptr::from_ref(value).cast(),
        }
    }
}

/// A kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct Function {
    module: Arc<Module>,
    raw: *mut c_void,
    name: &'static str,
    parameters: Vec<Parameter>,
}

// SAFETY: functions may be used by any thread, and by several at a time; the module is kept.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Puts a launch of `grid` blocks of `block` threads into a stream.
    ///
    /// # Errors
    /// [`CudaError::Arguments`] unless number and types of the arguments are those of the kernel's parameters,
    /// [`CudaError::Geometry`], [`CudaError::OtherDevice`] and [`CudaError::Call`].
    ///
    /// # Safety
    /// With these arguments the kernel reads and writes only device memory that lives until the stream has done it (and
    /// for as long as a graph with it can be launched), and that nothing else writes or reads meanwhile.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        grid: [u32; 3],
        block: [u32; 3],
        args: &[Arg],
    ) -> Result<(), CudaError> {
        if !args.iter().map(Arg::parameter).eq(self.parameters.iter().copied()) {
            let list = |types: &mut dyn Iterator<Item = Parameter>| {
                types.map(Parameter::name).collect::<Vec<_>>().join(", ")
            };
            return Err(CudaError::Arguments {
                kernel: self.name,
                expected: list(&mut self.parameters.iter().copied()),
                given: list(&mut args.iter().map(Arg::parameter)),
            });
        }
        let threads = block.iter().try_fold(1_u32, |product, &size| product.checked_mul(size));
        let fits = threads.is_some_and(|threads| (1..=1024).contains(&threads))
            && block[2] <= 64
            && grid.iter().all(|&size| size > 0)
            && i32::try_from(grid[0]).is_ok()
            && grid[1].max(grid[2]) <= 65_535;
        if !fits {
            return Err(CudaError::Geometry { kernel: self.name, grid, block });
        }
        let context = &self.module.context;
        stream.check_device(context)?;
        context.make_current()?;
        let values: Vec<*const c_void> = args.iter().map(Arg::value).collect();
        // SAFETY: function and stream live; there is one value of the right size for each parameter (checked), which the
        // driver copies before it returns. There is no dynamic shared memory and nothing extra. The rest is the caller's.
        let answer = unsafe {
            (context.functions().launch)(
                self.raw,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                0,
                stream.raw(),
                values.as_ptr(),
                std::ptr::null(),
            )
        };
        context.check("cuLaunchKernel", answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_ptx() {
        let ptx = "//\n.version 8.5\n.target sm_75\n\n.visible .entry one(\n\t.param .u64 one_param_0,\n\
                   \t.param .u64 .ptr .global .align 4 one_param_1,\n\t.param .u32 one_param_2,\n\t.param .f32 x\n)\n\
                   .maxntid 256, 1, 1\n{\n ret;\n}\n.visible .entry two()\n{\n}\n.entry three(.param .align 4 .b8 \
                   three_param_0[12], .param .f64 d)\n{\n}\n";
        let found = parameters(ptx);
        let (address, other) = (Parameter::Address, Parameter::Other);
        assert_eq!(found["one"], [address, address, Parameter::Integer, Parameter::Float]);
        assert!(found["two"].is_empty());
        assert_eq!(found["three"], [other, other]);
        assert_eq!(found.len(), 3);
    }
}
