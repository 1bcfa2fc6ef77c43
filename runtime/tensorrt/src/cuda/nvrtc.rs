//! NVRTC, which compiles CUDA C++ to PTX; found when the program runs, and needed by nobody who has PTX.

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::library::not_opened;

/// `NVRTC_ERROR_COMPILATION`: the log says what is wrong.
const COMPILATION: c_int = 6;

/// Why NVRTC gave no PTX.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NvrtcError {
    /// The library could not be opened.
    #[error(
        "NVRTC was not found ({tried}); install it, or use the kernels that are part of the program"
    )]
    NotFound {
        /// Every name that was tried, with the answer of the loader.
        tried: String,
    },
    /// The library is something else, or incomplete.
    #[error("{} has no function `{symbol}`; it is not a complete NVRTC library", path.display())]
    MissingSymbol {
        /// The opened file.
        path: PathBuf,
        /// The missing function.
        symbol: &'static str,
    },
    /// A call failed.
    #[error("{call} failed: {description} ({code}){log}")]
    Call {
        /// The library's function.
        call: &'static str,
        /// Its answer.
        code: i32,
        /// What the library says about it.
        description: String,
        /// What the compiler said, after a line break, where it said anything.
        log: String,
    },
    /// The source does not compile.
    #[error("{name} does not compile:\n{log}")]
    Compile {
        /// The name that the source was given.
        name: String,
        /// The compiler's messages.
        log: String,
    },
    /// A text with a zero byte, which C cannot take.
    #[error("the {what} has a zero byte in it; remove it")]
    Text {
        /// Which.
        what: &'static str,
    },
}

/// `nvrtcProgram`.
type Program = *mut std::ffi::c_void;

/// Declares the functions that are used, and how they are found.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($type:ty),*) $(-> $result:ty)?;)*) => {
        #[derive(Debug)]
        struct Functions {
            $($field: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
        }

        impl Functions {
            fn find(library: &libloading::Library, path: &Path) -> Result<Self, NvrtcError> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the signature is that of NVRTC's interface for this name.
                        let function = unsafe { library.get($symbol.as_bytes()) };
                        *function.map_err(|_| NvrtcError::MissingSymbol {
                            path: path.to_owned(),
                            symbol: $symbol,
                        })?
                    },)*
                })
            }
        }
    };
}

functions! {
    version = "nvrtcVersion": fn(*mut c_int, *mut c_int) -> c_int;
    error_string = "nvrtcGetErrorString": fn(c_int) -> *const c_char;
    create = "nvrtcCreateProgram": fn(
        *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    ) -> c_int;
    destroy = "nvrtcDestroyProgram": fn(*mut Program) -> c_int;
    compile = "nvrtcCompileProgram": fn(Program, c_int, *const *const c_char) -> c_int;
    log_size = "nvrtcGetProgramLogSize": fn(Program, *mut usize) -> c_int;
    log = "nvrtcGetProgramLog": fn(Program, *mut c_char) -> c_int;
    ptx_size = "nvrtcGetPTXSize": fn(Program, *mut usize) -> c_int;
    ptx = "nvrtcGetPTX": fn(Program, *mut c_char) -> c_int;
}

#[derive(Debug)]
struct Inner {
    functions: Functions,
    path: PathBuf,
    /// Never closed: it has exit handlers of its own.
    _library: ManuallyDrop<libloading::Library>,
}

/// The opened compiler. Cloning is cheap; several threads may compile at a time.
#[derive(Clone, Debug)]
pub struct Nvrtc(Arc<Inner>);

/// What was compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The PTX.
    pub ptx: CString,
    /// Warnings, and what was asked for with options such as `--ptxas-options=-v`; often empty.
    pub log: String,
}

impl Nvrtc {
    /// Opens the library by the loader's path.
    ///
    /// # Errors
    /// [`NvrtcError::NotFound`] and [`NvrtcError::MissingSymbol`].
    pub fn open() -> Result<Self, NvrtcError> {
        let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
        Self::open_first(&names.map(PathBuf::from))
    }

    /// Opens one file. Its companion `libnvrtc-builtins` lies beside it or on the loader's path.
    ///
    /// # Errors
    /// As [`Nvrtc::open`].
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, NvrtcError> {
        Self::open_first(&[path.into()])
    }

    fn open_first(paths: &[PathBuf]) -> Result<Self, NvrtcError> {
        let mut tried = Vec::new();
        for path in paths {
            // SAFETY: loading runs the initializers of the file, which was named for this purpose.
            match unsafe { libloading::Library::new(path) } {
                Ok(library) => {
                    let library = ManuallyDrop::new(library);
                    let functions = Functions::find(&library, path)?;
                    let path = path.clone();
                    let found = Self(Arc::new(Inner { functions, path, _library: library }));
                    found.open_companion();
                    return Ok(found);
                }
                Err(error) => tried.push(not_opened(path, &error)),
            }
        }
        Err(NvrtcError::NotFound { tried: tried.join("; ") })
    }

    /// Opens `libnvrtc-builtins`, which NVRTC itself looks for by its name alone, where it lies beside the file. Else a
    /// compilation will say that it is missing.
    fn open_companion(&self) {
        let (Ok((major, minor)), Some(folder)) = (self.version(), self.0.path.parent()) else {
            return;
        };
        let path = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
        if !folder.as_os_str().is_empty() && path.exists() {
            // SAFETY: a library of data, which NVRTC would load too. Never closed, as NVRTC is not.
            let _ = unsafe { libloading::Library::new(path) }.map(ManuallyDrop::new);
        }
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The version, (12, 6) for 12.6.
    ///
    /// # Errors
    /// [`NvrtcError::Call`].
    pub fn version(&self) -> Result<(u32, u32), NvrtcError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: each takes one int.
        let answer = unsafe { (self.0.functions.version)(&raw mut major, &raw mut minor) };
        self.check("nvrtcVersion", answer, "")?;
        Ok((u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)))
    }

    /// Compiles CUDA C++ without headers. `name` stands for the source in messages.
    ///
    /// # Errors
    /// [`NvrtcError::Compile`] with the compiler's messages, [`NvrtcError::Call`], such as for options that this version
    /// does not know, and [`NvrtcError::Text`].
    pub fn compile(
        &self,
        source: &str,
        name: &str,
        options: &[&str],
    ) -> Result<Compiled, NvrtcError> {
        let text = |text: &str, what| CString::new(text).map_err(|_| NvrtcError::Text { what });
        let (c_source, c_name) = (text(source, "source")?, text(name, "name of the source")?);
        let c_options = options.iter().map(|option| text(option, "option"));
        let c_options: Vec<CString> = c_options.collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = c_options.iter().map(|text| text.as_ptr()).collect();
        let functions = &self.0.functions;
        let mut program = Owned { nvrtc: self, raw: std::ptr::null_mut() };
        // SAFETY: `raw` takes one program; source and name end with a zero; there are no headers.
        let answer = unsafe {
            (functions.create)(
                &raw mut program.raw,
                c_source.as_ptr(),
                c_name.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        self.check("nvrtcCreateProgram", answer, "")?;
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program lives, and there are as many options as is said.
        let answer = unsafe { (functions.compile)(program.raw, count, pointers.as_ptr()) };
        let log = program.text("nvrtcGetProgramLog", functions.log_size, functions.log)?;
        let log = log.to_string_lossy().trim().to_owned();
        if answer == COMPILATION {
            return Err(NvrtcError::Compile { name: name.to_owned(), log });
        }
        self.check("nvrtcCompileProgram", answer, &log)?;
        let ptx = program.text("nvrtcGetPTX", functions.ptx_size, functions.ptx)?;
        Ok(Compiled { ptx, log })
    }

    fn check(&self, call: &'static str, code: c_int, log: &str) -> Result<(), NvrtcError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: answers a string that is never freed, for any number.
        let description = unsafe {
            let text = (self.0.functions.error_string)(code);
            if text.is_null() { c"unknown" } else { CStr::from_ptr(text) }
        };
        let description = description.to_string_lossy().into_owned();
        let log = if log.is_empty() { String::new() } else { format!("\n{log}") };
        Err(NvrtcError::Call { call, code, description, log })
    }
}

/// A program, or null.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    raw: Program,
}

impl Owned<'_> {
    /// A text that the library hands out by its size, zero included, and its bytes.
    fn text(
        &self,
        call: &'static str,
        size_of: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<CString, NvrtcError> {
        let mut size = 0;
        // SAFETY: the program lives, `size` takes one number.
        let answer = unsafe { size_of(self.raw, &raw mut size) };
        self.nvrtc.check(call, answer, "")?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: the library writes as many bytes as it has just said.
        let answer = unsafe { get(self.raw, bytes.as_mut_ptr().cast()) };
        self.nvrtc.check(call, answer, "")?;
        bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(size));
        CString::new(bytes).map_err(|_| NvrtcError::Text { what: "answer of NVRTC" })
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made in `compile`, destroyed only here.
            let _ = unsafe { (self.nvrtc.0.functions.destroy)(&raw mut self.raw) };
        }
    }
}
