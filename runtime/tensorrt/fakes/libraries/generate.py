"""Writes the virtual tables of the fake libraries, `abi_*.rs`, from the published descriptions of the interface.

    python3 generate.py FOLDER_WITH_abi-*.json

Every entry of every class that a fake serves is named, also those that the binding must not call: a call of
one of these stops the test.
"""

import json
import pathlib
import sys

VERSIONS = ["8.6", "10.3", "10.15", "11.1", "11.4"]
CLASSES = ["VRuntime", "VCudaEngine", "VExecutionContext", "VBuilder", "VBuilderConfig", "VNetworkDefinition",
           "VTensor", "VOptimizationProfile", "VHostMemory", "VTimingCache", "VEngineInspector"]
INTERFACES = ["ILogger", "IErrorRecorder", "IParser", "IParserError"]


def table(names):
    return "&[" + ", ".join(f'"{name}"' for name in names) + "]"


def interface(description):
    names = ["?"] * description["vtable_slots"]
    for name, entry in description["slots"].items():
        names[entry["slot"]] = name
    names[description["complete_dtor_slot"]] = "dtor_complete"
    names[description["deleting_dtor_slot"]] = "dtor_deleting"
    return names


folder = pathlib.Path(sys.argv[1])
for version in VERSIONS:
    described = json.loads((folder / f"abi-{version}.json").read_text())
    lines = [f"// Made by generate.py from the interface of TensorRT {described['version']}; do not edit.", ""]
    lines += [f"pub const VERSION: i32 = {described['abi_argument']};",
              f"pub const DIMS_BYTES: usize = {described['structs']['Dims']['size']};"]
    for name in CLASSES:
        lines.append(f"pub const {name.upper()}: &[&str] = {table(described['classes'][name]['slot_names'])};")
    for name in INTERFACES:
        lines.append(f"pub const {name.upper()}: &[&str] = {table(interface(described['interfaces'][name]))};")
    flags = [(key, value) for key, value in described["enums"]["BuilderFlag"].items()]
    lines.append("pub const BUILDERFLAG: &[(&str, i32)] = &["
                 + ", ".join(f'("{key}", {value})' for key, value in flags) + "];")
    flags = described["enums"]["NetworkDefinitionCreationFlag"]
    lines.append(f"pub const STRONGLY_TYPED_BIT: Option<i32> = "
                 + (f"Some({flags['kSTRONGLY_TYPED']});" if "kSTRONGLY_TYPED" in flags else "None;"))
    out = pathlib.Path(__file__).parent / f"abi_{version.replace('.', '_')}.rs"
    out.write_text("\n".join(lines) + "\n")
