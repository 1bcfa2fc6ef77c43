"""What has to be there before anything can be compared: our programs, the peers' environment, the
inputs, and a description of the machine."""

import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "third_party/bench"
PYTHON = HOME / "bin/python"
PACKAGES = [
    "matplotlib==3.11.2",
    "numpy==2.4.6",
    "onnxruntime==1.32.0",
    "opencv-python-headless==5.0.0.93",
    "openvino==2026.4.1",
    "pillow==13.0.0",
    "scikit-image==0.26.0",
    "scikit-learn==1.9.1",
    "scipy==1.17.1",
]
TORCH = ["torch==2.11.0", "safetensors==0.8.0"]


class SetupError(Exception):
    """Something that is needed cannot be had."""


def run(command, what, **options):
    """Runs a command to its end and returns its standard output."""
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, text=True, stdout=subprocess.PIPE, **options
    )
    if done.returncode != 0:
        raise SetupError(f"{what} failed; see above")
    return done.stdout


def make_peers(with_torch, note):
    """The environment of the peers."""
    install(PACKAGES + (TORCH if with_torch else []), note)


def install(wanted, note):
    """Brings packages into the environment; does nothing where all are there in these versions."""
    if not PYTHON.exists():
        note("making the environment third_party/bench")
        venv.create(HOME, with_pip=True)
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    there = {line.split("+")[0].lower() for line in run([*pip, "freeze"], "pip").split()}
    missing = [package for package in wanted if package not in there]
    if missing:
        note(f"installing {', '.join(missing)} from PyPI")
        run([*pip, "install", "--quiet", *missing], "pip install")


def build(package, *arguments):
    """Builds with cargo and returns the executables by name. CONCEPTSEG_PROFILE=dev takes the
    development build, to see that all works without a build of the release profile."""
    profile = os.environ.get("CONCEPTSEG_PROFILE", "release")
    command = ["cargo", "build", "--profile", profile, "-p", package, *arguments]
    output = run([*command, "--message-format", "json-render-diagnostics"], "the build")
    messages = map(json.loads, output.splitlines())
    return {m["target"]["name"]: Path(m["executable"]) for m in messages if m.get("executable")}


def library_of_torch():
    """Folder of libtorch that the trainer is built with, or none."""
    folder = Path(os.environ.get("LIBTORCH", ROOT / "third_party/libtorch"))
    return folder if (folder / "lib").is_dir() else None


def example_of_trainer(name):
    """The executable of an example of the trainer, or none without libtorch."""
    if not library_of_torch():
        return None
    return build("conceptseg-train", "--example", name)[name]


def shared(relative):
    """A file or folder of the real data that the tests use, or none."""
    home = Path(os.environ.get("CONCEPTSEG_SHARED", ROOT.parent / "shared"))
    return home / relative if (home / relative).exists() else None


def machine():
    """The machine and the versions, by name."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("model name", "CPU part"))
        ),
        platform.machine(),
    )
    flags = Path("/proc/cpuinfo").read_text()
    vectors = next((v for v in ["avx512f", "avx2", "asimd"] if v in flags), "no vectors known")
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "processor": f"{cpu}, {os.cpu_count()} threads, {vectors}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "compiler": run(["rustc", "--version"], "rustc").strip(),
        "commit": run(commit, "git").strip() if shutil.which("git") else "unknown",
        "load": f"{os.getloadavg()[0]:.1f} (one minute) at the start",
    }


def note(text):
    """Says what is being done; over the same line on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
    else:
        print(text, file=sys.stderr)
