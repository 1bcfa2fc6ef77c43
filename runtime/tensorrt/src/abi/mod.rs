//! The binary interfaces of the TensorRT versions that this crate knows: which entry of which virtual table
//! is which method, and the values of the enumerations that were renumbered.
//!
//! Entries count from the address that an object's first word points to (Itanium C++ ABI). Within one major
//! version classes only grow at their end, so one table serves all minor versions; between major versions nearly
//! everything moves. A version without a table is refused, never guessed.

mod v10;
mod v11;
mod v8_6;

use crate::library::Version;

/// What differs between the major versions beyond the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    V8,
    V10,
    V11,
}

/// Declares a struct of table entries, with the C++ names that its fields stand for.
macro_rules! entries {
    ($(#[$doc:meta])* $name:ident of $class:literal { $($field:ident = $method:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name { $(pub(crate) $field: usize),* }

        #[cfg(test)]
        impl $name {
            const CLASS: &'static str = $class;

            fn named(&self) -> Vec<(&'static str, usize)> {
                vec![$(($method, self.$field)),*]
            }
        }
    };
}

entries!(Runtime of "VRuntime" {
    deserialize = "deserializeCudaEngine",
    set_dla_core = "setDLACore",
    dla_cores = "getNbDLACores",
    set_error_recorder = "setErrorRecorder",
    set_host_code_allowed = "setEngineHostCodeAllowed",
});

entries!(Engine of "VCudaEngine" {
    create_context = "createExecutionContext",
    layers = "getNbLayers",
    name = "getName",
    profiles = "getNbOptimizationProfiles",
    set_error_recorder = "setErrorRecorder",
    tensor_shape = "getTensorShape",
    tensor_type = "getTensorDataType",
    tensor_location = "getTensorLocation",
    tensor_mode = "getTensorIOMode",
    tensor_format = "getTensorFormat",
    profile_shape = "getProfileShape",
    tensors = "getNbIOTensors",
    tensor_name = "getIOTensorName",
    create_inspector = "createEngineInspector",
});

entries!(Context of "VExecutionContext" {
    set_error_recorder = "setErrorRecorder",
    set_profile = "setOptimizationProfileAsync",
    set_input_shape = "setInputShape",
    tensor_shape = "getTensorShape",
    set_tensor_address = "setTensorAddress",
    enqueue = "enqueueV3",
});

entries!(Builder of "VBuilder" {
    create_config = "createBuilderConfig",
    create_network = "createNetworkV2",
    create_profile = "createOptimizationProfile",
    set_error_recorder = "setErrorRecorder",
    build = "buildSerializedNetwork",
    dla_cores = "getNbDLACores",
});

entries!(Config of "VBuilderConfig" {
    set_flag = "setFlag",
    clear_flag = "clearFlag",
    set_dla_core = "setDLACore",
    dla_core = "getDLACore",
    set_default_device = "setDefaultDeviceType",
    add_profile = "addOptimizationProfile",
    create_timing_cache = "createTimingCache",
    set_timing_cache = "setTimingCache",
    set_pool_limit = "setMemoryPoolLimit",
    set_level = "setBuilderOptimizationLevel",
    level = "getBuilderOptimizationLevel",
    set_hardware = "setHardwareCompatibilityLevel",
    hardware = "getHardwareCompatibilityLevel",
    set_verbosity = "setProfilingVerbosity",
});

entries!(Network of "VNetworkDefinition" {
    layers = "getNbLayers",
    inputs = "getNbInputs",
    input = "getInput",
    outputs = "getNbOutputs",
    output = "getOutput",
});

entries!(Tensor of "VTensor" {
    name = "getName",
    shape = "getDimensions",
    data_type = "getType",
});

entries!(Profile of "VOptimizationProfile" {
    set_dimensions = "setDimensions",
    is_valid = "isValid",
});

entries!(HostMemory of "VHostMemory" {
    data = "data",
    size = "size",
});

entries!(TimingCache of "VTimingCache" {
    serialize = "serialize",
    combine = "combine",
});

entries!(Inspector of "VEngineInspector" {
    information = "getEngineInformation",
});

entries!(Parser of "IParser" {
    parse = "parse",
    parse_file = "parseFromFile",
    errors = "getNbErrors",
    error = "getError",
});

entries!(ParserError of "IParserError" {
    code = "code",
    description = "desc",
    node = "node",
});

/// Values of `BuilderFlag`, each the number of a bit.
#[derive(Debug)]
pub(crate) struct BuilderFlags {
    pub(crate) gpu_fallback: i32,
    pub(crate) tf32: i32,
    pub(crate) version_compatible: i32,
    pub(crate) exclude_lean_runtime: i32,
}

/// All that is needed to talk to one major version.
#[derive(Debug)]
pub(crate) struct Abi {
    pub(crate) generation: Generation,
    pub(crate) runtime: Runtime,
    pub(crate) engine: Engine,
    /// Entry of `ICudaEngine::getDeviceMemorySize`, since 11 of its successor `getDeviceMemorySizeV2`.
    pub(crate) engine_device_memory: usize,
    pub(crate) context: Context,
    pub(crate) builder: Builder,
    pub(crate) config: Config,
    pub(crate) network: Network,
    pub(crate) tensor: Tensor,
    pub(crate) profile: Profile,
    pub(crate) host_memory: HostMemory,
    pub(crate) timing_cache: TimingCache,
    pub(crate) inspector: Inspector,
    pub(crate) parser: Parser,
    /// Entry of the parser's destructor that also frees it; its place differs from that of all other classes.
    pub(crate) parser_destroy: usize,
    pub(crate) parser_error: ParserError,
    /// Entry of `IParserError::nodeName`, since 10.
    pub(crate) parser_error_node_name: Option<usize>,
    pub(crate) flags: BuilderFlags,
    /// Bits for `createNetworkV2`: explicit batch for 8, strongly typed since 10.
    pub(crate) network_flags: u32,
}

/// The table of a version, or nothing where there is none.
pub(crate) fn of(version: Version) -> Option<&'static Abi> {
    match (version.major, version.minor) {
        (8, 6) => Some(&v8_6::ABI),
        (10, _) => Some(&v10::ABI),
        (11, _) => Some(&v11::ABI),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    /// Compares every number with the published description of one version.
    fn compare(abi: &Abi, description: &Value) {
        let version = &description["version"];
        macro_rules! check {
            ($group:literal, $methods:literal, $table:expr, $type:ident) => {
                for (method, entry) in $table.named() {
                    let expected = &description[$group][$type::CLASS][$methods][method]["slot"];
                    assert_eq!(
                        expected.as_u64(),
                        Some(entry as u64),
                        "{version} {}::{method}",
                        $type::CLASS
                    );
                }
            };
        }
        check!("classes", "methods", abi.runtime, Runtime);
        check!("classes", "methods", abi.engine, Engine);
        check!("classes", "methods", abi.context, Context);
        check!("classes", "methods", abi.builder, Builder);
        check!("classes", "methods", abi.config, Config);
        check!("classes", "methods", abi.network, Network);
        check!("classes", "methods", abi.tensor, Tensor);
        check!("classes", "methods", abi.profile, Profile);
        check!("classes", "methods", abi.host_memory, HostMemory);
        check!("classes", "methods", abi.timing_cache, TimingCache);
        check!("interfaces", "slots", abi.parser, Parser);
        check!("interfaces", "slots", abi.parser_error, ParserError);
        check!("classes", "methods", abi.inspector, Inspector);
        let memory = if abi.generation == Generation::V11 {
            "getDeviceMemorySizeV2"
        } else {
            "getDeviceMemorySize"
        };
        let memory = &description["classes"]["VCudaEngine"]["methods"][memory]["slot"];
        assert_eq!(memory.as_u64(), Some(abi.engine_device_memory as u64), "{version}");
        let parser = &description["interfaces"]["IParser"];
        assert_eq!(
            parser["deleting_dtor_slot"].as_u64(),
            Some(abi.parser_destroy as u64),
            "{version}"
        );
        let node_name = &description["interfaces"]["IParserError"]["slots"]["nodeName"]["slot"];
        assert_eq!(
            node_name.as_u64(),
            abi.parser_error_node_name.map(|entry| entry as u64),
            "{version}"
        );
        let flags = &description["enums"]["BuilderFlag"];
        for (name, value) in [
            ("kGPU_FALLBACK", abi.flags.gpu_fallback),
            ("kTF32", abi.flags.tf32),
            ("kVERSION_COMPATIBLE", abi.flags.version_compatible),
            ("kEXCLUDE_LEAN_RUNTIME", abi.flags.exclude_lean_runtime),
        ] {
            assert_eq!(flags[name].as_i64(), Some(i64::from(value)), "{version} {name}");
        }
        let flag =
            if abi.generation == Generation::V8 { "kEXPLICIT_BATCH" } else { "kSTRONGLY_TYPED" };
        let bit = description["enums"]["NetworkDefinitionCreationFlag"][flag].as_u64();
        assert_eq!(bit, Some(u64::from(abi.network_flags.trailing_zeros())), "{version} {flag}");
        assert_eq!(abi.network_flags.count_ones(), 1);
    }

    #[test]
    fn the_tables_agree_with_the_published_descriptions() {
        let shared = std::env::var_os("CONCEPTSEG_SHARED").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
            PathBuf::from,
        );
        let folder = shared.join("facts/tensorrt-abi");
        let mut compared = 0;
        for name in ["8.6", "10.3", "10.13", "10.15", "10.16", "11.1", "11.4"] {
            let Ok(text) = std::fs::read_to_string(folder.join(format!("abi-{name}.json"))) else {
                continue;
            };
            let (major, minor) = name.split_once('.').unwrap();
            let version =
                Version { major: major.parse().unwrap(), minor: minor.parse().unwrap(), patch: 0 };
            compare(of(version).unwrap(), &serde_json::from_str(&text).unwrap());
            compared += 1;
        }
        if compared == 0 {
            println!("skipped: no descriptions in {}", folder.display());
        }
    }

    #[test]
    fn versions_without_a_table_are_refused() {
        for (major, minor) in [(0, 0), (7, 1), (8, 5), (8, 7), (9, 2), (12, 0)] {
            assert!(of(Version { major, minor, patch: 0 }).is_none(), "{major}.{minor}");
        }
    }
}
