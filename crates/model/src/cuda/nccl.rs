//! NCCL between the GPUs of one process, driven by one thread: for GPUs that cannot read each other's memory, and as
//! the yardstick of what is done without it.
//!
//! Communicators are non-blocking and every wait has a deadline, after which they are aborted. Nothing here turns
//! NVLink multicast on; NCCL itself obeys `NCCL_NVLS_ENABLE=0`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use cudarc::nccl::{result, sys};

use super::{CudaError, Device, Dtype};

/// A communicator for each GPU.
pub(crate) struct Nccl {
    all: Vec<sys::ncclComm_t>,
    /// Aborted: nothing can be done with it any more.
    dead: Cell<bool>,
}

const START: Duration = Duration::from_secs(30);
const QUEUE: Duration = Duration::from_secs(10);
const UNDEFINED: i32 = i32::MIN;
/// Of the headers that the bindings were made from.
const VERSION: u32 = 22_803;

impl Nccl {
    /// Connects GPUs, all different.
    pub(crate) fn start(devices: &[&Device]) -> Result<Self, CudaError> {
        // SAFETY: looks for the library and opens it; nothing is called in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoLibrary { library: "libnccl", version: "2.28" });
        }
        let what = "starting NCCL";
        let id = result::get_uniqueid().map_err(|e| CudaError::Nccl { what, code: e.0 as u32 })?;
        let mut config = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: 0xcafe_beef,
            version: VERSION,
            blocking: 0,
            cgaClusterSize: UNDEFINED,
            minCTAs: UNDEFINED,
            maxCTAs: UNDEFINED,
            netName: std::ptr::null(),
            splitShare: UNDEFINED,
            trafficClass: UNDEFINED,
            commName: std::ptr::null(),
            collnetEnable: UNDEFINED,
            CTAPolicy: UNDEFINED,
            shrinkShare: UNDEFINED,
            nvlsCTAs: UNDEFINED,
            nChannelsPerNetPeer: UNDEFINED,
            nvlinkCentricSched: UNDEFINED,
        };
        let mut all = vec![std::ptr::null_mut(); devices.len()];
        let ok = |r| said(what, r);
        ok(result::group_start())?;
        for (rank, (device, comm)) in devices.iter().zip(&mut all).enumerate() {
            device.bind()?;
            // SAFETY: `comm` and `config` live until the group has ended; the GPU is the thread's current one.
            ok(unsafe {
                result::comm_init_rank_config(comm, devices.len() as i32, id, rank as i32, &raw mut config)
            })?;
        }
        ok(result::group_end())?;
        let nccl = Self { all, dead: Cell::new(false) };
        nccl.settle(what, START)?;
        Ok(nccl)
    }

    /// Queues on each GPU's stream: `count` values at its address become the sum over all GPUs.
    pub(crate) fn all_reduce(
        &self,
        devices: &[&Device],
        addresses: &[u64],
        count: usize,
        dtype: Dtype,
    ) -> Result<(), CudaError> {
        let kind = match dtype {
            Dtype::F32 => sys::ncclDataType_t::ncclFloat32,
            Dtype::Bf16 => sys::ncclDataType_t::ncclBfloat16,
            Dtype::F16 => sys::ncclDataType_t::ncclFloat16,
        };
        self.group("summing by NCCL", || {
            for ((device, &at), &comm) in devices.iter().zip(addresses).zip(&self.all) {
                device.bind()?;
                let stream = device.stream.cu_stream().cast();
                let sum = sys::ncclRedOp_t::ncclSum;
                // SAFETY: the callers' buffers hold `count` values and outlive the work on the stream.
                let r = unsafe {
                    result::all_reduce(at as *const _, at as *mut _, count, kind, sum, comm, stream)
                };
                said("summing by NCCL", r)?;
            }
            Ok(())
        })
    }

    /// Queues on both streams: `bytes` bytes go from an address of GPU `from` to one of GPU `to`.
    pub(crate) fn send(
        &self,
        devices: &[&Device],
        [from, to]: [usize; 2],
        [source, target]: [u64; 2],
        bytes: usize,
    ) -> Result<(), CudaError> {
        const WHAT: &str = "sending by NCCL";
        let kind = sys::ncclDataType_t::ncclUint8;
        let stream = |rank: usize| devices[rank].stream.cu_stream().cast();
        self.group(WHAT, || {
            devices[from].bind()?;
            // SAFETY: the callers' buffers hold `bytes` bytes and outlive the work on the streams.
            let sent = unsafe {
                result::send(source as *const _, bytes, kind, to as i32, self.all[from], stream(from))
            };
            said(WHAT, sent)?;
            devices[to].bind()?;
            // SAFETY: as above.
            let received =
                unsafe { result::recv(target as *mut _, bytes, kind, from as i32, self.all[to], stream(to)) };
            said(WHAT, received)
        })
    }

    fn group(
        &self,
        what: &'static str,
        queue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if self.dead.get() {
            return Err(CudaError::NcclGone);
        }
        said(what, result::group_start())?;
        let queued = queue();
        let ended = said(what, result::group_end());
        queued.and(ended)?;
        self.settle(what, QUEUE)
    }

    /// Waits until what was asked of all communicators is under way.
    fn settle(&self, what: &'static str, limit: Duration) -> Result<(), CudaError> {
        let end = Instant::now() + limit;
        for &comm in &self.all {
            loop {
                let mut state = sys::ncclResult_t::ncclInProgress;
                // SAFETY: the communicator was made by `start` and is not destroyed.
                let asked = unsafe { sys::ncclCommGetAsyncError(comm, &raw mut state) };
                match (asked, state) {
                    (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclSuccess) => break,
                    (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclInProgress)
                        if Instant::now() < end =>
                    {
                        std::thread::yield_now();
                    }
                    (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclInProgress) => {
                        self.abort();
                        return Err(CudaError::NcclSilent { what, seconds: limit.as_secs() });
                    }
                    (_, code) => {
                        self.abort();
                        return Err(CudaError::Nccl { what, code: code as u32 });
                    }
                }
            }
        }
        Ok(())
    }

    fn abort(&self) {
        if self.dead.replace(true) {
            return;
        }
        for &comm in self.all.iter().filter(|comm| !comm.is_null()) {
            // SAFETY: made by `start`, given up once. Its failure leaves nothing more to do.
            let _ = unsafe { result::comm_abort(comm) };
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // Not destroyed but aborted: that cannot wait for anybody. All work was waited for by who dropped it.
        self.abort();
    }
}

fn said(what: &'static str, r: Result<result::NcclStatus, result::NcclError>) -> Result<(), CudaError> {
    r.map(|_| ()).map_err(|e| CudaError::Nccl { what, code: e.0 as u32 })
}
