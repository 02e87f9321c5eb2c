//! One GPU: its context, the stream that all work of a rank goes through, and kernel launches.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::CudaError;
use super::error::Doing;
use super::tensor_map::TensorMap;

/// A GPU as one rank uses it. Not shared between threads: the engine's thread owns it.
pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    /// Streaming multiprocessors.
    pub(crate) multiprocessors: u32,
    /// Whether the kernels' machine code for Hopper runs here. A later chip gets what its driver makes of the code for
    /// 8.0, which knows neither dependent launches nor bulk copies.
    pub(crate) hopper: bool,
    /// Whether kernels of other processes run at the same time (MPS).
    pub(crate) is_shared: bool,
}

/// A loaded fat binary.
pub(crate) struct Module {
    raw: sys::CUmodule,
    /// Keeps the context alive that the module lives in.
    context: Arc<CudaContext>,
}

/// A kernel of a [`Module`], which must outlive it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    raw: sys::CUfunction,
    name: &'static str,
}

/// The geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
}

/// A kernel argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    /// At most eight bytes; the kernel reads as many as its parameter has.
    Word(u64),
    Map(TensorMap),
}

impl From<u64> for Arg {
    fn from(x: u64) -> Self {
        Self::Word(x)
    }
}

impl From<u32> for Arg {
    fn from(x: u32) -> Self {
        Self::Word(u64::from(x))
    }
}

impl From<i32> for Arg {
    fn from(x: i32) -> Self {
        Self::Word(u64::from(x as u32))
    }
}

impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Self::Word(u64::from(x.to_bits()))
    }
}

impl From<TensorMap> for Arg {
    fn from(map: TensorMap) -> Self {
        Self::Map(map)
    }
}

/// How many GPUs this machine has; 0 without a driver.
pub fn device_count() -> usize {
    // SAFETY: looks for the library and opens it; nothing is called in it.
    if !unsafe { sys::is_culib_present() } {
        return 0;
    }
    CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
}

impl Device {
    /// Opens GPU `ordinal`.
    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: looks for the library and opens it; nothing is called in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let count = device_count();
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).doing("opening the GPU")?;
        // SAFETY: no `CudaSlice` is ever made; buffers are ours and are used on one stream.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability().doing("asking for the compute capability")?;
        if major < 8 {
            return Err(CudaError::TooOld { ordinal, major, minor });
        }
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .doing("asking for the multiprocessors")?;
        // A driver that does not know the question has no answer.
        let is_shared =
            context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MPS_ENABLED).unwrap_or(0);
        let stream = context.new_stream().doing("making a stream")?;
        Ok(Self {
            context,
            stream,
            multiprocessors: multiprocessors.max(1) as u32,
            hopper: major == 9,
            is_shared: is_shared != 0,
        })
    }

    /// The same GPU with another stream.
    pub(crate) fn beside(&self) -> Result<Self, CudaError> {
        let stream = self.context.new_stream().doing("making a stream")?;
        let context = Arc::clone(&self.context);
        Ok(Self { context, stream, ..*self })
    }

    /// Makes this GPU the one that calls of this thread mean.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().doing("binding the GPU to the thread")
    }

    /// Loads a fat binary that the build made.
    pub(crate) fn module(&self, image: &'static [u8]) -> Result<Module, CudaError> {
        self.bind()?;
        // SAFETY: `image` is a fat binary made by nvcc and carries its own length.
        let raw = unsafe { result::module::load_data(image.as_ptr().cast()) }.doing("loading kernels")?;
        Ok(Module { raw, context: Arc::clone(&self.context) })
    }

    /// Queues a kernel. With `Launch` and `args` that do not fit the kernel the GPU reads or writes elsewhere:
    /// only the launcher beside each kernel calls this.
    ///
    /// Kernels are queued with programmatic dependent launch where the chip has it: each begins before the one
    /// before it has ended, and waits for it by `wait_for_inputs()` (common.cuh), which every kernel calls.
    pub(crate) fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), CudaError> {
        self.launch_clusters(kernel, launch, 1, args)
    }

    /// Blocks in clusters of `cluster` neighbours along the grid's first axis; more than one on Hopper only.
    pub(crate) fn launch_clusters(
        &self,
        kernel: Kernel,
        launch: Launch,
        cluster: u32,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        debug_assert!(cluster == 1 || self.hopper, "clusters on a chip without them");
        let pointer = |arg: &Arg| match arg {
            Arg::Word(word) => std::ptr::from_ref(word).cast_mut().cast(),
            Arg::Map(map) => map.raw().cast_mut(),
        };
        // Only read, whatever the type says.
        let mut pointers: Vec<*mut c_void> = args.iter().map(pointer).collect();
        self.with_config(launch, cluster, |config| {
            // SAFETY: the kernel is loaded; `pointers` has a value for each parameter (the launcher's duty, checked on a
            // GPU by its test); everything lives until the call returns, which copies the arguments.
            unsafe { sys::cuLaunchKernelEx(config, kernel.raw, pointers.as_mut_ptr(), std::ptr::null_mut()) }
        })
        .result()
        .doing(kernel.name)
    }

    /// How many clusters of such a launch run at the same time: fewer than the multiprocessors would hold where those of a
    /// part of the chip do not divide evenly.
    pub(crate) fn clusters_at_once(
        &self,
        kernel: Kernel,
        launch: Launch,
        cluster: u32,
    ) -> Result<u32, CudaError> {
        let mut count = 0;
        self.with_config(launch, cluster, |config| {
            // SAFETY: the kernel is loaded; the call reads the configuration and writes the count.
            unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut count, kernel.raw, config) }
        })
        .result()
        .doing(kernel.name)?;
        Ok(count.max(0) as u32)
    }

    fn with_config<T>(
        &self,
        launch: Launch,
        cluster: u32,
        call: impl FnOnce(*const sys::CUlaunchConfig) -> T,
    ) -> T {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = [
            attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ),
            attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 },
                },
            ),
        ];
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(self.hopper) + u32::from(cluster > 1),
        };
        call(&raw const config)
    }

    /// Bytes of memory that are free, and all.
    pub(crate) fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, all) = self.context.mem_get_info().doing("asking for the free memory")?;
        Ok((free as u64, all as u64))
    }

    /// Waits until all queued work is done.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().doing("waiting for the GPU")
    }
}

impl Module {
    /// A kernel by its exported name, allowed `shared` bytes of dynamic shared memory.
    pub(crate) fn kernel(&self, name: &'static str, shared: u32) -> Result<Kernel, CudaError> {
        let exported = CString::new(name).map_err(|_| CudaError::NotBuilt { what: name })?;
        // SAFETY: the module is loaded.
        let raw = unsafe { result::module::get_function(self.raw, exported) }.doing(name)?;
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded. Below 48 KiB the call changes nothing.
        unsafe { result::function::set_function_attribute(raw, most, shared as i32) }.doing(name)?;
        Ok(Kernel { raw, name })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `Device::module`, unloaded once; kernels of it are not launched any more. A failure
            // leaks it, which is all that can be done here.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}
