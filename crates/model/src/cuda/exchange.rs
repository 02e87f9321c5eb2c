//! Sums of partial results over the GPUs of a model, added to the residual stream. Kernels: `kernels/exchange.cu`.

mod timings;

use std::rc::Rc;

use cudarc::driver::sys;

pub use self::timings::exchange_timings;
use super::error::Doing;
use super::linear::{Linear, Norm};
use super::nccl::Nccl;
use super::persistent::{Peers, Persistent};
use super::{Arg, Buffer, CudaError, Device, Dtype, HostMemory, Kernel, Launch, Mode, Module};

/// The kernels' header has flags for more.
pub(crate) const MOST_RANKS: usize = 8;

/// What is exchanged, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) hidden: u32,
    /// Most rows of a step.
    pub(crate) rows: u32,
    pub(crate) dtype: Dtype,
    pub(crate) mode: Mode,
    /// Sum by NCCL though the GPUs can read each other's memory.
    pub(crate) nccl: bool,
    /// How long a GPU waits for the others.
    pub(crate) patience_ns: u64,
}

/// Mailboxes and partial results of all ranks, in order.
pub(crate) struct Exchange {
    parts: Vec<Part>,
    nccl: Option<Nccl>,
    failed: HostMemory,
    shape: Shape,
    devices: Vec<Rc<Device>>,
}

/// One rank's.
struct Part {
    push: Kernel,
    pull: Kernel,
    pull_float: Kernel,
    _module: Module,
    /// A header, and words of [slot][source][row][hidden / 2].
    mailbox: Buffer,
    /// Addresses of all mailboxes, then of all partial results of slot 0, of slot 1, and of this rank's in both.
    table: Buffer,
    partial: [Buffer; 2],
    mail: Mail,
}

/// What persistent kernels exchange by, which sum on their own.
struct Mail {
    words: Buffer,
    /// Addresses of all ranks' words.
    table: Buffer,
    /// An exchange count a block.
    epochs: Buffer,
}

/// Where a rank adds the sums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// f32, of the residual stream.
    pub(crate) x: u64,
    /// A norm that follows, and where its result goes.
    pub(crate) norm: Option<(Norm, u64)>,
}

/// How the sums of a number of rows are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Push,
    Pull,
    Nccl,
}

const HEADER: usize = 256;
/// Rows that are pushed: beyond, the words' flags cost more than the flag's crossing.
const PUSHED_ROWS: u32 = 8;
/// Rows whose partial results stay f32 in [`Mode::Fast`].
const FLOAT_ROWS: u32 = 256;
/// Quads of values of a thread, as in the kernels.
const EACH: u32 = 2;
const PATIENCE_NS: u64 = 5_000_000_000;

impl Shape {
    pub(crate) fn new(hidden: usize, rows: u32, dtype: Dtype, mode: Mode, nccl: bool) -> Self {
        Self { hidden: hidden as u32, rows, dtype, mode, nccl, patience_ns: PATIENCE_NS }
    }

    /// What the partial results of so many rows are kept in: the same for all in the invariant mode.
    fn partial(&self, rows: u32) -> Dtype {
        if self.mode == Mode::Invariant || rows <= FLOAT_ROWS { Dtype::F32 } else { self.dtype }
    }

    fn partial_bytes(&self) -> usize {
        let bytes = |rows: u32| Linear::padded(self.mode, rows) as usize * self.hidden as usize;
        (bytes(FLOAT_ROWS.min(self.rows)) * size_of::<f32>())
            .max(bytes(self.rows) * self.partial(self.rows).bytes())
    }

    fn way(&self, rows: u32, peers: bool) -> Way {
        // Norms of the two ways add up in different orders: the invariant mode takes one.
        match (peers && !self.nccl, rows <= PUSHED_ROWS && self.mode == Mode::Fast) {
            (false, _) => Way::Nccl,
            (true, true) => Way::Push,
            (true, false) => Way::Pull,
        }
    }

    fn check(&self, ranks: usize) -> Result<(), CudaError> {
        let (kernel, hidden) = ("exchange", self.hidden);
        if !hidden.is_multiple_of(4) || hidden > 4 * 1024 * EACH {
            let why = format!("a hidden size of {hidden} is not a multiple of 4 up to 8192");
            return Err(CudaError::Arguments { kernel, why });
        }
        if !(2..=MOST_RANKS).contains(&ranks) {
            return Err(CudaError::Arguments { kernel, why: format!("{ranks} ranks") });
        }
        Ok(())
    }
}

impl Exchange {
    /// Lets the GPUs read each other's memory where they can, and starts NCCL where they cannot. A GPU may hold several
    /// ranks, for tests.
    pub(crate) fn new(devices: &[Rc<Device>], shape: Shape) -> Result<Self, CudaError> {
        let ranks = devices.len();
        shape.check(ranks)?;
        let nccl = if shape.nccl || !peers(devices)? {
            // NCCL's order of sums depends on size and place.
            if shape.mode == Mode::Invariant && ranks > 2 {
                return Err(CudaError::NotBuilt {
                    what: "the invariant mode over more than two GPUs by NCCL",
                });
            }
            Some(Nccl::start(&devices.iter().map(|d| &**d).collect::<Vec<_>>())?)
        } else {
            None
        };
        let failed = HostMemory::new(&devices[0], "a word that GPUs report to", size_of::<u32>())?;
        let words = 2 * ranks * PUSHED_ROWS as usize * shape.hidden as usize / 2 * 16;
        let mut parts = Vec::new();
        for device in devices {
            let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/exchange.fatbin")))?;
            let [push, pull, pull_float] = match shape.dtype {
                Dtype::F32 => ["exchange_push_f32", "exchange_pull_f32", "exchange_pull_float_f32"],
                Dtype::Bf16 => ["exchange_push_bf16", "exchange_pull_bf16", "exchange_pull_float_bf16"],
                Dtype::F16 => ["exchange_push_f16", "exchange_pull_f16", "exchange_pull_float_f16"],
            };
            let partial = || Buffer::zeros(device, "partial results", shape.partial_bytes());
            parts.push(Part {
                push: module.kernel(push, 0)?,
                pull: module.kernel(pull, 0)?,
                pull_float: module.kernel(pull_float, 0)?,
                _module: module,
                mailbox: Buffer::zeros(device, "mailboxes between GPUs", HEADER + words)?,
                table: Buffer::zeros(device, "addresses of other GPUs", (3 * ranks + 2) * size_of::<u64>())?,
                partial: [partial()?, partial()?],
                mail: Mail {
                    words: Buffer::zeros(
                        device,
                        "words between GPUs",
                        Persistent::mailbox_bytes(ranks, shape.hidden as usize),
                    )?,
                    table: Buffer::zeros(device, "addresses of other GPUs", ranks * size_of::<u64>())?,
                    epochs: Buffer::zeros(
                        device,
                        "counts of exchanges",
                        device.multiprocessors as usize * 4,
                    )?,
                },
            });
        }
        let all = |of: fn(&Part) -> u64| parts.iter().map(of).collect::<Vec<u64>>();
        let words = all(|p| p.mail.words.at(0));
        let shared =
            [all(|p| p.mailbox.at(0)), all(|p| p.partial[0].at(0)), all(|p| p.partial[1].at(0))].concat();
        for (device, part) in devices.iter().zip(&mut parts) {
            let own = [part.partial[0].at(0), part.partial[1].at(0)];
            part.table.write(device, 0, &[&shared[..], &own].concat())?;
            part.mail.table.write(device, 0, &words)?;
        }
        // A rank's first words must not come before its mailbox is empty.
        for device in devices {
            device.bind()?;
            device.synchronize()?;
        }
        Ok(Self { parts, nccl, failed, shape, devices: devices.to_vec() })
    }

    /// Where a rank's partial results of `rows` rows go, and as what. Callers alternate between slots 0 and 1.
    pub(crate) fn partial(&self, rank: usize, slot: usize, rows: u32) -> (u64, Dtype) {
        (self.parts[rank].partial[slot].at(0), self.shape.partial(rows))
    }

    /// What a rank's persistent kernels exchange by; `None` where only NCCL can sum.
    pub(crate) fn peers(&self, rank: usize) -> Option<Peers> {
        let mail = &self.parts[rank].mail;
        self.nccl.is_none().then(|| Peers {
            mailboxes: mail.table.at(0),
            epochs: mail.epochs.at(0),
            failed: self.failed.at(0),
            rank: rank as u32,
            ranks: self.parts.len() as u32,
        })
    }

    /// Queues on all ranks: x += the sum of the partial results in `slot`, and the norms.
    pub(crate) fn sum(&self, slot: usize, rows: u32, targets: &[Target]) -> Result<(), CudaError> {
        assert!(targets.len() == self.parts.len() && slot < 2, "a target a rank");
        assert!(rows <= self.shape.rows.max(FLOAT_ROWS), "more rows than partial results have room for");
        let way = self.shape.way(rows, self.nccl.is_none());
        if way == Way::Nccl {
            self.by_nccl(slot, rows)?;
        }
        targets.iter().enumerate().try_for_each(|(rank, target)| self.one(rank, slot, rows, *target))
    }

    /// Queues one rank's side of a sum.
    fn one(&self, rank: usize, slot: usize, rows: u32, target: Target) -> Result<(), CudaError> {
        let (part, device) = (&self.parts[rank], &self.devices[rank]);
        let (hidden, ranks) = (self.shape.hidden, self.parts.len());
        let way = self.shape.way(rows, self.nccl.is_none());
        device.bind()?;
        let (norm, out) = target.norm.unwrap_or((Norm { weight: 0, epsilon: 0.0 }, 0));
        let launch = geometry(way, rows, hidden, target.norm.is_some());
        let kernel = match (way, self.shape.partial(rows)) {
            (Way::Push, _) => part.push,
            (_, Dtype::F32) => part.pull_float,
            _ => part.pull,
        };
        let mailboxes = part.table.at(0);
        let tail: [Arg; 7] = [
            target.x.into(),
            norm.weight.into(),
            out.into(),
            hidden.into(),
            norm.epsilon.into(),
            self.shape.patience_ns.into(),
            self.failed.at(0).into(),
        ];
        let ys = |first: usize| part.table.at(first * size_of::<u64>());
        let head: Vec<Arg> = match way {
            Way::Push => vec![
                mailboxes.into(),
                (rank as u32).into(),
                (ranks as u32).into(),
                (slot as u32).into(),
                PUSHED_ROWS.into(),
                part.partial[slot].at(0).into(),
            ],
            Way::Pull => vec![
                mailboxes.into(),
                ys((1 + slot) * ranks).into(),
                (rank as u32).into(),
                (ranks as u32).into(),
            ],
            // Alone: the sum is in the rank's own partial results.
            Way::Nccl => vec![mailboxes.into(), ys(3 * ranks + slot).into(), 0u32.into(), 1u32.into()],
        };
        device.launch(kernel, launch, &[&head[..], &tail].concat())
    }

    /// Has NCCL connect for messages of so many rows, which it cannot under capture. Partial results are lost.
    pub(crate) fn warm(&self, rows: u32) -> Result<(), CudaError> {
        if self.nccl.is_some() { self.by_nccl(0, rows) } else { Ok(()) }
    }

    /// What went wrong on a GPU, if anything: to be asked after a wait for them.
    pub(crate) fn check(&self) -> Result<(), CudaError> {
        match self.failed.read::<u32>(0, 1)[0] {
            0 => Ok(()),
            rank => Err(CudaError::PeerSilent { rank: rank - 1 }),
        }
    }

    fn by_nccl(&self, slot: usize, rows: u32) -> Result<(), CudaError> {
        let Some(nccl) = &self.nccl else {
            return Err(CudaError::NotBuilt { what: "a sum without NCCL here" });
        };
        let devices: Vec<&Device> = self.devices.iter().map(|d| &**d).collect();
        let addresses: Vec<u64> = self.parts.iter().map(|p| p.partial[slot].at(0)).collect();
        let count = rows as usize * self.shape.hidden as usize;
        nccl.all_reduce(&devices, &addresses, count, self.shape.partial(rows))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Others may still read this rank's memory: none is freed before all are done.
        for device in &self.devices {
            let _ = device.bind().and_then(|()| device.synchronize());
        }
    }
}

/// Blocks and threads: with a norm a block a row.
fn geometry(way: Way, rows: u32, hidden: u32, norm: bool) -> Launch {
    let quads = hidden / 4;
    let fewest = quads.div_ceil(EACH).next_multiple_of(32);
    if norm {
        // Few rows: as many threads as there are quads. Many: a multiprocessor has room for several.
        let most = if way == Way::Push { 1024 } else { 512 };
        Launch { grid: [rows, 1, 1], threads: quads.next_multiple_of(32).min(most).max(fewest), shared: 0 }
    } else {
        let threads = fewest.min(128);
        Launch { grid: [rows, quads.div_ceil(threads * EACH), 1], threads, shared: 0 }
    }
}

/// Whether all can read and write each other's memory; from then on they do.
pub(crate) fn peers(devices: &[Rc<Device>]) -> Result<bool, CudaError> {
    let pairs = || {
        devices
            .iter()
            .flat_map(|a| devices.iter().map(move |b| (&a.context, &b.context)))
            .filter(|(a, b)| a != b)
    };
    for (a, b) in pairs() {
        let mut can = 0;
        // SAFETY: both are devices of this machine; `can` outlives the call.
        unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, a.cu_device(), b.cu_device()) }
            .result()
            .doing("asking whether GPUs can read each other's memory")?;
        if can == 0 {
            return Ok(false);
        }
    }
    for (a, b) in pairs() {
        a.bind_to_thread().doing("binding the GPU to the thread")?;
        // SAFETY: the context lives as long as its device.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(b.cu_ctx(), 0) };
        if enabled != sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED {
            enabled.result().doing("letting GPUs read each other's memory")?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
