//! What this machine's memory gives: the floor of every step that reads all weights once.

use std::time::Instant;

use super::pool::Pool;
use crate::LoadError;
use crate::simd::{Kernel, Lanes, Level, Line};

/// Far larger than any cache that two cores have to themselves.
const BYTES: usize = 512 << 20;
/// What one task reads.
const PIECE: usize = 1 << 20;
const PASSES: usize = 5;

/// Bytes a second that `threads` threads read from memory in order, doing nothing else: the best of a few
/// passes over half a gigabyte.
pub fn memory_bandwidth(threads: usize) -> Result<f64, LoadError> {
    let mut pool = Pool::new(threads.max(1)).map_err(|e| LoadError::Threads(e.to_string()))?;
    let memory = |source| LoadError::Memory { bytes: BYTES, source };
    let mut map = memmap2::MmapMut::map_anon(BYTES).map_err(memory)?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    // Pages that were never written are all one page of zeros.
    pool.pieces(&mut map, PIECE, |i, piece| piece.fill(i as u8 | 1));
    let level = Level::best();
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        pool.each(BYTES / PIECE, |i| {
            let read = level.run(Read(map[i * PIECE..(i + 1) * PIECE].as_chunks().0));
            // Otherwise nothing would have to be read.
            std::hint::black_box(read);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(BYTES as f64 / best.max(1e-9))
}

struct Read<'a>(&'a [Line]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let mut sums = [l.ints(0); 4];
        for lines in self.0.as_chunks::<4>().0 {
            for (sum, line) in sums.iter_mut().zip(lines) {
                *sum = l.add(*sum, l.words(line));
            }
        }
        let all = l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3]));
        let mut out = [0.0; 16];
        l.store(l.to_floats(all), &mut out);
        out.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_has_a_speed() {
        let found = super::memory_bandwidth(2).unwrap();
        assert!((1e7..1e13).contains(&found), "{found:e} bytes a second");
    }
}
