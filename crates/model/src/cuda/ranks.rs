//! The GPUs that share a model, driven by one thread: every launch is asynchronous, so their launches are queued in
//! turns, layer by layer, and graphs one after the other.

use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use cudarc::driver::sys;
use engine::ModelError;
use scheduler::TableDelta;

use super::batch::Batch;
use super::error::Doing;
use super::exchange::{Exchange, Target};
use super::forward::{Forward, Key, Plan, Sink};
use super::kv::Kv;
use super::trees::Placed;
use super::{Buffer, CudaError, Device};
use crate::check::CheckedRow;

/// One GPU's part of a model.
pub(crate) struct Rank {
    // Freed in this order, the device last.
    pub(crate) forward: Forward,
    pub(crate) kv: Kv,
    /// Table entries on their way to the device.
    pub(crate) entries: Buffer,
    /// f32 rows of this rank's columns of the logits; `None` where it is alone.
    pub(crate) part: Option<Buffer>,
    pub(crate) columns: Range<usize>,
    pub(crate) device: Rc<Device>,
}

/// All of them, in order.
pub(crate) struct Ranks {
    /// `None` for one rank.
    exchange: Option<Exchange>,
    all: Vec<Rank>,
}

impl Ranks {
    /// At least one rank.
    pub(crate) fn new(all: Vec<Rank>, exchange: Option<Exchange>) -> Self {
        Self { exchange, all }
    }

    /// The rank whose GPU draws.
    pub(crate) fn first(&self) -> &Rank {
        &self.all[0]
    }

    pub(crate) fn all(&self) -> &[Rank] {
        &self.all
    }

    /// Bytes of weights that a step reads, of all ranks.
    pub(crate) fn step_bytes(&self) -> u64 {
        self.all.iter().map(|rank| rank.forward.step_bytes()).sum()
    }

    /// Checks a step against the page tables, then changes them.
    pub(crate) fn tables(&mut self, deltas: &[TableDelta], rows: &[Placed]) -> Result<(), ModelError> {
        let mut changes = Vec::with_capacity(self.all.len());
        for rank in &self.all {
            changes.push(rank.kv.change(deltas)?);
        }
        // The tables of all ranks are the same, and so are their trees.
        for Placed { row, .. } in rows {
            self.all[0].kv.tables().covers(&changes[0], row.slot, row.position)?;
        }
        let kept = self.all[0].kv.kept(&changes[0])?;
        for (rank, changed) in self.all.iter_mut().zip(changes) {
            rank.device.bind()?;
            rank.kv.keep(&rank.device, &kept)?;
            rank.kv.apply(&rank.device, rank.forward.elementwise(), &mut rank.entries, changed, rows)?;
        }
        Ok(())
    }

    /// Queues the layers for checked rows, at most as many as fit together. The normed last states of the picking
    /// ones are kept from place `picked` on; says how many they are.
    pub(crate) fn layers(&mut self, rows: &[Placed], picked: u32) -> Result<u32, CudaError> {
        let mut plans = Vec::with_capacity(self.all.len());
        for rank in &mut self.all {
            rank.device.bind()?;
            plans.push(rank.forward.plan(rows, &rank.kv)?);
        }
        if plans[0].graph {
            self.graphs(&plans)?
        } else {
            self.queue(&plans)?
        }
        for (rank, plan) in self.all.iter().zip(&plans) {
            rank.device.bind()?;
            rank.forward.pick(*plan, picked)?;
        }
        Ok(plans[0].batch.picks)
    }

    /// Begins the layers of a step of rows that all pick, each in another slot, with tokens that are being drawn
    /// ([`Forward::begin_early`]). Not built for models on several GPUs.
    pub(crate) fn begin_early(&mut self, rows: &[Placed], drawn: u64) -> Result<Option<Plan>, CudaError> {
        let [alone] = &mut self.all[..] else { return Ok(None) };
        alone.device.bind()?;
        alone.forward.begin_early(rows, drawn, &alone.kv)
    }

    /// Whether every page that a row sees and writes is in its table.
    pub(crate) fn covers(&self, row: &CheckedRow) -> bool {
        self.all.iter().all(|rank| {
            let none = rank.kv.change(&[]);
            none.is_ok_and(|none| rank.kv.tables().covers(&none, row.slot, row.position).is_ok())
        })
    }

    /// A step that was begun early has come: `picks` of its rows do.
    pub(crate) fn adopt(&mut self, plan: Plan, picks: &[i32]) -> Result<(), CudaError> {
        for rank in &mut self.all {
            rank.device.bind()?;
            let plan = rank.forward.repick(plan, picks)?;
            rank.forward.pick(plan, 0)?;
        }
        Ok(())
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.all.len() == 1
    }

    /// Queues the head for `count` picked rows from place `first` on; rows of the whole width go to `logits` on the
    /// first GPU, behind all work of it that has been waited for.
    pub(crate) fn head(
        &mut self,
        first: u32,
        count: u32,
        logits: &Buffer,
        width: u32,
    ) -> Result<(), CudaError> {
        let [alone] = &mut self.all[..] else { return self.heads(first, count, logits, width as usize) };
        alone.device.bind()?;
        alone.forward.head(first, count, logits.at(0))
    }

    /// What went wrong between GPUs, if anything: to be asked after a wait.
    pub(crate) fn check(&self) -> Result<(), CudaError> {
        self.exchange.as_ref().map_or(Ok(()), Exchange::check)
    }

    /// Waits for all GPUs.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        for rank in &self.all {
            rank.device.bind()?;
            rank.device.synchronize()?;
        }
        self.check()
    }

    fn heads(&mut self, first: u32, count: u32, logits: &Buffer, width: usize) -> Result<(), CudaError> {
        let home = Rc::clone(&self.all[0].device);
        for rank in &mut self.all {
            let Some(part) = rank.part.as_ref().filter(|_| !rank.columns.is_empty()) else { continue };
            rank.device.bind()?;
            rank.forward.head(first, count, part.at(0))?;
            let each = size_of::<f32>();
            assert!(count as usize * rank.columns.len() * each <= part.bytes(), "logits beyond their buffer");
            assert!(count as usize * width * each <= logits.bytes(), "logits beyond their buffer");
            let columns = Columns {
                from: part.at(0),
                from_pitch: rank.columns.len() * each,
                to: logits.at(rank.columns.start * each),
                to_pitch: width * each,
                rows: count as usize,
            };
            columns.copy(&rank.device, &home)?;
            if !Rc::ptr_eq(&rank.device, &home) {
                // What follows on the first GPU waits for the columns of this one.
                home.stream.join(&rank.device.stream).doing("waiting for another GPU's logits")?;
            }
        }
        home.bind()
    }

    /// Captures steps of few rows of every size that there can be. Activations are lost.
    pub(crate) fn warm(&mut self) -> Result<(), CudaError> {
        // Ranks may have unequal heads: what one needs is captured for all.
        let mut all: Vec<Plan> = self.all.iter().flat_map(|rank| rank.forward.graph_plans()).collect();
        let mut met = HashSet::new();
        all.retain(|plan| met.insert(Key::of(plan.batch)));
        for plan in all {
            let plans = vec![plan; self.all.len()];
            let keys = vec![Key::of(plan.batch); self.all.len()];
            if !self.all.iter().zip(&keys).all(|(rank, key)| rank.forward.has(*key)) {
                self.capture(&plans, &keys)?;
            }
        }
        self.synchronize()
    }

    /// Launches the graphs of a batch, captured when it is first met.
    fn graphs(&mut self, plans: &[Plan]) -> Result<(), CudaError> {
        let keys: Vec<Key> = plans.iter().map(|plan| Key::of(plan.batch)).collect();
        if !self.all.iter().zip(&keys).all(|(rank, key)| rank.forward.has(*key)) {
            self.capture(plans, &keys)?;
        }
        for (rank, key) in self.all.iter().zip(&keys) {
            rank.device.bind()?;
            rank.forward.launch(*key)?;
        }
        Ok(())
    }

    fn capture(&mut self, plans: &[Plan], keys: &[Key]) -> Result<(), CudaError> {
        let rows = plans[0].batch.rows;
        for (index, rank) in self.all.iter().enumerate() {
            rank.device.bind()?;
            rank.forward.tune(rows, self.sink(index, 0, rows))?;
        }
        if let Some(exchange) = &self.exchange {
            exchange.warm(rows)?;
            self.synchronize()?;
        }
        // As many tiles as there can be; those beyond the count return.
        let most = |plan: &Plan| Plan { batch: Batch { few: rows, many: 0, ..plan.batch }, ..*plan };
        let most: Vec<Plan> = plans.iter().map(most).collect();
        let begun =
            self.all.iter().try_for_each(|rank| rank.device.bind().and_then(|()| rank.forward.begin()));
        let queued = begun.and_then(|()| self.queue(&most));
        // Whatever failed, no stream stays under capture.
        let graphs: Vec<_> =
            self.all.iter().map(|rank| rank.device.bind().and_then(|()| rank.forward.end())).collect();
        queued?;
        for ((rank, key), graph) in self.all.iter_mut().zip(keys).zip(graphs) {
            rank.forward.keep(*key, graph?);
        }
        Ok(())
    }

    /// Queues embedding and all layers of a batch; leaves the residual stream in each rank's activations.
    fn queue(&self, plans: &[Plan]) -> Result<(), CudaError> {
        let rows = plans[0].batch.rows;
        if self.all.iter().all(|rank| rank.forward.persists(rows)) {
            return self.all.iter().zip(plans).enumerate().try_for_each(|(index, (rank, plan))| {
                let peers = self.exchange.as_ref().and_then(|exchange| exchange.peers(index));
                rank.device.bind()?;
                rank.forward.layers(*plan, &rank.kv, peers.unwrap_or_default())
            });
        }
        if let [alone] = &self.all[..]
            && alone.forward.streams(rows)
        {
            alone.device.bind()?;
            return alone.forward.streamed_layers(plans[0], &alone.kv);
        }
        for (rank, plan) in self.all.iter().zip(plans) {
            rank.device.bind()?;
            rank.forward.embed(*plan)?;
        }
        let mut normed = false;
        for layer in 0..self.all[0].forward.layer_count() {
            for (index, (rank, plan)) in self.all.iter().zip(plans).enumerate() {
                rank.device.bind()?;
                rank.forward.attention_part(layer, *plan, &rank.kv, normed, self.sink(index, 0, rows))?;
            }
            normed = self.sum(layer, 0, rows)?;
            for (index, rank) in self.all.iter().enumerate() {
                rank.device.bind()?;
                rank.forward.feed_forward(layer, rows, normed, self.sink(index, 1, rows))?;
            }
            normed = self.sum(layer, 1, rows)?;
        }
        Ok(())
    }

    /// Where a rank's half of a layer ends: 0 attention, 1 feed-forward.
    fn sink(&self, rank: usize, slot: usize, rows: u32) -> Sink {
        match &self.exchange {
            None => Sink::Residual,
            Some(exchange) => {
                let (address, dtype) = exchange.partial(rank, slot, rows);
                Sink::Partial(address, dtype)
            }
        }
    }

    /// Queues the sums behind a half of a layer, if there are several ranks; says whether the norm that follows it is
    /// made.
    fn sum(&self, layer: usize, slot: usize, rows: u32) -> Result<bool, CudaError> {
        let Some(exchange) = &self.exchange else { return Ok(false) };
        let targets: Vec<Target> =
            self.all.iter().map(|rank| rank.forward.target(layer, slot, rows)).collect();
        exchange.sum(slot, rows, &targets)?;
        Ok(targets.iter().all(|target| target.norm.is_some()))
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // Graphs first: NCCL gives a communicator up only when no graph uses it any more. A failure to wait leaves
        // nothing better to do.
        let _ = self.synchronize();
        for rank in &mut self.all {
            rank.forward.forget_graphs();
        }
        self.exchange = None;
    }
}

/// Columns of rows of logits, on their way to the first GPU. In bytes.
struct Columns {
    from: u64,
    from_pitch: usize,
    to: u64,
    to_pitch: usize,
    rows: usize,
}

impl Columns {
    /// Queued on the stream of the GPU that has them.
    fn copy(&self, device: &Device, home: &Device) -> Result<(), CudaError> {
        let kind = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let copied = if device.context == home.context {
            let copy = sys::CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: kind,
                srcHost: std::ptr::null(),
                srcDevice: self.from,
                srcArray: std::ptr::null_mut(),
                srcPitch: self.from_pitch,
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: kind,
                dstHost: std::ptr::null_mut(),
                dstDevice: self.to,
                dstArray: std::ptr::null_mut(),
                dstPitch: self.to_pitch,
                WidthInBytes: self.from_pitch,
                Height: self.rows,
            };
            // SAFETY: both lie inside their buffers, as `heads` has checked.
            unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, device.stream.cu_stream()) }
        } else {
            let copy = sys::CUDA_MEMCPY3D_PEER {
                srcXInBytes: 0,
                srcY: 0,
                srcZ: 0,
                srcLOD: 0,
                srcMemoryType: kind,
                srcHost: std::ptr::null(),
                srcDevice: self.from,
                srcArray: std::ptr::null_mut(),
                srcContext: device.context.cu_ctx(),
                srcPitch: self.from_pitch,
                srcHeight: self.rows,
                dstXInBytes: 0,
                dstY: 0,
                dstZ: 0,
                dstLOD: 0,
                dstMemoryType: kind,
                dstHost: std::ptr::null_mut(),
                dstDevice: self.to,
                dstArray: std::ptr::null_mut(),
                dstContext: home.context.cu_ctx(),
                dstPitch: self.to_pitch,
                dstHeight: self.rows,
                WidthInBytes: self.from_pitch,
                Height: self.rows,
                Depth: 1,
            };
            // SAFETY: as above.
            unsafe { sys::cuMemcpy3DPeerAsync(&raw const copy, device.stream.cu_stream()) }
        };
        copied.result().doing("gathering logits")
    }
}
