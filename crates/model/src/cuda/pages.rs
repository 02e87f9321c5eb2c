//! Pages of keys and values to and from a contiguous buffer, for hand-off between GPUs.

use std::ops::Range;

use super::timing::{Timing, time};
use super::{Arg, Buffer, CudaError, Device, Kernel, Launch, Module};

/// Launchers of `kernels/pages.cu`.
pub(crate) struct Pages {
    _module: Module,
    gather: Kernel,
    scatter: Kernel,
    /// The units of a launch.
    units: Buffer,
}

/// Pages of one class in one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PagePool {
    /// A multiple of 16.
    pub(crate) base: u64,
    /// Bytes from one page to the next, a multiple of 16.
    pub(crate) stride: usize,
    pub(crate) pages: usize,
}

/// A page of a pool: what is moved and has a checksum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) pool: PagePool,
    pub(crate) page: usize,
}

/// Which way pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From their pools to the buffer.
    Gather,
    Scatter,
}

const THREADS: u32 = 256;
/// Bytes that a block copies.
const SPAN: usize = THREADS as usize * 4 * 16;
const UNIT_BYTES: usize = 24;

impl Pages {
    /// Most units of one launch: rows of a grid.
    pub(crate) const MOST_UNITS: usize = 65_535;

    /// For lists of at most `units` units.
    pub(crate) fn new(device: &Device, units: usize) -> Result<Self, CudaError> {
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/pages.fatbin")))?;
        Ok(Self {
            gather: module.kernel("gather_pages", 0)?,
            scatter: module.kernel("scatter_pages", 0)?,
            _module: module,
            units: Buffer::zeros(device, "the list of pages in flight", units * UNIT_BYTES)?,
        })
    }

    /// Queues the copy of units of `bytes` bytes each; unit i lies at `at + i * bytes` of `staging`. [`Self::sums`]
    /// gives their checksums.
    pub(crate) fn copy(
        &mut self,
        device: &Device,
        way: Way,
        units: &[Unit],
        bytes: usize,
        staging: &Buffer,
        at: usize,
    ) -> Result<(), CudaError> {
        if units.is_empty() {
            return Ok(());
        }
        let staged: Vec<usize> = (0..units.len()).map(|i| at + i * bytes).collect();
        self.list(device, units, &vec![bytes; units.len()], &staged, staging)?;
        self.run(device, way, 0..units.len(), bytes, staging)
    }

    /// Queues the list of the units that [`Self::run`] copies, with their sizes and places in `staging`, both in bytes.
    pub(crate) fn list(
        &mut self,
        device: &Device,
        units: &[Unit],
        sizes: &[usize],
        staged: &[usize],
        staging: &Buffer,
    ) -> Result<(), CudaError> {
        assert!(units.len() * UNIT_BYTES <= self.units.bytes(), "more units than there is room for");
        assert!(sizes.len() == units.len() && staged.len() == units.len(), "a size and a place a unit");
        let list: Vec<u64> = units
            .iter()
            .zip(sizes.iter().zip(staged))
            .flat_map(|(unit, (&bytes, &at))| {
                let pool = unit.pool;
                assert!(
                    bytes.is_multiple_of(16) && at.is_multiple_of(16) && bytes > 0,
                    "units off the grid of 16 bytes"
                );
                assert!(at + bytes <= staging.bytes(), "units beyond the buffer they pass through");
                assert!(unit.page < pool.pages && bytes <= pool.stride, "a page outside its pool");
                assert!(
                    pool.base.is_multiple_of(16) && pool.stride.is_multiple_of(16),
                    "a pool off its grid"
                );
                [pool.base + (unit.page * pool.stride) as u64, at as u64, 0]
            })
            .collect();
        self.units.write(device, 0, &list)
    }

    /// Queues the copy of listed units, all of `bytes` bytes as listed.
    pub(crate) fn run(
        &self,
        device: &Device,
        way: Way,
        units: Range<usize>,
        bytes: usize,
        staging: &Buffer,
    ) -> Result<(), CudaError> {
        assert!(
            units.end * UNIT_BYTES <= self.units.bytes() && units.len() <= Self::MOST_UNITS,
            "units of no list"
        );
        let kernel = match way {
            Way::Gather => self.gather,
            Way::Scatter => self.scatter,
        };
        let args: [Arg; 3] = [
            self.units.at(units.start * UNIT_BYTES).into(),
            staging.at(0).into(),
            ((bytes / 16) as u32).into(),
        ];
        device.launch(kernel, spread(bytes, units.len()), &args)
    }

    /// Waits for the last copy; the checksums of its first `count` units ([`checksum`] of their bytes).
    pub(crate) fn sums(&self, device: &Device, count: usize) -> Result<Vec<u64>, CudaError> {
        let list: Vec<u64> = self.units.read(device, 0, count * UNIT_BYTES / 8)?;
        Ok(list.chunks_exact(UNIT_BYTES / 8).map(|unit| unit[2]).collect())
    }

    /// 64 MiB in units of a Llama-3.1-8B's layer: 8 heads of 128 in BF16.
    pub(crate) fn timings(device: &Device) -> Result<Vec<Timing>, CudaError> {
        let (bytes, count) = (8 * 2 * 16 * 128 * 2, 2048);
        let mut pages = Self::new(device, count)?;
        let memory = Buffer::zeros(device, "a pool of pages", 2 * count * bytes)?;
        let staging = Buffer::zeros(device, "pages in flight", count * bytes)?;
        let pool = PagePool { base: memory.at(0), stride: bytes, pages: 2 * count };
        let units: Vec<Unit> = (0..count).map(|i| Unit { pool, page: i * 7919 % (2 * count) }).collect();
        let mut timings = Vec::new();
        for (kernel, way) in [("gather_pages", Way::Gather), ("scatter_pages", Way::Scatter)] {
            for count in [64, 1024, count] {
                pages.copy(device, way, &units[..count], bytes, &staging, 0)?;
                // The list stays; only its sums go on.
                let launched = if way == Way::Gather { pages.gather } else { pages.scatter };
                let args: [Arg; 3] =
                    [pages.units.at(0).into(), staging.at(0).into(), ((bytes / 16) as u32).into()];
                let microseconds =
                    time(device, 7, 20, || device.launch(launched, spread(bytes, count), &args))?;
                timings.push(Timing {
                    kernel,
                    shape: format!("{count} units of 128 KiB"),
                    microseconds,
                    bytes: (2 * count * bytes) as u64,
                    operations: 0,
                });
            }
        }
        Ok(timings)
    }
}

fn spread(bytes: usize, units: usize) -> Launch {
    Launch { grid: [bytes.div_ceil(SPAN) as u32, units as u32, 1], threads: THREADS, shared: 0 }
}

/// The checksum of a unit, as `kernels/pages.cu` defines it; a remainder of less than 16 bytes is left out.
#[cfg(test)]
pub(crate) fn checksum(unit: &[u8]) -> u64 {
    let mix = |i: u32| {
        let i = (i ^ i >> 15).wrapping_mul(0x2c1b_3c6d).wrapping_add(0x9e37_79b9);
        let i = (i ^ i >> 12).wrapping_mul(0x297a_2d39);
        i ^ i >> 15
    };
    let pieces = unit.as_chunks::<16>().0.iter().zip(0u32..);
    pieces.fold(0, |sum: u64, (piece, i)| {
        let k = mix(i);
        let word = |at: usize| {
            let word = u32::from_le_bytes([piece[at], piece[at + 1], piece[at + 2], piece[at + 3]]);
            u64::from(word.wrapping_add(k.rotate_left(2 * at as u32)))
        };
        sum.wrapping_add(word(0).wrapping_mul(word(4))).wrapping_add(word(8).wrapping_mul(word(12)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{self, Random};

    #[test]
    fn a_unit_is_cut_into_blocks_of_16_kib() {
        assert_eq!(spread(16, 3).grid, [1, 3, 1]);
        assert_eq!(spread(16_384, 1).grid, [1, 1, 1]);
        assert_eq!(spread(16_400, 65_535).grid, [2, 65_535, 1]);
    }

    #[test]
    fn every_bit_and_every_place_counts_in_a_checksum() {
        let mut random = Random::new(5);
        let unit: Vec<u8> = (0..256).map(|_| random.bits() as u8).collect();
        let sum = checksum(&unit);
        for bit in 0..256 * 8 {
            let mut other = unit.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&other), sum, "bit {bit}");
        }
        let mut turned = unit.clone();
        turned.rotate_left(16);
        assert_ne!(checksum(&turned), sum);
        assert_ne!(checksum(&[0; 32]), checksum(&[0; 48]));
    }

    #[test]
    fn pages_travel_with_their_checksums() {
        let Some(device) = testing::device() else { return };
        let mut random = Random::new(std::process::id().into());
        for (bytes, stride, pages, count) in [
            (16, 16, 3, 3),
            (4080, 4096, 9, 5),
            (16_384, 16_384, 8, 8),
            (16_400, 16_416, 6, 4),
            (131_072, 131_072, 40, 33),
        ] {
            let mut launcher = Pages::new(&device, 64).unwrap();
            let values: Vec<u64> = (0..stride * pages * 2 / 8).map(|_| random.bits()).collect();
            let memory: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let pool = Buffer::of(&device, "pool", &memory).unwrap();
            let pools = [0, stride * pages].map(|at| PagePool { base: pool.at(at), stride, pages });
            let mut order: Vec<usize> = (0..2 * pages).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, random.below(i as u32 + 1) as usize);
            }
            let units: Vec<Unit> =
                order[..count].iter().map(|at| Unit { pool: pools[at / pages], page: at % pages }).collect();
            let poison = vec![0xeeu8; count * bytes + 32];
            let staging = Buffer::of(&device, "staging", &poison).unwrap();
            launcher.copy(&device, Way::Gather, &units, bytes, &staging, 16).unwrap();
            let sums = launcher.sums(&device, count).unwrap();
            let staged: Vec<u8> = staging.read(&device, 0, poison.len()).unwrap();
            let unit = |i: usize| &memory[order[i] * stride..order[i] * stride + bytes];
            for i in 0..count {
                assert_eq!(
                    &staged[16 + i * bytes..16 + (i + 1) * bytes],
                    unit(i),
                    "unit {i} of {bytes} bytes"
                );
                assert_eq!(sums[i], checksum(unit(i)));
            }
            assert!(staged[..16].iter().chain(&staged[16 + count * bytes..]).all(|b| *b == 0xee));
            // Back into a poisoned pool.
            let there = Buffer::of(&device, "pool", &vec![0xeeu8; memory.len()]).unwrap();
            let pools = [0, stride * pages].map(|at| PagePool { base: there.at(at), stride, pages });
            let back: Vec<Unit> =
                order[..count].iter().map(|at| Unit { pool: pools[at / pages], page: at % pages }).collect();
            launcher.copy(&device, Way::Scatter, &back, bytes, &staging, 16).unwrap();
            assert_eq!(launcher.sums(&device, count).unwrap(), sums);
            let arrived: Vec<u8> = there.read(&device, 0, memory.len()).unwrap();
            let mut expected = vec![0xeeu8; memory.len()];
            for at in &order[..count] {
                let range = at * stride..at * stride + bytes;
                expected[range.clone()].copy_from_slice(&memory[range]);
            }
            assert!(arrived == expected, "{bytes} bytes");
        }
    }
}
