//! Keys and values of kept rows, copied to their own positions; the kernel is in `kernels/trees.cu`.

use kvcache::{PAGE_POSITIONS, PageId};

use super::TREE_ROWS;
use crate::check::DEEPEST;
use crate::cuda::kv::ClassLayer;
use crate::cuda::{Arg, Buffer, Cells, CudaError, Device, Kernel, KvKept, Launch, Module};

/// Rows of one tree that are kept, in one class. In positions of the pool: page * 16 + place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    from: Vec<u32>,
    to: Vec<u32>,
}

impl Moves {
    /// What is stored at a position in a page goes to another; not if it is there.
    pub(super) fn push(&mut self, from: (PageId, u32), to: (PageId, u32)) {
        let place = |(page, position): (PageId, u32)| page.0 * PAGE_POSITIONS + position % PAGE_POSITIONS;
        if place(from) != place(to) {
            self.from.push(place(from));
            self.to.push(place(to));
        }
    }

    #[cfg(test)]
    pub(super) fn pairs(&self) -> Vec<(u32, u32)> {
        self.from.iter().copied().zip(self.to.iter().copied()).collect()
    }

    /// As `Moves` in the kernel.
    fn words(&self) -> [i32; WORDS] {
        let mut words = [0; WORDS];
        words[0] = self.from.len() as i32;
        for (i, (from, to)) in self.from.iter().zip(&self.to).enumerate() {
            (words[1 + i], words[1 + DEEPEST as usize + i]) = (*from as i32, *to as i32);
        }
        words
    }
}

const WORDS: usize = 1 + 2 * DEEPEST as usize;

/// The launcher.
pub(crate) struct Keeper {
    kernel: Kernel,
    _module: Module,
    /// By class: u64 triples of each layer: address, bytes from one page to the next, heads.
    layers: Vec<Buffer>,
    /// The moves of a launch.
    moves: Buffer,
    /// Of the class with the most in a layer.
    heads: Vec<u32>,
    cells: Cells,
}

impl Keeper {
    /// For classes given by their storage and layers.
    pub(crate) fn new(
        device: &Device,
        classes: &[(u64, &[ClassLayer])],
        cells: Cells,
    ) -> Result<Self, CudaError> {
        let row = cells.head_dim * cells.element();
        assert!(row.is_multiple_of(16) && row / 8 < 1000, "keys that a block cannot copy");
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/trees.fatbin")))?;
        let list = |(base, layers): &(u64, &[ClassLayer])| {
            let words: Vec<u64> = layers
                .iter()
                .flat_map(|of| [base + of.base as u64, of.page as u64, of.heads.into()])
                .collect();
            Buffer::of(device, "layers of a class", &words)
        };
        Ok(Self {
            kernel: module.kernel("keep_rows", 0)?,
            _module: module,
            layers: classes.iter().map(list).collect::<Result<_, _>>()?,
            moves: Buffer::zeros(device, "rows that are kept", TREE_ROWS as usize * WORDS * 4)?,
            heads: classes
                .iter()
                .map(|(_, layers)| layers.iter().map(|of| of.heads).max().unwrap_or(0))
                .collect(),
            cells,
        })
    }

    /// Queues all moves of a class, those of different trees among different pages.
    pub(crate) fn keep(&mut self, device: &Device, class: usize, moves: &[&Moves]) -> Result<(), CudaError> {
        let words: Vec<i32> =
            moves.iter().filter(|moves| !moves.from.is_empty()).flat_map(|moves| moves.words()).collect();
        let (layers, heads) = (&self.layers[class], self.heads[class]);
        let layer_count = (layers.bytes() / 24) as u32;
        if heads == 0 {
            return Ok(());
        }
        for some in words.chunks(TREE_ROWS as usize * WORDS) {
            self.moves.write(device, 0, some)?;
            let grid = [heads, layer_count, (some.len() / WORDS) as u32];
            let row = (self.cells.head_dim * self.cells.element()) as u32;
            // Second codes, and two scales.
            let more = if self.cells.kept == KvKept::Fp8 { 3 } else { 0 };
            let launch = Launch { grid, threads: row / 8 + more, shared: 0 };
            let head = self.cells.head() as u32;
            let args: [Arg; 4] = [layers.at(0).into(), self.moves.at(0).into(), head.into(), row.into()];
            device.launch(self.kernel, launch, &args)?;
        }
        Ok(())
    }
}
