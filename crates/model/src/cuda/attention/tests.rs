use super::reference::{Case, SCALE, Sequence};
use super::*;
use crate::cuda::fine;
use crate::cuda::testing::{Random, device, relative};

const ROOM: u32 = 1 << 17;

struct Rig<'a> {
    device: &'a Device,
    attention: Attention,
}

/// How rows are computed.
#[derive(Clone, Copy, Debug)]
enum How {
    Few { tile: TileRows, split: u32, blocks: u32, room: u32 },
    Many { tile: ManyRows, split: u32 },
}

impl<'a> Rig<'a> {
    fn new(device: &'a Device, shape: Shape) -> Self {
        Self { device, attention: Attention::new(device, shape, 512, ROOM).unwrap() }
    }

    fn buffer(&self, words: &[i32]) -> Buffer {
        Buffer::of(self.device, "a test's numbers", words).unwrap()
    }

    /// The output over poison, for the runs of `case` or for parts of them.
    fn run(&self, case: &Case, runs: &[Run], how: How) -> Vec<f32> {
        let (device, dtype) = (self.device, case.shape.dtype);
        let limits = Limits {
            rows: case.rows,
            slots: case.slots,
            positions: case.table_stride * PAGE,
            masks: case.masks.len() as u32,
        };
        let attention = &self.attention;
        let (rows, split) = match how {
            How::Few { tile, split, .. } => (attention.few_rows(tile), split),
            How::Many { tile, split } => (attention.many_rows(tile), split),
        };
        let mut cut = tiles(runs, rows, limits).unwrap();
        if let How::Few { room, .. } = how {
            place_partials(&mut cut, split, case.heads.len() as u32, attention.group(), room);
        }
        let count = cut.len();
        // Room for tiles that a later step may have.
        let most = count as u32 + 2;
        cut.resize(most as usize, Tile::default());
        let width = case.shape.q_heads * case.shape.head_dim;
        // Rows of q lie apart, as in a fused projection.
        let q_stride = width + 64;
        let mut apart = Vec::new();
        for row in case.q.chunks_exact(width as usize) {
            apart.extend_from_slice(row);
            apart.extend([f32::NAN; 64]);
        }
        let q = dtype.upload(device, "q", &apart).unwrap();
        let poisoned = || dtype.upload(device, "out", &vec![f32::NAN; case.q.len()]).unwrap();
        let (out, apart) = (poisoned(), poisoned());
        let pool = match case.shape.kept {
            KvKept::Dtype => dtype.upload(device, "pool", &case.pool).unwrap(),
            KvKept::Fp8 => Buffer::of(device, "pool", &case.codes).unwrap(),
        };
        let heads: Vec<i32> = case.heads.iter().copied().chain(fine::ints(&case.fine)).collect();
        let (table, heads) = (self.buffer(&case.table), self.buffer(&heads));
        let tiles = Buffer::of(device, "tiles", &cut).unwrap();
        let header = self.buffer(&[count as i32, split as i32]);
        let masks = Buffer::of(device, "masks", &case.masks).unwrap();
        let layer = Layer {
            q: view(&q),
            q_stride,
            out: view(&out),
            rows: case.rows,
            pool: view(&pool),
            pages: case.pages,
            page_stride: (case.heads.len() * case.shape.cells().head() / case.shape.cells().element()) as u64,
            table: view(&table),
            slots: case.slots,
            table_stride: case.table_stride,
            heads: view(&heads),
            class_heads: case.heads.len() as u32,
            window: case.window,
            scale: SCALE,
        };
        let tiles = Tiles { tiles: view(&tiles), header: view(&header), masks: view(&masks), most };
        let read = |buffer| dtype.download(device, buffer, 0, case.q.len()).unwrap();
        match how {
            How::Many { tile, .. } => attention.many(device, &layer, &tiles, tile).unwrap(),
            How::Few { tile, blocks, .. } => {
                attention.few(device, &layer, &tiles, tile, blocks, true).unwrap();
                let layer = Layer { out: view(&apart), ..layer };
                attention.few(device, &layer, &tiles, tile, blocks, false).unwrap();
                assert_eq!(bits(&read(&out)), bits(&read(&apart)), "merged in clusters, and through memory");
            }
        }
        read(&out)
    }

    fn agrees(&self, case: &Case, how: How) {
        let (out, expected) = (self.run(case, &case.runs, how), case.expected());
        let (mut written, mut reference) = (Vec::new(), Vec::new());
        let width = case.shape.head_dim as usize;
        let group = (case.shape.q_heads / case.shape.kv_heads) as usize;
        for (head, (out, expected)) in out.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
            let kv = (head % case.shape.q_heads as usize / group) as i32;
            if case.heads.contains(&kv) {
                written.extend_from_slice(out);
                reference.extend_from_slice(expected);
            } else {
                assert!(out.iter().all(|x| x.is_nan()), "another class's head {kv} was written");
            }
        }
        let tolerance = match case.shape.dtype {
            Dtype::F32 => 1e-5,
            Dtype::Bf16 => 4e-3,
            Dtype::F16 => 6e-4,
        };
        let off = relative(&written, &reference);
        assert!(
            off < tolerance,
            "off by {off:e}: {:?} {:?} {how:?} {:?}",
            case.shape,
            case.window,
            case.runs
        );
    }
}

fn view(buffer: &Buffer) -> View<'_> {
    View { buffer, at: 0 }
}

/// Of queries, and what keys and values are kept in.
type Kind = (Dtype, KvKept);

fn shape((dtype, kept): Kind, head_dim: u32, q_heads: u32, kv_heads: u32, mode: Mode) -> Shape {
    Shape { dtype, head_dim, q_heads, kv_heads, kept, mode }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn mixture(random: &mut Random, count: usize, most_before: u32, most_rows: u32) -> Vec<Sequence> {
    let edges = [0, 1, 15, 16, 63, 64, 65, 127, 128, 255, 256, 257];
    (0..count)
        .map(|i| {
            let before =
                if i % 2 == 0 { edges[random.below(12) as usize] } else { random.below(most_before) };
            Sequence::chain(before, 1 + random.below(most_rows))
        })
        .collect()
}

/// A random tree in topological order: a row's mask is its parent's and itself.
fn tree(random: &mut Random, before: u32, rows: u32) -> Sequence {
    let mut masks: Vec<u64> = Vec::new();
    for row in 0..rows {
        let parent = random.below(row + 1);
        masks.push(if parent == 0 { 0 } else { masks[parent as usize - 1] } | 1 << row);
    }
    Sequence { before, rows, tree: Some(masks) }
}

fn few(tile: TileRows, split: u32, blocks: u32) -> How {
    How::Few { tile, split, blocks, room: ROOM }
}

/// What the mode allows.
fn many(mode: Mode) -> Vec<How> {
    let all = [(ManyRows::SixtyFour, WHOLE), (ManyRows::OneTwentyEight, WHOLE), (ManyRows::SixtyFour, SPAN)];
    let allowed = if mode == Mode::Fast { &all[..] } else { &all[2..] };
    allowed.iter().map(|(tile, split)| How::Many { tile: *tile, split: *split }).collect()
}

const SPANS: How = How::Many { tile: ManyRows::SixtyFour, split: SPAN };

const BF16: Kind = (Dtype::Bf16, KvKept::Dtype);
const F16: Kind = (Dtype::F16, KvKept::Dtype);
const FP8: Kind = (Dtype::Bf16, KvKept::Fp8);
const KINDS: [Kind; 4] = [BF16, F16, (Dtype::F32, KvKept::Dtype), FP8];

/// Heads of a class, in no order.
const SOME: [i32; 2] = [2, 0];

#[test]
fn few_rows_of_a_mixture_of_sequences() {
    let Some(device) = device() else { return };
    let mut random = Random::new(11);
    for kind in KINDS {
        for (head_dim, group) in [(64, 1), (64, 3), (128, 4), (128, 7), (64, 16)] {
            let rig = Rig::new(&device, shape(kind, head_dim, 3 * group, 3, Mode::Fast));
            for (tile, split, blocks) in [
                (TileRows::Sixteen, 64, 3),
                (TileRows::ThirtyTwo, WHOLE, 1),
                (TileRows::SixtyFour, 128, 16),
                (TileRows::Sixteen, 192, 1),
            ] {
                let sequences = mixture(&mut random, 5, 700, 16);
                let case = Case::new(&mut random, rig.attention.shape, Window::FULL, &SOME, &sequences);
                rig.agrees(&case, few(tile, split, blocks));
            }
        }
    }
}

#[test]
fn many_rows_of_a_mixture_of_sequences() {
    let Some(device) = device() else { return };
    let mut random = Random::new(12);
    for kind in KINDS {
        for (head_dim, group, mode) in [
            (64, 1, Mode::Fast),
            (128, 4, Mode::Fast),
            (128, 7, Mode::Fast),
            (64, 3, Mode::Invariant),
            (128, 4, Mode::Invariant),
        ] {
            let rig = Rig::new(&device, shape(kind, head_dim, 3 * group, 3, mode));
            let sequences = mixture(&mut random, 4, 400, 150);
            let case = Case::new(&mut random, rig.attention.shape, Window::FULL, &SOME, &sequences);
            for how in many(mode) {
                rig.agrees(&case, how);
            }
        }
    }
}

#[test]
fn windows_in_both_kernels() {
    let Some(device) = device() else { return };
    let mut random = Random::new(13);
    for kind in KINDS {
        for mode in [Mode::Fast, Mode::Invariant] {
            let rig = Rig::new(&device, shape(kind, 64, 6, 3, mode));
            for (sink, recent) in [(0, 1), (4, 100), (64, 64), (70, 300), (0, 64), (1, 65), (500, 10)] {
                let window = Window { sink, recent };
                let mut sequences = mixture(&mut random, 4, 900, 8);
                let case = Case::new(&mut random, rig.attention.shape, window, &SOME, &sequences);
                rig.agrees(&case, few(TileRows::Sixteen, 64, 4));
                rig.agrees(&case, few(TileRows::ThirtyTwo, SPAN, 1));
                sequences.push(Sequence::chain(random.below(500), 140));
                let case = Case::new(&mut random, rig.attention.shape, window, &SOME, &sequences);
                for how in many(mode) {
                    rig.agrees(&case, how);
                }
            }
        }
    }
}

#[test]
fn trees_full_and_in_a_window() {
    let Some(device) = device() else { return };
    let mut random = Random::new(14);
    for kind in KINDS {
        for head_dim in [64, 128] {
            let rig = Rig::new(&device, shape(kind, head_dim, 12, 3, Mode::Fast));
            for window in [Window::FULL, Window { sink: 2, recent: 5 }, Window { sink: 64, recent: 100 }] {
                let sequences = [
                    tree(&mut random, 0, 5),
                    tree(&mut random, 63, 64),
                    Sequence::chain(300, 9),
                    tree(&mut random, 300, 16),
                    tree(&mut random, 1, 64),
                ];
                let case = Case::new(&mut random, rig.attention.shape, window, &SOME, &sequences);
                for (tile, split, blocks) in [
                    (TileRows::Sixteen, 64, 8),
                    (TileRows::ThirtyTwo, 256, 2),
                    (TileRows::SixtyFour, WHOLE, 1),
                ] {
                    rig.agrees(&case, few(tile, split, blocks));
                }
            }
        }
    }
}

/// The promise of the batch-invariant mode.
#[test]
fn invariant_rows_have_the_same_bits_in_any_tile_batch_and_kernel() {
    let Some(device) = device() else { return };
    let mut random = Random::new(15);
    for kind in KINDS {
        for (head_dim, group) in [(64, 3), (128, 4), (128, 7)] {
            let rig = Rig::new(&device, shape(kind, head_dim, 3 * group, 3, Mode::Invariant));
            for window in [Window::FULL, Window { sink: 70, recent: 300 }] {
                let sequences = [Sequence::chain(0, 90), Sequence::chain(801, 77), Sequence::chain(255, 3)];
                let case = Case::new(&mut random, rig.attention.shape, window, &SOME, &sequences);
                let whole = bits(&rig.run(&case, &case.runs, SPANS));
                rig.agrees(&case, SPANS);
                // Every row alone, in chunks, and all at once, by both kernels.
                for size in [1, 5, 40, 200] {
                    let mut runs = cut_runs(&case.runs, size);
                    for how in [
                        SPANS,
                        few(TileRows::Sixteen, SPAN, 16),
                        few(TileRows::ThirtyTwo, SPAN, 3),
                        few(TileRows::SixtyFour, SPAN, 1),
                        How::Few { tile: TileRows::Sixteen, split: SPAN, blocks: 4, room: 0 },
                    ] {
                        let out = bits(&rig.run(&case, &runs, how));
                        assert_eq!(out, whole, "{:?} {window:?} {how:?} runs of {size}", case.shape);
                    }
                    // One row in a launch of its own.
                    runs.truncate(1);
                    let run = runs[0];
                    let out = bits(&rig.run(&case, &runs, few(TileRows::Sixteen, SPAN, 2)));
                    let width = (case.shape.q_heads * head_dim) as usize;
                    let rows = run.first_row as usize * width..(run.first_row + run.rows) as usize * width;
                    assert_eq!(out[rows.clone()], whole[rows]);
                }
            }
        }
    }
}

fn cut_runs(runs: &[Run], size: u32) -> Vec<Run> {
    let cut = |run: Run| {
        (0..run.rows).step_by(size as usize).map(move |start| Run {
            first_row: run.first_row + start,
            rows: size.min(run.rows - start),
            position: run.position + start,
            ..run
        })
    };
    runs.iter().copied().flat_map(cut).collect()
}

#[test]
fn a_chain_as_a_tree_has_the_same_bits() {
    let Some(device) = device() else { return };
    let mut random = Random::new(16);
    let rig = Rig::new(&device, shape(BF16, 128, 12, 3, Mode::Invariant));
    let masks = (0..16).map(|row| (2_u64 << row) - 1).collect();
    let sequences = [Sequence { before: 500, rows: 16, tree: Some(masks) }];
    let case = Case::new(&mut random, rig.attention.shape, Window::FULL, &SOME, &sequences);
    let chain = [Run { tree: None, ..case.runs[0] }];
    let how = few(TileRows::SixtyFour, SPAN, 4);
    assert_eq!(bits(&rig.run(&case, &case.runs, how)), bits(&rig.run(&case, &chain, how)));
}

/// Rows of a tree that read the keys of their paths from where they are, against chains whose keys lie in order.
#[test]
fn rows_of_a_tree_as_chains_have_the_bits_of_chains() {
    let Some(device) = device() else { return };
    let mut random = Random::new(21);
    for kind in KINDS {
        for (head_dim, group) in [(64, 3), (128, 4)] {
            let rig = Rig::new(&device, shape(kind, head_dim, 3 * group, 3, Mode::Invariant));
            for window in [Window::FULL, Window { sink: 3, recent: 9 }] {
                let sequences =
                    [tree(&mut random, 0, 16), tree(&mut random, 250, 64), tree(&mut random, 700, 5)];
                let mut case = Case::new(&mut random, rig.attention.shape, window, &SOME, &sequences);
                // A table holds all that a tree may have.
                let stride = case.table_stride + 4;
                case.table = case
                    .table
                    .chunks(case.table_stride as usize)
                    .flat_map(|slot| slot.iter().copied().chain([-1; 4]))
                    .collect();
                case.table_stride = stride;
                let mut alone = Vec::new();
                for run in &case.runs {
                    let of = run.tree.unwrap();
                    alone.extend((0..run.rows).map(|row| Run {
                        first_row: run.first_row + row,
                        rows: 1,
                        position: of.base + case.masks[(of.mask + row) as usize].count_ones() - 1,
                        tree: Some(Tree { mask: of.mask + row, as_chain: true, ..of }),
                        ..*run
                    }));
                }
                for how in [few(TileRows::Sixteen, SPAN, 4), few(TileRows::SixtyFour, SPAN, 2)] {
                    let out = rig.run(&case, &alone, how);
                    let width = (case.shape.q_heads * head_dim) as usize;
                    for run in alone.iter().step_by(7) {
                        // The same keys, in order.
                        let mut chain = case.clone();
                        chain.keys_in_order(&case, run);
                        let row = [Run { tree: None, ..*run }];
                        let expected = rig.run(&chain, &row, how);
                        let at = run.first_row as usize * width..(run.first_row as usize + 1) * width;
                        let same = bits(&out[at.clone()]) == bits(&expected[at]);
                        assert!(same, "{:?} {window:?} {how:?} {run:?}", case.shape);
                    }
                }
            }
        }
    }
}

/// Splits are merged by whichever blocks end last, a few or many rows at a time, in one order: as one block would that
/// walks them all.
#[test]
fn however_many_blocks_share_splits_the_bits_are_the_same() {
    let Some(device) = device() else { return };
    let mut random = Random::new(17);
    for kind in [BF16, F16, FP8] {
        for head_dim in [64, 128] {
            let rig = Rig::new(&device, shape(kind, head_dim, 12, 3, Mode::Fast));
            let mut sequences = mixture(&mut random, 8, 1500, 4);
            sequences.extend([Sequence::chain(2000, 16), tree(&mut random, 1800, 40)]);
            let case = Case::new(&mut random, rig.attention.shape, Window::FULL, &SOME, &sequences);
            for tile in TileRows::ALL {
                let alone = How::Few { tile, split: 64, blocks: 1, room: 0 };
                let alone = bits(&rig.run(&case, &case.runs, alone));
                for blocks in [33, 2, 7, 33, 16, 64] {
                    assert_eq!(bits(&rig.run(&case, &case.runs, few(tile, 64, blocks))), alone);
                }
            }
        }
    }
}

#[test]
fn a_row_over_32k_keys() {
    let Some(device) = device() else { return };
    let mut random = Random::new(18);
    for kind in KINDS {
        let rig = Rig::new(&device, shape(kind, 128, 4, 1, Mode::Invariant));
        let case =
            Case::new(&mut random, rig.attention.shape, Window::FULL, &[0], &[Sequence::chain(32_766, 2)]);
        rig.agrees(&case, few(TileRows::Sixteen, 1024, 32));
        rig.agrees(&case, few(TileRows::Sixteen, SPAN, 64));
        rig.agrees(&case, SPANS);
    }
}

#[test]
fn what_is_not_built_or_does_not_fit_is_refused() {
    let Some(device) = device() else { return };
    let of = |head_dim, q_heads, kv_heads| {
        let shape = shape(BF16, head_dim, q_heads, kv_heads, Mode::Fast);
        Attention::new(&device, shape, 4, 16).err().map(|e| e.to_string())
    };
    assert!(of(96, 8, 8).unwrap().contains("head_dim"));
    assert!(of(128, 9, 2).unwrap().contains("not shared evenly"));
    assert!(of(128, 130, 2).unwrap().contains("at most 64"));
    assert_eq!(of(128, 8, 2), None);
    let halves = shape((Dtype::F16, KvKept::Fp8), 128, 8, 2, Mode::Fast);
    let error = Attention::new(&device, halves, 4, 16).err().map(|e| e.to_string());
    assert!(error.unwrap().contains("not in BF16"));

    let attention = Attention::new(&device, shape(BF16, 64, 4, 2, Mode::Fast), 4, 16).unwrap();
    let buffer = Buffer::zeros(&device, "a test's buffer", 1 << 16).unwrap();
    let at = view(&buffer);
    let layer = Layer {
        q: at,
        q_stride: 256,
        out: at,
        rows: 4,
        pool: at,
        pages: 2,
        page_stride: 2 * 2 * 16 * 64,
        table: at,
        slots: 2,
        table_stride: 8,
        heads: at,
        class_heads: 2,
        window: Window::FULL,
        scale: 1.0,
    };
    let four = Tiles { tiles: at, header: at, masks: at, most: 4 };
    attention.check(&layer, &four).unwrap();
    for (bad, why) in [
        (Layer { rows: 1000, ..layer }, "q at 0"),
        (Layer { q_stride: 255, ..layer }, "strides"),
        (Layer { q_stride: 257, ..layer }, "multiples of 16 bytes"),
        (Layer { pages: 9, ..layer }, "the pool"),
        (Layer { page_stride: 64, ..layer }, "strides"),
        (Layer { table_stride: 9, ..layer }, "page table"),
        (Layer { slots: 1 << 20, ..layer }, "the table"),
        (Layer { class_heads: 3, ..layer }, "heads of 2"),
        (Layer { q: View { buffer: &buffer, at: 8 }, ..layer }, "q at 8"),
        (Layer { out: View { buffer: &buffer, at: 1 << 20 }, ..layer }, "out at"),
        (Layer { window: Window { sink: 0, recent: 0 }, ..layer }, "recent: 0"),
    ] {
        let error = attention.check(&bad, &four).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let error =
        attention.few(&device, &layer, &Tiles { most: 5, ..four }, TileRows::Sixteen, 1, true).unwrap_err();
    assert!(error.to_string().contains("workspace"), "{error}");
    let attention = Attention::new(&device, shape(BF16, 64, 4, 2, Mode::Invariant), 4, 16).unwrap();
    let error = attention.many(&device, &layer, &four, ManyRows::OneTwentyEight).unwrap_err();
    assert!(error.to_string().contains("invariant"), "{error}");
}
