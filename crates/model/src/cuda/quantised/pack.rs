//! Quantised matrices in the order in which the kernels read them (`kernels/quantised.cuh` has the layout).

use rayon::prelude::*;

use super::fp8;
use crate::quant::scales_and_minima;

/// How the weights of a matrix are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // The formats' own names.
pub(crate) enum Kept {
    Q4_K,
    Q8_0,
    /// E4M3 with a scale an output.
    Fp8,
}

/// Bytes of a tile's quants.
const QUANTS: usize = 2048;
/// Outputs of a tile, and what their number is padded to.
const OUTPUTS: usize = 16;
const PAD: usize = 32;
/// Bytes of a block of a GGUF file.
const Q4_K_BLOCK: usize = 144;
const Q8_0_BLOCK: usize = 34;

impl Kept {
    /// Inputs of a tile.
    pub(crate) fn inputs(self) -> usize {
        match self {
            Self::Q4_K => 256,
            Self::Q8_0 | Self::Fp8 => 128,
        }
    }

    pub(crate) fn tile_bytes(self) -> usize {
        match self {
            Self::Q4_K => QUANTS + OUTPUTS * 20,
            Self::Q8_0 => QUANTS + OUTPUTS * 8,
            Self::Fp8 => QUANTS,
        }
    }

    /// Bytes of a matrix.
    pub(crate) fn bytes(self, outputs: usize, inputs: usize) -> usize {
        outputs.next_multiple_of(PAD) / OUTPUTS * inputs.div_ceil(self.inputs()) * self.tile_bytes()
    }
}

/// Packs a matrix; `fill(tile, output of the tile, output of the matrix, tile along the inputs)` writes one output.
fn pack(
    kept: Kept,
    outputs: usize,
    inputs: usize,
    fill: impl Fn(&mut [u8], usize, usize, usize) + Sync,
) -> Vec<u8> {
    let mut packed = vec![0; kept.bytes(outputs, inputs)];
    let (tiles, bytes) = (inputs.div_ceil(kept.inputs()), kept.tile_bytes());
    packed.par_chunks_exact_mut(tiles * bytes).enumerate().for_each(|(band, tiles)| {
        for (at, tile) in tiles.chunks_exact_mut(bytes).enumerate() {
            for of in 0..OUTPUTS.min(outputs.saturating_sub(band * OUTPUTS)) {
                fill(tile, of, band * OUTPUTS + of, at);
            }
        }
    });
    packed
}

/// From the blocks of a GGUF file; `inputs` is a multiple of 256.
pub(crate) fn q4_k(blocks: &[u8], outputs: usize, inputs: usize) -> Vec<u8> {
    assert_eq!(blocks.len(), outputs * inputs / 256 * Q4_K_BLOCK, "bytes of a Q4_K matrix");
    let (blocks, tiles) = (blocks.as_chunks::<Q4_K_BLOCK>().0, inputs / 256);
    pack(Kept::Q4_K, outputs, inputs, |tile, of, output, at| {
        let block = &blocks[output * tiles + at];
        let packed = [0, 4, 8].map(|i| [block[4 + i], block[5 + i], block[6 + i], block[7 + i]]);
        let (scales, minima) = scales_and_minima(&packed);
        for input in 0..256 {
            let (sub, r) = (input / 32, input % 32);
            let q = block[16 + sub / 2 * 32 + r] >> (sub % 2 * 4) & 15;
            // Lane, then word of the lane's 16 bytes, then pair and the odd one of it.
            let at = sub / 2 * 512
                + (of % 8 * 4 + r / 8) * 16
                + (sub % 2 * 2 + r % 8 / 4) * 4
                + r % 4 / 2
                + r % 2 * 2;
            tile[at] |= q << (of / 8 * 4);
        }
        let (scale, d) = (QUANTS + of * 16, QUANTS + 256 + of * 4);
        tile[scale..scale + 8].copy_from_slice(&scales);
        tile[scale + 8..scale + 16].copy_from_slice(&minima);
        tile[d..d + 4].copy_from_slice(&block[..4]);
    })
}

/// Where a byte of a tile lies, for the formats of a byte a weight.
fn byte_at(of: usize, input: usize) -> usize {
    let (sub, r) = (input / 32, input % 32);
    sub * 512 + (of % 8 * 4 + r / 8) * 16 + (r % 8 / 4 * 2 + of / 8) * 4 + r % 4
}

/// From the blocks of a GGUF file; `inputs` is a multiple of 32.
pub(crate) fn q8_0(blocks: &[u8], outputs: usize, inputs: usize) -> Vec<u8> {
    assert_eq!(blocks.len(), outputs * inputs / 32 * Q8_0_BLOCK, "bytes of a Q8_0 matrix");
    let (blocks, row) = (blocks.as_chunks::<Q8_0_BLOCK>().0, inputs / 32);
    pack(Kept::Q8_0, outputs, inputs, |tile, of, output, at| {
        for sub in 0..4.min(row - at * 4) {
            let block = &blocks[output * row + at * 4 + sub];
            let scale = QUANTS + of * 8 + sub * 2;
            tile[scale..scale + 2].copy_from_slice(&block[..2]);
            for (r, q) in block[2..].iter().enumerate() {
                tile[byte_at(of, sub * 32 + r)] = q ^ 128;
            }
        }
    })
}

/// From rows of floats: the packed matrix and the scale of each output.
pub(crate) fn fp8(rows: &[f32], outputs: usize, inputs: usize) -> (Vec<u8>, Vec<f32>) {
    assert_eq!(rows.len(), outputs * inputs, "floats of a matrix");
    let scales: Vec<f32> = rows.par_chunks_exact(inputs).map(fp8::scale).collect();
    let packed = pack(Kept::Fp8, outputs, inputs, |tile, of, output, at| {
        let row = &rows[output * inputs..(output + 1) * inputs];
        for (input, w) in row.iter().skip(at * 128).take(128).enumerate() {
            tile[byte_at(of, input)] = fp8::code(w / scales[output]);
        }
    });
    (packed, scales)
}
