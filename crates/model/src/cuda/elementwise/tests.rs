//! RoPE and the write of keys and values against a reference, over poison; what happens to whole rows is in `rows`.

mod rows;

use half::bf16;

use super::*;
use crate::arch::{Rope, RopeStyle, Scaling};
use crate::cuda::fine::{Columns, FINE, columns};
use crate::cuda::quantised::fp8;
use crate::cuda::testing::{Random, device};

const PAGE: usize = 16;
const POSITIONS: usize = 96;
const HEADS: usize = 3;
const KV_HEADS: usize = 2;
/// A byte that no key, value, code or scale of the tests is made of throughout.
const POISON: u8 = 0xee;

/// As `RopeStyle` in the kernel.
const STYLES: [u32; 3] = [0, 1, 2];

/// A row of q, k and v as it should be before it is kept: each head turned, with its bias.
fn turned(row: &[f32], d: usize, bias: &[f32], angles: &[f32], dims: usize, style: u32) -> Vec<f32> {
    let mut out = vec![0.0; row.len()];
    for head in 0..HEADS + 2 * KV_HEADS {
        let at = head * d;
        let x = |i: usize| row[at + i] + bias[at + i];
        let pairs = if head < HEADS + KV_HEADS { dims / 2 } else { 0 };
        for p in 0..d / 2 {
            let (a, b) = if p < pairs && style != 0 { (p, p + pairs) } else { (2 * p, 2 * p + 1) };
            let (first, second) = (x(a), x(b));
            let (a, b) = if p < pairs && style == 1 { (a, b) } else { (2 * p, 2 * p + 1) };
            (out[at + a], out[at + b]) = match angles.get(2 * p..2 * p + 2).filter(|_| p < pairs) {
                // As the kernel: one product rounded, the other fused.
                Some(&[cos, sin]) => (first.mul_add(cos, -(second * sin)), second.mul_add(cos, first * sin)),
                _ => (first, second),
            };
        }
    }
    out
}

/// A class of pages for one layer and two heads: the bytes, and a page table of two slots.
struct Made {
    cells: Cells,
    columns: Columns,
    pages: Vec<u8>,
    table: Vec<i32>,
}

impl Made {
    const HEADS: usize = 2;
    const STRIDE: usize = 8;

    fn new(cells: Cells, columns: Columns) -> Self {
        // Slot 1 has no page at positions 16 to 31.
        let table = [[3, 5, 0, 7, 1, 2, -1, -1], [9, -1, 8, 10, 4, 6, -1, -1]].concat();
        Self { cells, columns, pages: vec![POISON; 11 * Self::HEADS * cells.head()], table }
    }

    /// Keeps a key (which = 0) or value of the second head in the pages, as the kernel should.
    fn keep(&mut self, slot: usize, which: usize, position: usize, row: &[f32]) {
        let page = self.table[slot * Self::STRIDE + position / PAGE];
        if page < 0 {
            return;
        }
        let start = (page as usize * Self::HEADS + 1) * self.cells.head();
        let head = &mut self.pages[start..start + self.cells.head()];
        let nth = which * PAGE + position % PAGE;
        match self.cells.kept {
            KvKept::Dtype => {
                for (to, x) in head[nth * row.len() * 2..].chunks_exact_mut(2).zip(row) {
                    to.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
                }
            }
            KvKept::Fp8 => {
                let scale = fp8::scale(row);
                for (to, x) in head[nth * row.len()..].iter_mut().zip(row) {
                    *to = fp8::code(x / scale);
                }
                let fine = 2 * PAGE * row.len();
                for (i, column) in self.columns.iter().enumerate().filter(|_| which == 0) {
                    let x = row[usize::from(*column)] / scale;
                    head[fine + nth * FINE + i] = fp8::code(x - fp8::value(fp8::code(x)));
                }
                let at = fine + PAGE * FINE + nth * 4;
                head[at..at + 4].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
}

/// A row of a tree is stored beside others.
fn stored_at(position: usize) -> usize {
    if position == 80 { 82 } else { position }
}

/// Every bit of queries and pages is as it should be, whatever turns together; padding and missing pages touch nothing.
#[test]
fn keys_and_values_are_turned_and_kept() {
    let Some(device) = device() else { return };
    let mut random = Random::new(31);
    for kept in [KvKept::Dtype, KvKept::Fp8] {
        for (d, dims) in [(64, 64), (64, 32), (128, 128), (128, 64)] {
            for style in STYLES {
                one(&device, &mut random, Cells { dtype: Dtype::Bf16, kept, head_dim: d }, dims, style);
            }
        }
    }
}

fn one(device: &Device, random: &mut Random, cells: Cells, dims: usize, style: u32) {
    let (d, width) = (cells.head_dim, (HEADS + 2 * KV_HEADS) * cells.head_dim);
    let name = format!("{:?} {d} of which {dims} in style {style}", cells.kept);
    let elementwise = Elementwise::new(device, cells).unwrap();
    // A slot, a position; slot -1 is padding. Sizes of rows lie far apart, one is zeros, and one has an outlier.
    let rows: [(i32, usize); 9] =
        [(0, 0), (0, 1), (1, 17), (-1, 3), (1, 40), (0, 95), (1, 15), (0, 31), (1, 80)];
    let sizes = [1.0, 300.0, 1.0, 1.0, 1e-4, 2e4, 0.0, 1.0, 1e-3];
    let mut qkv: Vec<f32> = Vec::new();
    for size in sizes {
        qkv.extend(random.normals(width).iter().map(|x| bf16::from_f32(x * size).to_f32()));
    }
    qkv[7 * width + HEADS * d + 5] = 500.0;
    let mut bias = random.normals(width);
    // Of values none: a row of zeros stays one.
    bias[(HEADS + KV_HEADS) * d..].fill(0.0);
    let angles: Vec<f32> = (0..POSITIONS * dims / 2)
        .flat_map(|i| {
            let angle = (i / (dims / 2)) as f32 * 0.7f32.powi((i % (dims / 2)) as i32);
            [angle.cos(), angle.sin()]
        })
        .collect();
    // The first KV head is the second one of the window class, the second one the second of the full class.
    let places = [1, 1, 0, 1];
    let turns = [RopeStyle::Adjacent, RopeStyle::Halves, RopeStyle::HalvesToAdjacent][style as usize];
    let rope = Rope { style: turns, dims, base: 1e4, scaling: Scaling::None };
    let mut classes = [(); 2].map(|()| Made::new(cells, columns(d, &rope)));

    let mut queries = qkv.clone();
    for (i, &(slot, position)) in rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
        let at = i * width;
        let turns = &angles[position * dims..(position + 1) * dims];
        let row = turned(&qkv[at..at + width], d, &bias, turns, dims, style);
        queries[at..at + HEADS * d].copy_from_slice(&row[..HEADS * d]);
        for kv in 0..KV_HEADS {
            let class = &mut classes[places[2 * kv] as usize];
            for which in 0..2 {
                let head = HEADS + which * KV_HEADS + kv;
                class.keep(slot as usize, which, stored_at(position), &row[head * d..(head + 1) * d]);
            }
        }
    }

    let x = cells.dtype.upload(device, "q, k and v", &qkv).unwrap();
    let ints = |values: &[i32]| Buffer::of(device, "a test's numbers", values).unwrap();
    let positions = ints(&rows.map(|row| row.1 as i32));
    let slots = ints(&rows.map(|row| row.0));
    let stored = ints(&rows.map(|row| stored_at(row.1) as i32));
    let places = ints(&places);
    let (bias, angles) =
        (Buffer::of(device, "bias", &bias).unwrap(), Buffer::of(device, "angles", &angles).unwrap());
    let memory = classes.each_ref().map(|class| {
        let poison = vec![POISON; class.pages.len()];
        (Buffer::of(device, "pages", &poison).unwrap(), ints(&class.table))
    });
    let pools = [0, 1].map(|class| Pool {
        base: memory[class].0.at(0),
        page: (Made::HEADS * cells.head() / cells.element()) as u64,
        table: memory[class].1.at(0),
        stride: Made::STRIDE as u64,
    });
    let count = rows.len() as u32;
    let (positions, slots, stored) = (positions.at(0), slots.at(0), stored.at(0));
    let rows = Rows { count, tokens: 0, positions, slots, stored };
    let heads = Heads {
        heads: HEADS as u32,
        kv_heads: KV_HEADS as u32,
        bias: bias.at(0),
        q_norm: 0,
        k_norm: 0,
        places: places.at(0),
        epsilon: 1e-5,
    };
    let angles = Angles { table: angles.at(0), dims: dims as u32, style };
    elementwise.rope_and_keep(device, x.at(0), rows, heads, angles, pools).unwrap();

    let found = cells.dtype.download(device, &x, 0, qkv.len()).unwrap();
    let rounded: Vec<f32> = queries.iter().map(|x| cells.dtype.round(*x)).collect();
    assert!(found == rounded, "{name}: queries, or keys and values where they came from");
    for (class, (pages, _)) in classes.iter().zip(&memory) {
        let found: Vec<u8> = pages.read(device, 0, class.pages.len()).unwrap();
        let off = found.iter().zip(&class.pages).position(|(found, expected)| found != expected);
        assert_eq!(off, None, "{name}: a byte of {}", class.pages.len());
        assert!(found.contains(&POISON));
    }
}

/// What is not finite is seen by who reads it: its scale is not finite.
#[test]
fn a_row_that_is_not_finite_is_not_hidden() {
    let Some(device) = device() else { return };
    let cells = Cells { dtype: Dtype::Bf16, kept: KvKept::Fp8, head_dim: 64 };
    let elementwise = Elementwise::new(&device, cells).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // A query head, a key and a value of one row; the value has it.
        let mut qkv = vec![1.0; 3 * 64];
        qkv[2 * 64 + 40] = bad;
        let x = cells.dtype.upload(&device, "q, k and v", &qkv).unwrap();
        let zeros = Buffer::of(&device, "position, slot, page and place", &[0i32; 4]).unwrap();
        let turns = Buffer::of(&device, "angles", &[1.0f32, 0.0].repeat(32)).unwrap();
        let pages = Buffer::zeros(&device, "a page", cells.head()).unwrap();
        let pool = Pool { base: pages.at(0), page: cells.head() as u64, table: zeros.at(0), stride: 1 };
        let (positions, slots, stored) = (zeros.at(0), zeros.at(0), zeros.at(0));
        let rows = Rows { count: 1, tokens: 0, positions, slots, stored };
        let (heads, kv_heads, places) = (1, 1, zeros.at(0));
        let heads = Heads { heads, kv_heads, bias: 0, q_norm: 0, k_norm: 0, places, epsilon: 0.0 };
        let angles = Angles { table: turns.at(0), dims: 64, style: 0 };
        elementwise.rope_and_keep(&device, x.at(0), rows, heads, angles, [pool; 2]).unwrap();
        let scales: Vec<f32> = pages.read(&device, 2 * PAGE * 64 + PAGE * FINE, 2 * PAGE).unwrap();
        assert_eq!(scales[0], fp8::scale(&[1.0]));
        assert!(!scales[PAGE].is_finite(), "{bad} became {}", scales[PAGE]);
    }
}
