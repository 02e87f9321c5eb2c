//! The contract once more, one weight at a time and from the formats' definitions (byte offsets as
//! ggml documents them): what every kernel at every level must equal to the bit. For tests.

use half::f16;

use super::Format;

pub(crate) const ALL: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
];

/// A block by its definition: `w_i = d * scale(i) * quant_i - m * minimum(i)`.
struct Definition {
    d: f32,
    /// What the minima are multiplied with; `None` for formats without.
    m: Option<f32>,
    quants: Vec<i32>,
    /// Per element.
    scales: Vec<i32>,
    minima: Vec<i32>,
}

fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Low and high halves of 16 bytes at `at`.
fn nibbles(b: &[u8], at: usize) -> Vec<i32> {
    let low = (0..16).map(|i| i32::from(b[at + i] & 15));
    low.chain((0..16).map(|i| i32::from(b[at + i] >> 4))).collect()
}

fn fives(b: &[u8], high: usize, low: usize) -> Vec<i32> {
    let bits = u32::from_le_bytes([b[high], b[high + 1], b[high + 2], b[high + 3]]);
    nibbles(b, low).iter().enumerate().map(|(i, q)| q + ((bits >> i & 1) as i32) * 16).collect()
}

/// Scale and minimum of sub-block `j` from the 12 packed bytes at `at`.
fn packed(b: &[u8], at: usize, j: usize) -> (i32, i32) {
    let q = |i: usize| i32::from(b[at + i]);
    if j < 4 {
        (q(j) & 63, q(j + 4) & 63)
    } else {
        ((q(j + 4) & 15) | (q(j - 4) >> 6) << 4, (q(j + 4) >> 4) | (q(j) >> 6) << 4)
    }
}

fn define(format: Format, b: &[u8]) -> Definition {
    let simple = |quants: Vec<i32>, m: Option<f32>| Definition {
        d: half(b, 0),
        // A minimum that is added: minus minus one times it.
        m,
        scales: vec![1; quants.len()],
        minima: vec![-1; quants.len()],
        quants,
    };
    let k = |quants: Vec<i32>| {
        let of = |i: usize| packed(b, 4, i / 32);
        Definition {
            d: half(b, 0),
            m: Some(half(b, 2)),
            quants,
            scales: (0..256).map(|i| of(i).0).collect(),
            minima: (0..256).map(|i| of(i).1).collect(),
        }
    };
    match format {
        Format::Q8_0 => simple((0..32).map(|i| i32::from(b[2 + i] as i8)).collect(), None),
        Format::Q4_0 => simple(nibbles(b, 2).iter().map(|q| q - 8).collect(), None),
        Format::Q4_1 => simple(nibbles(b, 4), Some(half(b, 2))),
        Format::Q5_0 => simple(fives(b, 2, 6).iter().map(|q| q - 16).collect(), None),
        Format::Q5_1 => simple(fives(b, 4, 8), Some(half(b, 2))),
        Format::Q4_K => {
            k((0..256).map(|i| i32::from(b[16 + i / 64 * 32 + i % 32]) >> (i / 32 % 2 * 4) & 15).collect())
        }
        Format::Q5_K => k((0..256)
            .map(|i| {
                let low = i32::from(b[48 + i / 64 * 32 + i % 32]) >> (i / 32 % 2 * 4) & 15;
                low + (i32::from(b[16 + i % 32]) >> (i / 32) & 1) * 16
            })
            .collect()),
        Format::Q6_K => {
            let quant = |i: usize| {
                let (n, r) = (i / 128, i % 128);
                let low = i32::from(b[n * 64 + r % 64]) >> (r / 64 * 4) & 15;
                let high = i32::from(b[128 + n * 32 + r % 32]) >> (r / 32 * 2) & 3;
                (low | high << 4) - 32
            };
            Definition {
                d: half(b, 208),
                m: None,
                quants: (0..256).map(quant).collect(),
                scales: (0..256).map(|i| i32::from(b[192 + i / 16] as i8)).collect(),
                minima: vec![0; 256],
            }
        }
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("not a block of integers"),
    }
}

/// The weights of a row, in f64 and so exactly.
pub(crate) fn weights(format: Format, row: &[u8]) -> Vec<f64> {
    match format {
        Format::F32 => row.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Format::F16 => row.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        Format::BF16 => row.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64()).collect(),
        _ => {
            let blocks = row.chunks_exact(format.block().1).map(|b| define(format, b));
            let element = |d: &Definition, i: usize| {
                f64::from(d.d) * f64::from(d.scales[i]) * f64::from(d.quants[i])
                    - f64::from(d.m.unwrap_or(0.0)) * f64::from(d.minima[i])
            };
            blocks.flat_map(|d| (0..d.quants.len()).map(move |i| element(&d, i))).collect()
        }
    }
}

/// A block of inputs: scale and quants.
pub(crate) fn quantise(x: &[f32]) -> (f32, Vec<i32>) {
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return (0.0, vec![0; x.len()]);
    }
    let inverse = 127.0 / largest;
    (largest / 127.0, x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect())
}

/// One output of the product.
pub(crate) fn product(format: Format, row: &[u8], x: &[f32]) -> f32 {
    let (elems, bytes) = format.block();
    if elems == 1 {
        let mut sums = [0.0f32; 16];
        let weights = weights(format, row);
        for k in 0..x.len().next_multiple_of(16) {
            let (w, x) = (weights.get(k).map_or(0.0, |w| *w as f32), x.get(k).copied().unwrap_or(0.0));
            sums[k % 16] = w.mul_add(x, sums[k % 16]);
        }
        let eight: Vec<f32> = (0..8).map(|l| sums[l] + sums[l + 8]).collect();
        let four: Vec<f32> = (0..4).map(|l| eight[l] + eight[l + 4]).collect();
        return (four[0] + four[2]) + (four[1] + four[3]);
    }
    let mut acc = 0.0f32;
    for (block, x) in row.chunks_exact(bytes).zip(x.chunks_exact(elems)) {
        let d = define(format, block);
        let (s, q) = quantise(x);
        let sum = |f: &dyn Fn(usize) -> i32| (0..elems).map(|i| i64::from(f(i))).sum::<i64>() as i32 as f32;
        let products = sum(&|i| d.scales[i] * d.quants[i] * q[i]);
        acc = (d.d * s).mul_add(products, acc);
        match (d.m, elems) {
            (None, _) => {}
            (Some(m), 32) => acc = m.mul_add(s * sum(&|i| q[i]), acc),
            (Some(m), _) => acc = (-(m * s)).mul_add(sum(&|i| d.minima[i] * q[i]), acc),
        }
    }
    acc
}

/// Random blocks whose scales are finite and of ordinary size; everything else is any bit pattern.
pub(crate) fn random_row(format: Format, blocks: usize, mut next: impl FnMut() -> u64) -> Vec<u8> {
    let (elems, bytes) = format.block();
    let mut row: Vec<u8> = (0..blocks * bytes).map(|_| next() as u8).collect();
    let mut small = |signed: bool| {
        let value = (next() % 1000 + 1) as f32 * 1e-4;
        if signed && next().is_multiple_of(2) { -value } else { value }
    };
    for block in row.chunks_exact_mut(bytes) {
        let mut put = |at: usize, value: f32| {
            block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        };
        match format {
            Format::F32 => block.copy_from_slice(&small(true).to_le_bytes()),
            Format::F16 => put(0, small(true)),
            Format::BF16 => block.copy_from_slice(&half::bf16::from_f32(small(true)).to_le_bytes()),
            Format::Q6_K => put(208, small(true)),
            _ => {
                put(0, small(true));
                if matches!(format, Format::Q4_1 | Format::Q5_1) || elems == 256 {
                    put(2, small(true));
                }
            }
        }
    }
    row
}
