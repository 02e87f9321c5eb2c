use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;

/// What went wrong on a GPU, or on the way to one.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver is installed on this machine (libcuda was not found); use the CPU back end")]
    NoDriver,
    #[error("{library} was not found; install the CUDA {version} libraries, or use the CPU back end")]
    NoLibrary { library: &'static str, version: &'static str },
    #[error("there is no GPU {ordinal}: this machine has {count}")]
    NoDevice { ordinal: usize, count: usize },
    #[error("GPU {ordinal} has compute capability {major}.{minor}; kernels are built for 8.0 and later")]
    TooOld { ordinal: usize, major: i32, minor: i32 },
    #[error("{what} needs {bytes} bytes of GPU memory, {free} are free; {advice}")]
    Memory { what: &'static str, bytes: u64, free: u64, advice: &'static str },
    #[error("{what}: {source}")]
    Driver { what: &'static str, source: DriverError },
    #[error("{what}: cuBLASLt says {}", source.0 as i32)]
    Blas { what: &'static str, source: CublasError },
    #[error("{kernel}: {why}")]
    Arguments { kernel: &'static str, why: String },
    #[error("{what}: NCCL says {code}")]
    Nccl { what: &'static str, code: u32 },
    #[error("{what}: no answer within {seconds} s; the communicators were given up")]
    NcclSilent { what: &'static str, seconds: u64 },
    #[error("the communicators of NCCL were given up after an error; load the model again")]
    NcclGone,
    #[error("rank {rank} waited in vain for the other GPUs of the model; load the model again")]
    PeerSilent { rank: u32 },
    #[error("{what} is not built for the CUDA back end yet")]
    NotBuilt { what: &'static str },
}

/// Says what was being done when a call of the driver failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|source| CudaError::Driver { what, source })
    }
}

impl<T> Doing<T> for Result<T, CublasError> {
    fn doing(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|source| CudaError::Blas { what, source })
    }
}
