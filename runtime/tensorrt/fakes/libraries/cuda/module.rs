//! Modules and kernels. The image of a module only says which kernels there are; they run from `kernels.so`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

use crate::work::Work;
use crate::{Object, P, State, state};

/// A kernel in `kernels.so`, as `host.h` describes it.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    /// Bytes of each parameter, then a zero. Those of 8 bytes are addresses.
    sizes: *const u8,
    run: extern "C" fn(*const Kernel, *const u32, *const u32, *const *const c_void),
}

pub struct Module {
    image: String,
}

#[derive(Clone, Copy)]
pub struct Function {
    module: u64,
    kernel: &'static Kernel,
}
unsafe impl Send for Function {}

pub struct Launch {
    kernel: &'static Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    /// Each argument in a place of its own, aligned for any of them.
    arguments: Vec<u64>,
}
unsafe impl Send for Launch {}
unsafe impl Sync for Launch {}

impl Launch {
    pub fn run(&self) {
        let pointers: Vec<*const c_void> =
            self.arguments.iter().map(|argument| std::ptr::from_ref(argument).cast()).collect();
        (self.kernel.run)(self.kernel, self.grid.as_ptr(), self.block.as_ptr(), pointers.as_ptr());
    }

    pub fn name(&self) -> String {
        unsafe { CStr::from_ptr(self.kernel.name) }.to_string_lossy().into_owned()
    }
}

#[repr(C)]
struct Place {
    file: *const c_char,
    base: P,
    symbol: *const c_char,
    address: P,
}
unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> P;
    fn dlsym(library: P, symbol: *const c_char) -> P;
    fn dladdr(address: *const c_void, place: *mut Place) -> c_int;
}

/// The kernel of this name, where a `kernels.so` lies beside this library and has it.
fn kernel(name: &CStr) -> Option<&'static Kernel> {
    unsafe {
        let mut place = std::mem::zeroed::<Place>();
        if dladdr(kernel as *const c_void, &raw mut place) == 0 {
            return None;
        }
        let this = Path::new(CStr::from_ptr(place.file).to_str().ok()?);
        let file = CString::new(this.with_file_name("kernels.so").to_str()?).ok()?;
        let library = dlopen(file.as_ptr(), 2); // RTLD_NOW
        if library.is_null() {
            return None;
        }
        let find = dlsym(library, c"host_kernel".as_ptr());
        let find: extern "C" fn(*const c_char) -> *const Kernel = std::mem::transmute(find);
        find(name.as_ptr()).as_ref()
    }
}

/// Errors of the image go into the buffer of `CU_JIT_ERROR_LOG_BUFFER` (5), which has as many bytes as 6 says.
unsafe fn log(count: u32, options: *const i32, values: *mut P, text: &CStr) {
    let find = |option| (0..count as usize).find(|&at| *options.add(at) == option);
    if let (Some(buffer), Some(size)) = (find(5), find(6)) {
        let bytes = text.to_bytes_with_nul();
        let room = (*values.add(size) as usize).min(bytes.len());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), (*values.add(buffer)).cast(), room);
        *values.add(size) = room as P;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut P,
    image: *const c_void,
    count: u32,
    options: *const i32,
    values: *mut P,
) -> i32 {
    let mut state = state();
    let answer = state.outside_capture("cuModuleLoadDataEx");
    if answer != 0 {
        return answer;
    }
    let image = CStr::from_ptr(image.cast()).to_string_lossy().into_owned();
    let first = image.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("//"));
    if !first.is_some_and(|line| line.starts_with(".version")) {
        log(count, options, values, c"ptxas application ptx input, line 1; fatal : Missing .version directive");
        return 218; // CUDA_ERROR_INVALID_PTX
    }
    let handle = state.handle();
    state.objects.insert(handle, Object::Module(Module { image }));
    *module = handle as P;
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuModuleUnload");
    if answer == 0 {
        let object = state.objects.remove(&(module as u64));
        assert!(matches!(object, Some(Object::Module(_))), "unloaded what is no module");
        state.functions.retain(|_, function| function.module != module as u64);
    }
    answer
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut P, module: P, name: *const c_char) -> i32 {
    let mut state = state();
    let answer = state.current("cuModuleGetFunction");
    if answer != 0 {
        return answer;
    }
    let name = CStr::from_ptr(name);
    let Some(Object::Module(loaded)) = state.objects.get(&(module as u64)) else { return 400 };
    let entry = format!(".entry {}(", name.to_str().unwrap());
    let Some(kernel) = loaded.image.contains(&entry).then(|| kernel(name)).flatten() else { return 500 };
    let handle = state.handle();
    state.functions.insert(handle, Function { module: module as u64, kernel });
    *function = handle as P;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: P,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: P,
    arguments: *const *const c_void,
    extra: *const P,
) -> i32 {
    assert!(shared == 0 && extra.is_null());
    let mut state = state();
    let answer = state.current("cuLaunchKernel");
    if answer != 0 {
        return answer;
    }
    let Some(&Function { kernel, .. }) = state.functions.get(&(function as u64)) else { return 400 };
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    let limits = grid.iter().chain(&block).all(|&size| size > 0) && grid_y.max(grid_z) <= 65535 && block_z <= 64;
    if !limits || block.iter().product::<u32>() > 1024 {
        return 1;
    }
    match copy_arguments(&state, kernel, arguments) {
        Some(arguments) => state.enqueue(stream, Work::Launch(Arc::new(Launch { kernel, grid, block, arguments }))),
        None => state.fail(700),
    }
}

/// The arguments, unless one of them is an address outside of live device memory.
unsafe fn copy_arguments(state: &State, kernel: &Kernel, arguments: *const *const c_void) -> Option<Vec<u64>> {
    let mut copies = Vec::new();
    while *kernel.sizes.add(copies.len()) != 0 {
        let (size, from) = (*kernel.sizes.add(copies.len()) as usize, *arguments.add(copies.len()));
        let mut copy = 0_u64;
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut copy).cast(), size);
        if size == 8 && copy != 0 && !state.on_device(copy, 1) {
            return None;
        }
        copies.push(copy);
    }
    Some(copies)
}
