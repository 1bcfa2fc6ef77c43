//! A library that looks like `libnvinfer` and `libnvonnxparser` from outside, and records what is called.
//!
//! Built for one version of the interface: `FAKE_ABI` names its table of entries, and `fake_v8`, `fake_v10` or
//! `fake_v11` chooses the signatures. Shares nothing with the binding: virtual tables are laid out by the names of
//! their entries. An entry that is not served here stops the process.
#![allow(clippy::all, unsafe_op_in_unsafe_fn, dead_code)]

mod network;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::io::Write as _;
use std::sync::{Arc, Mutex};

mod abi {
    include!(env!("FAKE_ABI"));
}

type P = *mut c_void;
type S = *const c_char;

// ---- state and control ----

struct State {
    calls: Vec<String>,
    settings: BTreeMap<String, i64>,
    live: BTreeMap<&'static str, i64>,
}
static STATE: Mutex<State> = Mutex::new(State { calls: Vec::new(), settings: BTreeMap::new(), live: BTreeMap::new() });

fn record(call: String) {
    // Of a child process nobody can ask for the calls.
    if let Some(path) = std::env::var_os("FAKE_TENSORRT_CALLS") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{call}").unwrap();
    }
    STATE.lock().unwrap().calls.push(call);
}
/// As it was set, else as `FAKE_TENSORRT` has it: `name=value,name=value`.
fn setting(name: &str, default: i64) -> i64 {
    if let Some(&value) = STATE.lock().unwrap().settings.get(name) {
        return value;
    }
    let given = std::env::var("FAKE_TENSORRT").unwrap_or_default();
    let mut pairs = given.split(',').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map_or(default, |(_, value)| value.parse().unwrap())
}
fn live(kind: &'static str, change: i64) -> i64 {
    let mut state = STATE.lock().unwrap();
    let count = state.live.entry(kind).or_default();
    *count += change;
    *count
}
unsafe fn text(s: S) -> String {
    CStr::from_ptr(s).to_str().unwrap().to_owned()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fake_set(name: S, value: i64) {
    STATE.lock().unwrap().settings.insert(text(name), value);
}
/// Hands over the calls so far, a line each, and forgets them.
#[unsafe(no_mangle)]
extern "C" fn fake_take_calls() -> *mut c_char {
    CString::new(std::mem::take(&mut STATE.lock().unwrap().calls).join("\n")).unwrap().into_raw()
}
#[unsafe(no_mangle)]
extern "C" fn fake_live_objects() -> i64 {
    STATE.lock().unwrap().live.values().sum()
}

// ---- objects ----

extern "C" fn not_served() {
    eprintln!("an entry of a virtual table was called that the fake does not serve");
    std::process::abort();
}

/// A virtual table with the functions at the entries of their names; `nth` tells overloads apart.
fn table(names: &[&str], serve: &dyn Fn(&str, usize) -> Option<*const ()>) -> *const *const () {
    let mut seen = BTreeMap::<&str, usize>::new();
    let entries: Vec<*const ()> = names
        .iter()
        .map(|name| {
            let nth = seen.entry(name).or_default();
            let function = serve(name, *nth).unwrap_or(not_served as *const ());
            *nth += 1;
            function
        })
        .collect();
    Vec::leak(entries).as_ptr()
}

#[repr(C)]
struct Public {
    table: *const *const (),
    implementation: P,
}
#[repr(C)]
struct Implementation<T> {
    table: *const *const (),
    data: T,
}
/// As in the real library, the public object is a part of a larger one, so that freeing its address is a mistake.
#[repr(C)]
struct Whole<T> {
    before: [u64; 71],
    public: Public,
    implementation: Implementation<T>,
    kind: &'static str,
    recorder: P,
}

fn make<T>(
    kind: &'static str,
    names: &[&str],
    data: T,
    serve: &dyn Fn(&str, usize) -> Option<*const ()>,
) -> P {
    live(kind, 1);
    let own = table(&["dtor_complete", "dtor_deleting", "other"], &|name, _| {
        (name == "dtor_deleting").then_some(destroy::<T> as *const ())
    });
    let set_recorder = |name: &str, nth: usize| match name {
        "setErrorRecorder" => Some(set_error_recorder::<T> as *const ()),
        _ => serve(name, nth),
    };
    let whole = Box::leak(Box::new(Whole {
        before: [0xA5A5_A5A5_A5A5_A5A5; 71],
        public: Public { table: own, implementation: std::ptr::null_mut() },
        implementation: Implementation { table: table(names, &set_recorder), data },
        kind,
        recorder: std::ptr::null_mut(),
    }));
    whole.public.implementation = (&raw mut whole.implementation).cast();
    (&raw mut whole.public).cast()
}
unsafe fn whole_of_public<'a, T>(public: P) -> &'a mut Whole<T> {
    &mut *public.cast::<u8>().sub(std::mem::offset_of!(Whole<T>, public)).cast::<Whole<T>>()
}
unsafe fn whole<'a, T>(implementation: P) -> &'a mut Whole<T> {
    &mut *implementation.cast::<u8>().sub(std::mem::offset_of!(Whole<T>, implementation)).cast::<Whole<T>>()
}
unsafe fn data<'a, T>(implementation: P) -> &'a mut T {
    &mut whole::<T>(implementation).implementation.data
}

unsafe extern "C" fn destroy<T>(public: P) {
    let whole = whole_of_public::<T>(public);
    record(format!("destroy {}", whole.kind));
    live(whole.kind, -1);
    let needed_by: &[&str] = match whole.kind {
        "VRuntime" => &["VCudaEngine"],
        "VCudaEngine" => &["VExecutionContext"],
        "VBuilder" => &["VNetworkDefinition", "VBuilderConfig", "VTimingCache"],
        _ => &[],
    };
    for kind in needed_by {
        if live(kind, 0) > 0 {
            record(format!("VIOLATION: {} destroyed before a {kind}", whole.kind));
        }
    }
    if !whole.recorder.is_null() {
        let references: i32 = recorder_method::<unsafe extern "C" fn(P) -> i32>(whole.recorder, "decRefCount")(whole.recorder);
        assert_eq!(references, 0);
    }
    drop(Box::from_raw(whole));
}
unsafe extern "C" fn set_error_recorder<T>(this: P, recorder: P) {
    let whole = whole::<T>(this);
    record(format!("{}.setErrorRecorder", whole.kind));
    whole.recorder = recorder;
    check_callback(recorder, "IErrorRecorder", abi::IERRORRECORDER);
    assert_eq!(recorder_method::<unsafe extern "C" fn(P) -> i32>(recorder, "incRefCount")(recorder), 1);
}

// ---- calling back ----

unsafe fn entry<F: Copy>(object: P, names: &[&str], name: &str) -> F {
    let at = names.iter().position(|&entry| entry == name).unwrap();
    std::mem::transmute_copy(&*object.cast::<*const *const ()>().read().add(at))
}
unsafe fn recorder_method<F: Copy>(recorder: P, name: &str) -> F {
    entry(recorder, abi::IERRORRECORDER, name)
}
#[repr(C)]
struct InterfaceInfo {
    kind: S,
    major: i32,
    minor: i32,
}
/// The words before the table, and the two methods by which newer versions ask what an object is.
unsafe fn check_callback(object: P, kind: &str, names: &[&str]) {
    let table = object.cast::<*const isize>().read();
    assert_eq!(*table.sub(2), 0, "offset to top");
    if names.contains(&"getInterfaceInfo") {
        assert_eq!(entry::<unsafe extern "C" fn(P) -> i32>(object, names, "getAPILanguage")(object), 0);
        let info = entry::<unsafe extern "C" fn(P) -> InterfaceInfo>(object, names, "getInterfaceInfo")(object);
        assert_eq!((text(info.kind).as_str(), info.major, info.minor), (kind, 1, 0));
    }
}
unsafe fn log(logger: P, severity: i32, message: &str) {
    let message = CString::new(message).unwrap();
    entry::<unsafe extern "C" fn(P, i32, S)>(logger, abi::ILOGGER, "log")(logger, severity, message.as_ptr());
}
unsafe fn report(recorder: P, code: i32, message: &str) {
    let message = CString::new(message).unwrap();
    recorder_method::<unsafe extern "C" fn(P, i32, S) -> bool>(recorder, "reportError")(recorder, code, message.as_ptr());
    let count = recorder_method::<unsafe extern "C" fn(P) -> i32>(recorder, "getNbErrors")(recorder);
    let last = recorder_method::<unsafe extern "C" fn(P, i32) -> S>(recorder, "getErrorDesc")(recorder, count - 1);
    assert_eq!(text(last), message.to_str().unwrap());
    assert_eq!(recorder_method::<unsafe extern "C" fn(P, i32) -> i32>(recorder, "getErrorCode")(recorder, count - 1), code);
    assert!(!recorder_method::<unsafe extern "C" fn(P) -> bool>(recorder, "hasOverflowed")(recorder));
}

// ---- shapes ----

#[cfg(fake_v8)]
type Size = i32;
#[cfg(not(fake_v8))]
type Size = i64;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Dims {
    count: i32,
    sizes: [Size; 8],
}
const _: () = assert!(size_of::<Dims>() == abi::DIMS_BYTES);

fn dims(shape: &[i64]) -> Dims {
    let mut sizes = [7; 8];
    for (to, from) in sizes.iter_mut().zip(shape) {
        *to = *from as Size;
    }
    Dims { count: shape.len() as i32, sizes }
}
fn shape(dims: &Dims) -> Vec<i64> {
    dims.sizes[..dims.count as usize].iter().map(|&size| size as i64).collect()
}

// ---- functions of the library ----

#[unsafe(no_mangle)]
extern "C" fn getInferLibVersion() -> i32 {
    setting("version", abi::VERSION as i64) as i32
}
/// The parser counts its own versions: 0.1.0, and 0.2.0 with TensorRT 11.
const PARSER_INTERFACE: i64 = if cfg!(fake_v11) { 200 } else { 100 };
#[unsafe(no_mangle)]
extern "C" fn getNvOnnxParserVersion() -> i32 {
    setting("parser_version", PARSER_INTERFACE) as i32
}

struct Runtime {
    logger: P,
    dla: i32,
}
#[unsafe(no_mangle)]
unsafe extern "C" fn createInferRuntime_INTERNAL(logger: P, version: i32) -> P {
    record(format!("createInferRuntime {version}"));
    check_callback(logger, "ILogger", abi::ILOGGER);
    log(logger, 3, "the fake is asked for a runtime");
    match setting("runtime_address", -1) {
        -1 => {}
        address => {
            log(logger, 1, "CUDA initialization failure with error: 35");
            return address as usize as P;
        }
    }
    make("VRuntime", abi::VRUNTIME, Runtime { logger, dla: -1 }, &|name, nth| {
        Some(match (name, nth) {
            ("deserializeCudaEngine", 0) => deserialize as *const (),
            ("setDLACore", _) => runtime_set_dla as *const (),
            ("getNbDLACores", _) => dla_cores as *const (),
            ("setEngineHostCodeAllowed", _) => host_code as *const (),
            _ => return None,
        })
    })
}
extern "C" fn dla_cores(_this: P) -> i32 {
    setting("dla_cores", 0) as i32
}
unsafe extern "C" fn runtime_set_dla(this: P, core: i32) {
    record(format!("VRuntime.setDLACore {core}"));
    data::<Runtime>(this).dla = core;
}
extern "C" fn host_code(_this: P, allowed: bool) {
    record(format!("setEngineHostCodeAllowed {allowed}"));
}

unsafe fn read_plan(this: P, blob: *const u8, size: usize) -> P {
    let plan = std::slice::from_raw_parts(blob, size);
    record(format!("deserializeCudaEngine {size}"));
    if setting("no_memory:plan", 0) == 1 {
        report(whole::<Runtime>(this).recorder, 2, NO_MEMORY);
        return std::ptr::null_mut();
    }
    if !plan.ends_with(b"fake plan") || setting("no_plan", 0) == 1 {
        report(whole::<Runtime>(this).recorder, 3, "the plan is not for this device");
        log(data::<Runtime>(this).logger, 1, "logged: the plan is not for this device");
        return std::ptr::null_mut();
    }
    let body = &plan[28..plan.len() - b"fake plan".len()];
    let Some(body) = body.strip_prefix(b"onnx") else { return engine(Engine::plain()) };
    let (sizes, model) = body.split_at(32);
    let size = sizes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    engine(Engine::of(network::Network::read(model).unwrap(), size))
}
/// The words of TensorRT's allocator.
const NO_MEMORY: &str = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)";
#[cfg(fake_v8)]
unsafe extern "C" fn deserialize(this: P, blob: *const u8, size: usize, factory: P) -> P {
    assert!(factory.is_null());
    read_plan(this, blob, size)
}
#[cfg(not(fake_v8))]
unsafe extern "C" fn deserialize(this: P, blob: *const u8, size: usize) -> P {
    read_plan(this, blob, size)
}

// ---- engine: `image` [n, 3, h, w] -> `embedding` [n, 48, h / 8, w / 8] ----

const RANGE: [[i64; 4]; 3] = [[1, 3, 64, 64], [1, 3, 480, 832], [8, 3, 1088, 1920]];

/// The network of an ONNX model at one size; without one, the output is twice the first number of the input.
#[derive(Clone)]
struct Engine {
    network: Option<Arc<network::Network>>,
    size: Vec<i64>,
    names: [CString; 2],
}
impl Engine {
    fn plain() -> Self {
        Self { network: None, size: vec![-1, 3, -1, -1], names: [c"image", c"embedding"].map(CStr::to_owned) }
    }
    fn of(network: network::Network, size: Vec<i64>) -> Self {
        let names = [&network.input, &network.output].map(|name| CString::new(name.as_str()).unwrap());
        Self { network: Some(Arc::new(network)), size, names }
    }
    fn is_input(&self, name: &str) -> bool {
        self.names[0].to_str().unwrap() == name
    }
    fn shape(&self, name: &str, input: &[i64]) -> Vec<i64> {
        match &self.network {
            _ if self.is_input(name) => input.to_vec(),
            Some(network) => network.output_shape(input),
            None if input[2] < 0 => vec![input[0], 48, -1, -1],
            None => vec![input[0], 48, input[2] / 8, input[3] / 8],
        }
    }
}
fn engine(engine: Engine) -> P {
    make("VCudaEngine", abi::VCUDAENGINE, engine, &|name, _| {
        Some(match name {
            "getNbIOTensors" => engine_tensors as *const (),
            "getIOTensorName" => engine_tensor_name as *const (),
            "getNbOptimizationProfiles" => engine_profiles as *const (),
            "getNbLayers" => layers as *const (),
            "getName" => engine_name as *const (),
            "getTensorIOMode" => tensor_mode as *const (),
            "getTensorDataType" => tensor_type as *const (),
            "getTensorLocation" => tensor_location as *const (),
            "getTensorFormat" => tensor_format as *const (),
            "getTensorShape" => engine_shape as *const (),
            "getProfileShape" => profile_shape as *const (),
            "createExecutionContext" => create_context as *const (),
            "createEngineInspector" => create_inspector as *const (),
            #[cfg(not(fake_v11))]
            "getDeviceMemorySize" => device_memory as *const (),
            #[cfg(fake_v11)]
            "getDeviceMemorySizeV2" => device_memory as *const (),
            _ => return None,
        })
    })
}
extern "C" fn device_memory(_: P) -> i64 {
    5 << 30
}
struct Inspector;
extern "C" fn create_inspector(_: P) -> P {
    make("VEngineInspector", abi::VENGINEINSPECTOR, Inspector, &|name, _| {
        (name == "getEngineInformation").then_some(engine_information as *const ())
    })
}
extern "C" fn engine_information(_: P, format: i32) -> S {
    assert_eq!(format, 1);
    if setting("no_information", 0) == 1 { c"".as_ptr() } else { cr#"{"Layers": ["conv1"]}"#.as_ptr() }
}
extern "C" fn engine_tensors(_: P) -> i32 {
    setting("tensors", 2) as i32
}
unsafe extern "C" fn engine_profiles(this: P) -> i32 {
    if data::<Engine>(this).network.is_some() { 1 } else { 2 }
}
extern "C" fn layers(_: P) -> i32 {
    42
}
extern "C" fn engine_name(_: P) -> S {
    c"fake network".as_ptr()
}
unsafe extern "C" fn engine_tensor_name(this: P, index: i32) -> S {
    data::<Engine>(this).names[index as usize].as_ptr()
}
unsafe extern "C" fn tensor_mode(this: P, name: S) -> i32 {
    if data::<Engine>(this).is_input(&text(name)) { 1 } else { 2 }
}
unsafe extern "C" fn tensor_type(_: P, name: S) -> i32 {
    setting(&format!("type:{}", text(name)), 0) as i32
}
unsafe extern "C" fn tensor_location(_: P, name: S) -> i32 {
    setting(&format!("location:{}", text(name)), 0) as i32
}
unsafe extern "C" fn tensor_format(_: P, name: S) -> i32 {
    setting(&format!("format:{}", text(name)), 0) as i32
}
unsafe extern "C" fn engine_shape(this: P, name: S) -> Dims {
    let engine = data::<Engine>(this);
    dims(&engine.shape(&text(name), &engine.size))
}
unsafe extern "C" fn profile_shape(this: P, name: S, profile: i32, which: i32) -> Dims {
    let engine = data::<Engine>(this);
    assert!(engine.is_input(&text(name)));
    if engine.network.is_some() {
        return dims(&engine.size);
    }
    let mut shape = RANGE[which as usize];
    // The second profile is for one image at a time.
    if profile == 1 {
        shape[0] = 1;
    }
    dims(&shape)
}

// ---- context ----

struct Context {
    engine: Engine,
    image: Option<Vec<i64>>,
    addresses: BTreeMap<String, usize>,
}
unsafe fn new_context(this: P, what: &str) -> P {
    record(format!("createExecutionContext{what}"));
    if setting("no_context", 0) == 1 {
        return std::ptr::null_mut();
    }
    if setting("no_memory:context", 0) == 1 {
        report(whole::<Engine>(this).recorder, 2, NO_MEMORY);
        return std::ptr::null_mut();
    }
    let engine = data::<Engine>(this).clone();
    let context = Context { engine, image: None, addresses: BTreeMap::new() };
    make("VExecutionContext", abi::VEXECUTIONCONTEXT, context, &|name, _| {
        Some(match name {
            "setOptimizationProfileAsync" => set_profile as *const (),
            "setInputShape" => set_input_shape as *const (),
            "getTensorShape" => context_shape as *const (),
            "setTensorAddress" => set_address as *const (),
            "enqueueV3" => enqueue as *const (),
            _ => return None,
        })
    })
}
#[cfg(fake_v8)]
unsafe extern "C" fn create_context(this: P) -> P {
    new_context(this, "")
}
#[cfg(not(fake_v8))]
unsafe extern "C" fn create_context(this: P, strategy: i32) -> P {
    new_context(this, &format!(" {strategy}"))
}
unsafe extern "C" fn set_profile(this: P, profile: i32, stream: P) -> bool {
    assert!(!stream.is_null());
    record(format!("setOptimizationProfileAsync {profile}"));
    data::<Context>(this).image = None;
    true
}
unsafe extern "C" fn set_input_shape(this: P, name: S, given: *const Dims) -> bool {
    let given = shape(&*given);
    record(format!("setInputShape {} {given:?}", text(name)));
    data::<Context>(this).image = Some(given);
    true
}
fn shape_of(context: &Context, name: &str) -> Vec<i64> {
    let engine = &context.engine;
    engine.shape(name, context.image.as_ref().unwrap_or(&engine.size))
}
unsafe extern "C" fn context_shape(this: P, name: S) -> Dims {
    dims(&shape_of(data::<Context>(this), &text(name)))
}
unsafe extern "C" fn set_address(this: P, name: S, address: P) -> bool {
    record(format!("setTensorAddress {}", text(name)));
    data::<Context>(this).addresses.insert(text(name), address as usize);
    true
}
/// The beginning of a stream of the fake driver, by which other libraries put work into it.
#[repr(C)]
struct Stream {
    magic: u64,
    enqueue: extern "C" fn(P, extern "C" fn(P), P, extern "C" fn(P)) -> i32,
}
struct Run {
    input: *const f32,
    output: *mut f32,
    elements: usize,
    network: Option<Arc<network::Network>>,
    shape: Vec<i64>,
}
/// Device memory of the fake driver is host memory.
extern "C" fn run(data: P) {
    unsafe {
        let run = &*data.cast::<Run>();
        let output = std::slice::from_raw_parts_mut(run.output, run.elements);
        match &run.network {
            Some(network) => {
                let elements: i64 = run.shape.iter().product();
                network.run(std::slice::from_raw_parts(run.input, elements as usize), &run.shape, output);
            }
            None => output.fill(2.0 * *run.input),
        }
    }
}
extern "C" fn free_run(data: P) {
    drop(unsafe { Box::from_raw(data.cast::<Run>()) });
}
unsafe extern "C" fn enqueue(this: P, stream: P) -> bool {
    assert!(!stream.is_null());
    record("enqueueV3".to_owned());
    let recorder = whole::<Context>(this).recorder;
    if setting("no_enqueue", 0) == 1 {
        report(recorder, 7, "a kernel could not be launched");
        return false;
    }
    let context = data::<Context>(this);
    let [input, output] = context.engine.names.each_ref().map(|name| name.to_str().unwrap());
    let elements: i64 = shape_of(context, output).iter().product();
    let data = Box::into_raw(Box::new(Run {
        input: context.addresses[input] as *const f32,
        output: context.addresses[output] as *mut f32,
        elements: elements as usize,
        network: context.engine.network.clone(),
        shape: shape_of(context, input),
    }));
    let head = &*stream.cast::<Stream>();
    assert_eq!(head.magic, 0x6661_6B65_5F63_7564, "a stream of the fake driver");
    (head.enqueue)(stream, run, data.cast(), free_run) == 0
}

// ---- builder ----

struct Builder {
    logger: P,
}
#[cfg(not(fake_lean))]
#[unsafe(no_mangle)]
unsafe extern "C" fn createInferBuilder_INTERNAL(logger: P, version: i32) -> P {
    record(format!("createInferBuilder {version}"));
    check_callback(logger, "ILogger", abi::ILOGGER);
    make("VBuilder", abi::VBUILDER, Builder { logger }, &|name, _| {
        Some(match name {
            "getNbDLACores" => dla_cores as *const (),
            "createNetworkV2" => create_network as *const (),
            "createBuilderConfig" => create_config as *const (),
            "createOptimizationProfile" => create_profile as *const (),
            "buildSerializedNetwork" => build as *const (),
            _ => return None,
        })
    })
}

struct Network {
    name: String,
    /// The model that was parsed, and its network.
    model: Vec<u8>,
    parsed: Option<network::Network>,
}
extern "C" fn create_network(_: P, flags: u32) -> P {
    match abi::STRONGLY_TYPED_BIT {
        Some(bit) => assert_eq!(flags, 1 << bit, "strongly typed"),
        None => assert_eq!(flags, 1, "explicit batch"),
    }
    record("createNetworkV2".to_owned());
    make("VNetworkDefinition", abi::VNETWORKDEFINITION, Network { name: String::new(), model: Vec::new(), parsed: None }, &|name, _| {
        Some(match name {
            "setName" => network_set_name as *const (),
            "getNbLayers" => network_layers as *const (),
            "getNbInputs" | "getNbOutputs" => one as *const (),
            "getInput" => network_input as *const (),
            "getOutput" => network_output as *const (),
            _ => return None,
        })
    })
}
extern "C" fn one(_: P) -> i32 {
    1
}
unsafe extern "C" fn network_set_name(this: P, name: S) {
    data::<Network>(this).name = text(name);
}
unsafe extern "C" fn network_layers(this: P) -> i32 {
    data::<Network>(this).name.len() as i32
}
struct Tensor(CString, Vec<i64>, i32);
fn tensor(tensor: Tensor) -> P {
    let public = make("VTensor", abi::VTENSOR, tensor, &|name, _| {
        Some(match name {
            "getName" => tensor_name as *const (),
            "getType" => network_tensor_type as *const (),
            "getDimensions" => tensor_dims as *const (),
            _ => return None,
        })
    });
    // It belongs to the network: whoever destroys it makes the count wrong.
    live("VTensor", -1);
    public
}
unsafe extern "C" fn network_input(this: P, index: i32) -> P {
    assert_eq!(index, 0);
    tensor(match &data::<Network>(this).parsed {
        Some(network) => Tensor(CString::new(network.input.as_str()).unwrap(), network.declared.clone(), 0),
        None => Tensor(c"image".to_owned(), vec![-1, 3, -1, -1], 1),
    })
}
unsafe extern "C" fn network_output(this: P, index: i32) -> P {
    assert_eq!(index, 0);
    tensor(match &data::<Network>(this).parsed {
        Some(network) => {
            Tensor(CString::new(network.output.as_str()).unwrap(), network.output_shape(&network.declared), 0)
        }
        None => Tensor(c"embedding".to_owned(), vec![-1, 48, -1, -1], 1),
    })
}
unsafe extern "C" fn tensor_name(this: P) -> S {
    data::<Tensor>(this).0.as_ptr()
}
unsafe extern "C" fn network_tensor_type(this: P) -> i32 {
    data::<Tensor>(this).2
}
unsafe extern "C" fn tensor_dims(this: P) -> Dims {
    dims(&data::<Tensor>(this).1)
}

#[derive(Default)]
struct Config {
    level: i32,
    hardware: i32,
    dla: i32,
    /// The usual shape of the input, of the profile that was added.
    size: Option<Vec<i64>>,
}
extern "C" fn create_config(_: P) -> P {
    record("createBuilderConfig".to_owned());
    make("VBuilderConfig", abi::VBUILDERCONFIG, Config::default(), &|name, _| {
        Some(match name {
            "setFlag" => set_flag as *const (),
            "clearFlag" => clear_flag as *const (),
            "setDLACore" => config_set_dla as *const (),
            "getDLACore" => config_dla as *const (),
            "setDefaultDeviceType" => set_device as *const (),
            "addOptimizationProfile" => add_profile as *const (),
            "createTimingCache" => create_cache as *const (),
            "setTimingCache" => set_cache as *const (),
            "setMemoryPoolLimit" => set_limit as *const (),
            "setBuilderOptimizationLevel" => set_level as *const (),
            "getBuilderOptimizationLevel" => level as *const (),
            "setProfilingVerbosity" => set_verbosity as *const (),
            "setHardwareCompatibilityLevel" => set_hardware as *const (),
            "getHardwareCompatibilityLevel" => hardware as *const (),
            _ => return None,
        })
    })
}
fn flag_name(flag: i32) -> &'static str {
    abi::BUILDERFLAG.iter().find(|(_, value)| *value == flag).unwrap().0
}
extern "C" fn set_flag(_: P, flag: i32) {
    record(format!("setFlag {}", flag_name(flag)));
}
extern "C" fn clear_flag(_: P, flag: i32) {
    record(format!("clearFlag {}", flag_name(flag)));
}
unsafe extern "C" fn config_set_dla(this: P, core: i32) {
    record(format!("VBuilderConfig.setDLACore {core}"));
    data::<Config>(this).dla = core;
}
unsafe extern "C" fn config_dla(this: P) -> i32 {
    data::<Config>(this).dla
}
extern "C" fn set_device(_: P, device: i32) {
    record(format!("setDefaultDeviceType {device}"));
}
extern "C" fn set_limit(_: P, pool: i32, bytes: usize) {
    record(format!("setMemoryPoolLimit {pool} {bytes}"));
}
unsafe extern "C" fn set_level(this: P, level: i32) {
    record(format!("setBuilderOptimizationLevel {level}"));
    data::<Config>(this).level = level;
}
unsafe extern "C" fn level(this: P) -> i32 {
    data::<Config>(this).level
}
extern "C" fn set_verbosity(_: P, verbosity: i32) {
    record(format!("setProfilingVerbosity {verbosity}"));
}
unsafe extern "C" fn set_hardware(this: P, hardware: i32) {
    record(format!("setHardwareCompatibilityLevel {hardware}"));
    data::<Config>(this).hardware = hardware;
}
unsafe extern "C" fn hardware(this: P) -> i32 {
    data::<Config>(this).hardware
}

#[derive(Default)]
struct Profile {
    shapes: [Vec<i64>; 3],
}
extern "C" fn create_profile(_: P) -> P {
    record("createOptimizationProfile".to_owned());
    let public = make("VOptimizationProfile", abi::VOPTIMIZATIONPROFILE, Profile::default(), &|name, _| {
        Some(match name {
            "setDimensions" => set_dimensions as *const (),
            "isValid" => is_valid as *const (),
            _ => return None,
        })
    });
    // It belongs to the builder.
    live("VOptimizationProfile", -1);
    public
}
unsafe fn keep_dimensions(this: P, name: S, which: i32, given: &Dims) -> bool {
    record(format!("setDimensions {} {which} {:?}", text(name), shape(given)));
    data::<Profile>(this).shapes[which as usize] = shape(given);
    true
}
#[cfg(fake_v8)]
unsafe extern "C" fn set_dimensions(this: P, name: S, which: i32, given: Dims) -> bool {
    keep_dimensions(this, name, which, &given)
}
#[cfg(not(fake_v8))]
unsafe extern "C" fn set_dimensions(this: P, name: S, which: i32, given: *const Dims) -> bool {
    keep_dimensions(this, name, which, &*given)
}
unsafe extern "C" fn is_valid(this: P) -> bool {
    data::<Profile>(this).shapes.iter().all(|shape| !shape.is_empty())
}
unsafe extern "C" fn add_profile(this: P, profile: P) -> i32 {
    let profile = whole_of_public::<Profile>(profile);
    record(format!("addOptimizationProfile {:?}", profile.implementation.data.shapes));
    data::<Config>(this).size = Some(profile.implementation.data.shapes[1].clone());
    0
}

struct Cache(Vec<u8>);
unsafe extern "C" fn create_cache(_: P, blob: *const u8, size: usize) -> P {
    let bytes = if size == 0 { b"cache:".to_vec() } else { std::slice::from_raw_parts(blob, size).to_vec() };
    record(format!("createTimingCache {size}"));
    if !bytes.starts_with(b"cache:") {
        return std::ptr::null_mut();
    }
    make("VTimingCache", abi::VTIMINGCACHE, Cache(bytes), &|name, _| {
        Some(match name {
            "serialize" => serialize_cache as *const (),
            "combine" => combine as *const (),
            _ => return None,
        })
    })
}
unsafe extern "C" fn set_cache(_: P, cache: P, ignore: bool) -> bool {
    assert!(!ignore);
    record(format!("setTimingCache {}", whole_of_public::<Cache>(cache).implementation.data.0.len()));
    true
}
unsafe extern "C" fn serialize_cache(this: P) -> P {
    host_memory(data::<Cache>(this).0.clone())
}
unsafe extern "C" fn combine(this: P, other: P, ignore: bool) -> bool {
    assert!(!ignore);
    data::<Cache>(this).0.extend(&whole_of_public::<Cache>(other).implementation.data.0);
    true
}

struct Memory(Vec<u8>);
fn host_memory(bytes: Vec<u8>) -> P {
    make("VHostMemory", abi::VHOSTMEMORY, Memory(bytes), &|name, _| {
        Some(match name {
            "data" => memory_data as *const (),
            "size" => memory_size as *const (),
            _ => return None,
        })
    })
}
unsafe extern "C" fn memory_data(this: P) -> *const u8 {
    data::<Memory>(this).0.as_ptr()
}
unsafe extern "C" fn memory_size(this: P) -> usize {
    data::<Memory>(this).0.len()
}

unsafe extern "C" fn build(this: P, network: P, config: P) -> P {
    record(format!(
        "buildSerializedNetwork {} {}",
        whole_of_public::<Network>(network).kind,
        whole_of_public::<Config>(config).kind
    ));
    log(data::<Builder>(this).logger, 2, "building takes a while");
    if setting("no_build", 0) == 1 {
        report(whole::<Builder>(this).recorder, 10, "no kernel for node conv1");
        return std::ptr::null_mut();
    }
    if setting("no_memory:build", 0) == 1 {
        report(whole::<Builder>(this).recorder, 2, NO_MEMORY);
        return std::ptr::null_mut();
    }
    let number = getInferLibVersion() as i64;
    let version = if number < 10_000 {
        [number / 1000, number / 100 % 10, number % 100]
    } else {
        [number / 10_000, number / 100 % 100, number % 100]
    };
    let mut plan = b"ftrt".to_vec();
    plan.resize(24, 0);
    plan.extend(version.map(|part| part as u8));
    plan.push(1);
    let network = &whole_of_public::<Network>(network).implementation.data;
    if let Some(parsed) = &network.parsed {
        let size = whole_of_public::<Config>(config).implementation.data.size.as_ref();
        plan.extend(b"onnx");
        plan.extend(size.unwrap_or(&parsed.declared).iter().flat_map(|size| size.to_le_bytes()));
        plan.extend(&network.model);
    }
    plan.extend(b"fake plan");
    host_memory(plan)
}

// ---- parser ----

#[repr(C)]
struct Parser {
    table: *const *const (),
    network: P,
    failed: bool,
    error: ParserError,
}
#[repr(C)]
struct ParserError {
    table: *const *const (),
}
#[unsafe(no_mangle)]
unsafe extern "C" fn createNvOnnxParser_INTERNAL(network: P, logger: P, version: i32) -> P {
    record(format!("createNvOnnxParser {version}"));
    assert_eq!(version as i64, PARSER_INTERFACE);
    check_callback(logger, "ILogger", abi::ILOGGER);
    live("IParser", 1);
    let error = ParserError {
        table: table(abi::IPARSERERROR, &|name, _| {
            Some(match name {
                "code" => error_code as *const (),
                "node" => error_node as *const (),
                "desc" => error_words as *const (),
                "nodeName" => error_name as *const (),
                _ => return None,
            })
        }),
    };
    let parser = Parser {
        table: table(abi::IPARSER, &|name, _| {
            Some(match name {
                "parse" => parse as *const (),
                "parseFromFile" => parse_file as *const (),
                "getNbErrors" => parser_errors as *const (),
                "getError" => parser_error as *const (),
                "dtor_deleting" => destroy_parser as *const (),
                _ => return None,
            })
        }),
        network,
        failed: false,
        error,
    };
    Box::into_raw(Box::new(parser)).cast()
}
unsafe extern "C" fn destroy_parser(this: P) {
    record("destroy IParser".to_owned());
    live("IParser", -1);
    drop(Box::from_raw(this.cast::<Parser>()));
}
unsafe fn read_model(this: P, model: &[u8]) -> bool {
    let parsed = network::Network::read(model);
    let good = parsed.is_some() || model.starts_with(b"onnx");
    let parser = &mut *this.cast::<Parser>();
    parser.failed = !good;
    if good {
        // By way of the network's own table: shows that the right address was passed.
        let implementation = (*parser.network.cast::<Public>()).implementation;
        entry::<unsafe extern "C" fn(P, S)>(implementation, abi::VNETWORKDEFINITION, "setName")(implementation, c"parsed".as_ptr());
        let network = data::<Network>(implementation);
        network.model = if parsed.is_some() { model.to_vec() } else { Vec::new() };
        network.parsed = parsed;
    }
    good
}
unsafe extern "C" fn parse(this: P, model: *const u8, size: usize, path: S) -> bool {
    assert!(path.is_null());
    record(format!("parse {size}"));
    read_model(this, std::slice::from_raw_parts(model, size))
}
unsafe extern "C" fn parse_file(this: P, path: S, verbosity: i32) -> bool {
    record(format!("parseFromFile {verbosity}"));
    read_model(this, &std::fs::read(text(path)).unwrap_or_default())
}
unsafe extern "C" fn parser_errors(this: P) -> i32 {
    (*this.cast::<Parser>()).failed as i32
}
unsafe extern "C" fn parser_error(this: P, index: i32) -> P {
    assert_eq!(index, 0);
    (&raw mut (*this.cast::<Parser>()).error).cast()
}
extern "C" fn error_code(_: P) -> i32 {
    8
}
extern "C" fn error_node(_: P) -> i32 {
    17
}
extern "C" fn error_words(_: P) -> S {
    c"no such operator".as_ptr()
}
extern "C" fn error_name(_: P) -> S {
    c"/head/conv".as_ptr()
}
