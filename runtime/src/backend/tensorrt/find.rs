//! Finding the driver, the GPU and the library, or saying in one line what is missing.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, CudaError, Driver};
use conceptseg_tensorrt::{Error as LibraryError, Library, Search};

use super::error::{TensorRtError, megabytes};
use super::key::ComputeCapability;

/// The variable that names the folder of TensorRT's libraries.
pub const FOLDER_VARIABLE: &str = "CONCEPTSEG_TENSORRT";
/// Oldest CUDA version that the driver must serve: TensorRT 10 and 11 are made for CUDA 12 and newer.
const OLDEST_CUDA: (u32, u32) = (12, 0);
/// Oldest GPUs that TensorRT 10 runs on: Turing.
const OLDEST_GPU: ComputeCapability = ComputeCapability(7, 5);

/// Where the libraries are looked for.
#[derive(Debug, Clone)]
pub struct Places {
    /// File of the CUDA driver; by the loader's path unless set.
    pub driver: Option<PathBuf>,
    /// Folders, versions and order of TensorRT.
    pub search: Search,
}

impl Places {
    /// The folder that `CONCEPTSEG_TENSORRT` names, which is then the only one; else beside the program, the
    /// packages of an active Python environment, and the loader's path.
    pub fn of_process() -> Self {
        let program = env::current_exe().ok();
        Self::of(
            env::var_os(FOLDER_VARIABLE),
            program.as_deref().and_then(Path::parent),
            env::var_os("VIRTUAL_ENV"),
        )
    }

    fn of(chosen: Option<OsString>, beside: Option<&Path>, python: Option<OsString>) -> Self {
        if let Some(folder) = chosen.filter(|folder| !folder.is_empty()) {
            return Self { driver: None, search: Search::folder(folder) };
        }
        let mut folders: Vec<PathBuf> = beside.map(Path::to_owned).into_iter().collect();
        if let Some(python) = python.filter(|folder| !folder.is_empty()) {
            let versions =
                fs::read_dir(Path::new(&python).join("lib")).into_iter().flatten().flatten();
            for version in versions {
                let packages = version.path().join("site-packages");
                folders.extend(
                    ["tensorrt_libs", "tensorrt_lean_libs"].map(|name| packages.join(name)),
                );
            }
        }
        Self { driver: None, search: Search { folders, ..Search::default() } }
    }
}

/// A driver, a GPU and a library that work together.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The driver.
    pub driver: Driver,
    /// TensorRT.
    pub library: Library,
    /// Number of the GPU, from 0.
    pub device: u32,
    /// Name of the GPU.
    pub gpu: String,
    /// Its compute capability.
    pub compute_capability: ComputeCapability,
    /// Its memory in bytes.
    pub memory: u64,
    /// Newest CUDA version that the driver serves.
    pub cuda: (u32, u32),
}

impl Installation {
    /// Looks for all of it. The context is that of the GPU.
    ///
    /// # Errors
    /// [`TensorRtError::Unavailable`] with the first thing that is missing, and what to do.
    pub fn find(places: &Places, device: u32) -> Result<(Self, Arc<Context>), TensorRtError> {
        Self::look(places, device).map_err(|reason| TensorRtError::Unavailable { reason })
    }

    fn look(places: &Places, device: u32) -> Result<(Self, Arc<Context>), String> {
        let driver = match &places.driver {
            Some(file) => Driver::open_file(file),
            None => Driver::open(),
        };
        let driver = driver.map_err(|error| driver_reason(&error))?;
        let cuda = driver.cuda_version().map_err(|error| driver_reason(&error))?;
        if cuda < OLDEST_CUDA {
            return Err(format!(
                "the GPU's driver is too old: it serves CUDA {}.{}, and {}.{} is needed; install a newer driver",
                cuda.0, cuda.1, OLDEST_CUDA.0, OLDEST_CUDA.1
            ));
        }
        // Before the GPU is touched, which takes memory there.
        let library = Library::open(&places.search).map_err(|error| library_reason(&error))?;
        let context = Context::new(&driver, device).map_err(|error| driver_reason(&error))?;
        let about = || -> Result<_, CudaError> {
            Ok((context.name()?, context.compute_capability()?, context.total_memory()?))
        };
        let (gpu, capability, memory) = about().map_err(|error| driver_reason(&error))?;
        let compute_capability = ComputeCapability(capability.0, capability.1);
        if compute_capability < OLDEST_GPU {
            return Err(format!(
                "the GPU {gpu} has compute capability {compute_capability}, and {OLDEST_GPU} is needed; \
                 choose another one with --device"
            ));
        }
        let found =
            Self { driver, library, device, gpu, compute_capability, memory: memory as u64, cuda };
        Ok((found, context))
    }

    /// Library and GPU in one line.
    pub fn describe(&self) -> String {
        let kind = if self.library.can_build() { "" } else { ", lean: runs plans but builds none" };
        format!(
            "{} ({}{kind}) on {}, {}, compute capability {}, CUDA {}.{}",
            self.library.version(),
            self.library.path().display(),
            self.gpu,
            megabytes(self.memory),
            self.compute_capability,
            self.cuda.0,
            self.cuda.1
        )
    }
}

fn driver_reason(error: &CudaError) -> String {
    match error {
        CudaError::NotFound { .. } => {
            "there is no CUDA driver (libcuda.so.1); install the driver of the GPU".to_owned()
        }
        CudaError::MissingSymbol { symbol } => format!(
            "the GPU's driver is too old: it has no function {symbol}; install a newer driver"
        ),
        // CUDA_ERROR_NO_DEVICE.
        CudaError::Call { code: 100, .. } | CudaError::NoDevice { count: 0, .. } => {
            "the CUDA driver finds no GPU; nvidia-smi tells whether it sees one".to_owned()
        }
        // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH.
        CudaError::Call { code: 803, .. } => {
            "the driver's library and its kernel module are of different versions; restart the machine".to_owned()
        }
        other => other.to_string(),
    }
}

fn library_reason(error: &LibraryError) -> String {
    match error {
        LibraryError::NotFound { tried } => {
            // The loader's answer for each name that it does not know would hide what matters.
            let told: Vec<&str> = tried
                .split("; ")
                .filter(|part| !part.contains("No such file or directory"))
                .collect();
            let told =
                if told.is_empty() { String::new() } else { format!(" ({})", told.join("; ")) };
            format!(
                "there is no TensorRT 10 or 11 (libnvinfer.so){told}; install it, or set {FOLDER_VARIABLE} to \
                 the folder of its libraries"
            )
        }
        other => super::super::one_line(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_folder_is_the_only_one() {
        let places = Places::of(Some("/opt/trt".into()), Some(Path::new("/bin")), None);
        assert_eq!(places.search.folders, [PathBuf::from("/opt/trt")]);
        assert!(!places.search.loader_path);
        let places = Places::of(Some(OsString::new()), Some(Path::new("/bin")), None);
        assert_eq!(places.search.folders, [PathBuf::from("/bin")]);
        assert!(places.search.loader_path);
    }

    #[test]
    fn packages_of_a_python_environment_are_looked_into() {
        let environment = tempfile::tempdir().unwrap();
        fs::create_dir_all(environment.path().join("lib/python3.12")).unwrap();
        let places = Places::of(None, None, Some(environment.path().into()));
        let packages = environment.path().join("lib/python3.12/site-packages");
        assert_eq!(
            places.search.folders,
            [packages.join("tensorrt_libs"), packages.join("tensorrt_lean_libs")]
        );
    }

    #[test]
    fn a_missing_driver_is_the_first_thing_that_is_said() {
        let places = Places {
            driver: Some("/nonexistent/libcuda.so.1".into()),
            search: Search::folder("/nonexistent"),
        };
        let reason = Installation::find(&places, 0).unwrap_err().to_string();
        assert!(reason.starts_with("there is no CUDA driver"), "{reason}");
    }
}
