use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::error::Doing;
use super::{CudaError, Device};

/// Device memory. Its bytes are whatever the kernels take them for.
pub(crate) struct Buffer {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Buffer {
    /// `bytes` bytes of zeros; an error says how much is free.
    pub(crate) fn zeros(device: &Device, what: &'static str, bytes: usize) -> Result<Self, CudaError> {
        device.bind()?;
        // SAFETY: plain device memory, freed once by `drop`. An allocation of no bytes is refused by the driver.
        let allocated = unsafe { result::malloc_sync(bytes.max(16)) };
        let address = allocated.map_err(|source| match result::mem_get_info() {
            Ok((free, _)) if free < bytes => CudaError::Memory {
                what,
                bytes: bytes as u64,
                free: free as u64,
                advice: "use fewer pages, a smaller model or another GPU",
            },
            _ => CudaError::Driver { what, source },
        })?;
        let buffer = Self { address, bytes, context: Arc::clone(&device.context) };
        // SAFETY: inside the allocation.
        unsafe { result::memset_d8_async(address, 0, bytes, device.stream.cu_stream()) }.doing(what)?;
        Ok(buffer)
    }

    /// A copy of `values` on the device.
    pub(crate) fn of<T: Plain>(device: &Device, what: &'static str, values: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::zeros(device, what, size_of_val(values))?;
        buffer.write(device, 0, values)?;
        Ok(buffer)
    }

    /// Copies `values` to byte offset `at`, behind all queued work; `values` may be changed when it returns.
    pub(crate) fn write<T: Plain>(
        &mut self,
        device: &Device,
        at: usize,
        values: &[T],
    ) -> Result<(), CudaError> {
        let bytes = size_of_val(values);
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "a write beyond the buffer");
        device.bind()?;
        // SAFETY: the range is inside the allocation, and `values` is plain data. Pageable memory is staged by the
        // driver before the call returns.
        unsafe { result::memcpy_htod_async(self.address + at as u64, values, device.stream.cu_stream()) }
            .doing("copying to the GPU")
    }

    /// Waits for all queued work and copies `count` values from byte offset `at`.
    pub(crate) fn read<T: Plain>(
        &self,
        device: &Device,
        at: usize,
        count: usize,
    ) -> Result<Vec<T>, CudaError> {
        let bytes = count * size_of::<T>();
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "a read beyond the buffer");
        let mut values = vec![T::default(); count];
        device.bind()?;
        // SAFETY: the range is inside the allocation; any bytes are a value of a `Plain` type.
        unsafe {
            result::memcpy_dtoh_async(&mut values, self.address + at as u64, device.stream.cu_stream())
        }
        .doing("copying from the GPU")?;
        device.synchronize()?;
        Ok(values)
    }

    /// Its address plus `offset` bytes, for a kernel.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes);
        self.address + offset as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `zeros`, freed once; the driver waits for kernels that still use it. A failure
            // leaks it, which is all that can be done here.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Memory of the host that GPUs read and write in place: a way of a microsecond, but without a copy's place in the queue.
/// Whoever reads or writes it here sees to it that no queued work does the same at that time, or only asks for words.
pub(crate) struct HostMemory {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl HostMemory {
    /// `bytes` bytes of zeros.
    pub(crate) fn new(device: &Device, what: &'static str, bytes: usize) -> Result<Self, CudaError> {
        device.bind()?;
        let mut pointer = std::ptr::null_mut();
        // SAFETY: memory for all contexts, freed once by `drop`.
        unsafe {
            sys::cuMemHostAlloc(
                &raw mut pointer,
                bytes.max(16),
                sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP,
            )
        }
        .result()
        .doing(what)?;
        // SAFETY: so many bytes were allocated.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        Ok(Self { address: pointer as u64, bytes, context: Arc::clone(&device.context) })
    }

    /// What a kernel launched from now on finds at byte offset `at`.
    pub(crate) fn write<T: Plain>(&mut self, at: usize, values: &[T]) {
        self.check::<T>(at, values.len());
        for (i, value) in values.iter().enumerate() {
            // SAFETY: inside the allocation and aligned, as was checked; volatile, since GPUs look at it.
            unsafe { ((self.address + at as u64) as *mut T).add(i).write_volatile(*value) };
        }
    }

    /// Queues a copy of the first `bytes` bytes of a buffer.
    pub(crate) fn copy(&self, device: &Device, from: &Buffer, bytes: usize) -> Result<(), CudaError> {
        assert!(bytes <= self.bytes && bytes <= from.bytes(), "a copy beyond its buffers");
        // SAFETY: both hold so many bytes. The host's memory is page-locked: the copy is a part of the queue.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(self.address as *mut _, from.at(0), bytes, device.stream.cu_stream())
        }
        .result()
        .doing("copying from the GPU")
    }

    /// `count` values from byte offset `at`, as they are now.
    pub(crate) fn read<T: Plain>(&self, at: usize, count: usize) -> Vec<T> {
        self.check::<T>(at, count);
        // SAFETY: as in `write`; any bytes are a value of a `Plain` type.
        (0..count)
            .map(|i| unsafe { ((self.address + at as u64) as *const T).add(i).read_volatile() })
            .collect()
    }

    fn check<T>(&self, at: usize, count: usize) {
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(at));
        assert!(end.is_some_and(|end| end <= self.bytes), "beyond the memory that GPUs and host share");
        assert!(at.is_multiple_of(align_of::<T>()), "values off their grid");
    }

    /// Its address plus `offset` bytes, for a kernel.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes);
        self.address + offset as u64
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once, after all work that may use it: whoever owns it waits for that.
            let _ = unsafe { result::free_host(self.address as *mut _) };
        }
    }
}

/// Values that are their bytes, any bytes.
pub(crate) trait Plain: Copy + Default {}

impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for half::bf16 {}
impl Plain for half::f16 {}
