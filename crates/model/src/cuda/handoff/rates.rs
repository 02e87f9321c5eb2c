//! How fast pages go from one GPU to another, how fast NCCL sends as many bytes, and how fast pages go through the
//! host's memory.

use std::time::Instant;

use engine::{Model, ModelError};
use kvcache::{ClassId, PAGE_POSITIONS, PageId};

use super::super::nccl::Nccl;
use super::super::{Buffer, CudaError, CudaModel, Device};
use super::{HandOff, PageMove};

/// One way of sending so many bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferRate {
    /// `hand-off`: whole pages with checksums, until they are compared. `nccl send`: one send until it has arrived.
    /// `nccl sends`: of several in a row. `to the host`, `from the host`: whole pages as an engine exports and imports
    /// them.
    pub what: &'static str,
    pub bytes: u64,
    pub microseconds: f64,
}

const RUNS: usize = 9;
const IN_A_ROW: usize = 8;

/// Moves pages of at least `bytes` bytes from one model to the other and back to back by NCCL, between their first
/// GPUs, which must differ.
pub fn transfer_rates(from: &CudaModel, to: &CudaModel, bytes: u64) -> Result<Vec<TransferRate>, ModelError> {
    let map = &from.layout.map;
    // Key and value of one position of one head.
    let unit = (from.layout.cells.head() / PAGE_POSITIONS as usize) as u64;
    let sizes: u64 = (0..map.classes.len()).map(|class| map.page_bytes(class, unit)).sum();
    let count = bytes.div_ceil(sizes.max(1)) as u32;
    let classes = 0..map.classes.len() as u8;
    let moves: Vec<PageMove> = classes
        .flat_map(|class| {
            (0..count).map(move |page| PageMove {
                class: ClassId(class),
                from: PageId(page),
                to: PageId(count - 1 - page),
            })
        })
        .collect();
    let mut way = HandOff::between(from, to, moves.len())?;
    let mut sent = 0;
    let hand_off = median(|| {
        let moved = way.move_pages(from, to, &moves)?;
        sent = moved.bytes;
        if moved.intact.iter().all(|intact| *intact) {
            Ok(())
        } else {
            Err(ModelError::Device("a page changed on its way".to_owned()))
        }
    })?;
    let (source, target) = (from.ranks.first().device.beside()?, to.ranks.first().device.beside()?);
    let devices: [&Device; 2] = [&source, &target];
    let nccl = Nccl::start(&devices)?;
    let theirs = Buffer::zeros(&source, "a measurement", sent as usize)?;
    let ours = Buffer::zeros(&target, "a measurement", sent as usize)?;
    let wait = || -> Result<(), CudaError> {
        for device in devices {
            device.bind()?;
            device.synchronize()?;
        }
        Ok(())
    };
    wait()?;
    let send = || nccl.send(&devices, [0, 1], [theirs.at(0), ours.at(0)], sent as usize);
    let one = median(|| Ok(send().and_then(|()| wait())?))?;
    let several = median(|| Ok((0..IN_A_ROW).try_for_each(|_| send()).and_then(|()| wait())?))?;
    let rate = |what, microseconds| TransferRate { what, bytes: sent, microseconds };
    Ok(vec![
        rate("hand-off", hand_off),
        rate("nccl send", one),
        rate("nccl sends", several / IN_A_ROW as f64),
    ])
}

/// Reads pages of at least `bytes` bytes out, layer by layer, and writes them back.
pub fn host_rates(model: &mut CudaModel, bytes: u64) -> Result<Vec<TransferRate>, ModelError> {
    let (class, layers) = (ClassId(0), model.layers());
    let mut page = vec![Vec::new(); layers as usize];
    let read = |model: &mut CudaModel, id: PageId, into: &mut [Vec<u8>]| {
        (0..layers).zip(into).try_for_each(|(layer, bytes)| {
            bytes.clear();
            model.export(class, id, layer, bytes)
        })
    };
    read(model, PageId(0), &mut page)?;
    let size = page.iter().map(Vec::len).sum::<usize>().max(1) as u64;
    let pages = (bytes.div_ceil(size) as u32).clamp(1, model.spec().classes[0].1);
    let out = median(|| (0..pages).try_for_each(|id| read(model, PageId(id), &mut page)))?;
    let back = median(|| {
        for id in 0..pages {
            for (layer, bytes) in (0..).zip(&page) {
                model.import(class, PageId(id), layer, bytes)?;
            }
        }
        Ok(model.ranks.synchronize()?)
    })?;
    let rate = |what, microseconds| TransferRate { what, bytes: u64::from(pages) * size, microseconds };
    Ok(vec![rate("to the host", out), rate("from the host", back)])
}

/// Of several runs after two, in microseconds.
fn median(mut run: impl FnMut() -> Result<(), ModelError>) -> Result<f64, ModelError> {
    let mut taken = Vec::new();
    for n in 0..RUNS + 2 {
        let start = Instant::now();
        run()?;
        if n >= 2 {
            taken.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken[RUNS / 2])
}
