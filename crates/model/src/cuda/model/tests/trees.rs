//! Rows of draft trees against the same tokens in a row, and what is kept of them.

use std::ops::Range;

use super::*;
use crate::cuda::device_count;
use crate::cuda::testing::relative;

/// Token and parent.
type Node = (u32, Option<usize>);

/// As deep as may be, with siblings everywhere.
fn wide(seed: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..16usize).map(|i| (3 + i as u32, i.checked_sub(1))).collect();
    for i in 0..14 {
        let parent = ((i * 7 + seed) % (nodes.len() + 1)).checked_sub(1);
        if parent.is_none_or(|parent| path(&nodes, parent).len() < 16) {
            nodes.push((30 + i as u32, parent));
        }
    }
    nodes
}

/// So few that they go through persistent kernels.
fn narrow() -> Vec<Node> {
    vec![(3, None), (4, None), (5, Some(1)), (6, Some(0)), (7, Some(2)), (8, Some(1))]
}

fn path(nodes: &[Node], node: usize) -> Vec<TokenId> {
    let mut path = nodes[node].1.map_or_else(Vec::new, |parent| path(nodes, parent));
    path.push(TokenId(nodes[node].0));
    path
}

/// A slot and what it holds.
struct Held {
    slot: u32,
    known: Vec<TokenId>,
    computed: usize,
    pages: u32,
}

fn page(slot: u32, index: u32) -> PageId {
    PageId(slot * 50 + index * 7 % 50)
}

fn append(slot: u32, pages: Range<u32>, classes: u8) -> Vec<TableDelta> {
    let delta = |class, change| TableDelta { slot: Slot(slot), class: ClassId(class), change };
    let pages = |class| pages.clone().map(move |index| delta(class, TableChange::Append(page(slot, index))));
    (0..classes).flat_map(pages).collect()
}

impl Held {
    /// Rows for all that is known and not computed, the last one picking, and for a tree behind it; says where its first
    /// row is in the step.
    fn rows(&mut self, nodes: &[Node], step: &mut Step, classes: u8) -> u32 {
        let at = self.known.len() as u32 - 1;
        // For the deepest draft; not for all rows.
        let pages = pages_for(at + 1 + 16).max(self.pages);
        step.deltas.extend(append(self.slot, self.pages..pages, classes));
        self.pages = pages;
        step.rows.extend(rows(self.slot, self.computed as u32, &self.known[self.computed..], false));
        self.computed = self.known.len();
        let last = step.rows.len() as u32 - 1;
        step.rows.last_mut().unwrap().output = Output::Pick;
        step.rows.extend((0..nodes.len()).map(|node| {
            let parent = nodes[node].1.map_or(last, |parent| last + 1 + parent as u32);
            let position = at + path(nodes, node).len() as u32;
            let row = rows(self.slot, position, &[TokenId(nodes[node].0)], true).remove(0);
            Row { parent: Parent::Row(parent), ..row }
        }));
        last + 1
    }
}

/// A model without trees, with one text in slot 0.
struct Plain {
    model: CudaModel,
    classes: u8,
    length: u32,
}

impl Plain {
    /// Takes a text; the logits behind it.
    fn know(&mut self, text: &[TokenId]) -> Vec<f32> {
        let clear = |class| TableDelta { slot: Slot(0), class: ClassId(class), change: TableChange::Clear };
        let mut step = Step { deltas: (0..self.classes).map(clear).collect(), rows: rows(0, 0, text, false) };
        self.length = text.len() as u32;
        step.deltas.extend(append(0, 0..pages_for(self.length + 16), self.classes));
        step.rows.last_mut().unwrap().output = Output::Pick;
        self.model.logits(&step).unwrap().remove(0).1
    }

    /// The logits behind the text and a path, which is forgotten again.
    fn behind(&mut self, path: &[TokenId]) -> Vec<f32> {
        let mut step = Step { deltas: Vec::new(), rows: rows(0, self.length, path, false) };
        step.rows.last_mut().unwrap().output = Output::Pick;
        self.model.logits(&step).unwrap().remove(0).1
    }
}

/// How a model computes, and how near its rows must be to a chain's: `None`: they have its bits.
struct Case {
    cuda: CudaOptions,
    windows: bool,
    forests: Vec<Vec<Node>>,
    within: Option<f64>,
}

fn assert_trees_are_chains(made: &Made, case: &Case, length: u32) {
    let classes = 1 + u8::from(case.windows);
    let heads = case.windows.then(|| HeadMap::half_windows(3, 4, 16, 64));
    let options = Options { heads, ..Made::options() };
    let mut model = CudaModel::load(&made.path(), &options, &case.cuda).unwrap();
    let plain = CudaModel::load(&made.path(), &options, &case.cuda).unwrap();
    let mut plain = Plain { model: plain, classes, length: 0 };
    let what = format!("{:?}, windows {}, {length} before", case.cuda, case.windows);
    println!("{what}");
    let check = |found: &[f32], expected: &[f32], node: &str| match case.within {
        None => assert!(found == expected, "{what}, {node}: other bits"),
        Some(within) => {
            let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
            let off = relative(found, &expected);
            assert!(off < within, "{what}, {node}: {off}");
        }
    };
    let start = |slot: u32| {
        let known = tokens(50 + u64::from(slot), length + slot);
        Held { slot: slot + 3, known, computed: 0, pages: 0 }
    };
    let mut held: Vec<Held> = (0..case.forests.len() as u32).map(start).collect();
    let mut kept = Vec::new();
    // First trees behind whole prompts, then behind two rows.
    for round in 0..3 {
        let mut step = Step { deltas: std::mem::take(&mut kept), rows: Vec::new() };
        let mut firsts = Vec::new();
        for (held, nodes) in held.iter_mut().zip(&case.forests) {
            firsts.push(held.rows(nodes, &mut step, classes));
        }
        let mut found = model.logits(&step).unwrap().into_iter().map(|(_, logits)| logits);
        for ((held, nodes), first) in held.iter_mut().zip(&case.forests).zip(firsts) {
            check(&found.next().unwrap(), &plain.know(&held.known), &format!("round {round}, no draft"));
            for node in 0..nodes.len() {
                let name = format!("round {round}, node {node}");
                check(&found.next().unwrap(), &plain.behind(&path(nodes, node)), &name);
            }
            // A path through siblings that are not the first ones; in another slot the deepest.
            let leaves = if held.slot == 3 && nodes.len() > 16 { 16..nodes.len() } else { 0..nodes.len() };
            let leaf = leaves.max_by_key(|node| path(nodes, *node).len()).unwrap();
            let (row, from) = (first + leaf as u32, held.known.len() as u32);
            kept.extend((0..classes).map(|class| TableDelta {
                slot: Slot(held.slot),
                class: ClassId(class),
                change: TableChange::Keep { row, from },
            }));
            held.known.extend(path(nodes, leaf));
            held.computed = held.known.len();
            held.known.extend([TokenId(9), TokenId(4 + round)]);
        }
    }
    let mut step = Step { deltas: kept, rows: Vec::new() };
    held.iter_mut().for_each(|held| {
        held.rows(&[], &mut step, classes);
    });
    let found = model.logits(&step).unwrap();
    for (held, (_, found)) in held.iter().zip(found) {
        check(&found, &plain.know(&held.known), "kept");
        if case.within.is_none() {
            same_pages(&mut model, &mut plain.model, held, classes, &what);
        }
    }
    // Rows of a step before cannot be kept, and nothing is changed by who asks for it.
    let change = TableChange::Keep { row: 1, from: 1 };
    let step =
        Step { deltas: vec![TableDelta { slot: Slot(3), class: ClassId(0), change }], rows: Vec::new() };
    let unknown = ModelError::OutOfRange { what: "kept row", index: 1, bound: 0 };
    assert_eq!(model.submit(&step).unwrap_err(), unknown);
}

/// Keys and values of all positions are where a chain's are.
fn same_pages(model: &mut CudaModel, plain: &mut CudaModel, held: &Held, classes: u8, what: &str) {
    let count = held.known.len();
    for index in 0..pages_for(count as u32) {
        for class in 0..classes {
            for layer in 0..Model::layers(model) {
                let of = |model: &mut CudaModel, slot| {
                    let mut bytes = Vec::new();
                    model.export(ClassId(class), page(slot, index), layer, &mut bytes).unwrap();
                    bytes
                };
                let (found, expected) = (of(model, held.slot), of(plain, 0));
                let cells = model.layout.cells;
                for (found, expected) in found.chunks(cells.head()).zip(expected.chunks(cells.head())) {
                    for (start, row) in cells.parts() {
                        for place in 0..16 {
                            let position = index as usize * 16 + place;
                            let range = start + place * row..start + (place + 1) * row;
                            let same = position >= count || found[range.clone()] == expected[range];
                            assert!(same, "{what}: position {position} of layer {layer} is elsewhere");
                        }
                    }
                }
            }
        }
    }
}

/// In the invariant mode each row has the bits of the same tokens in a row, and so has what follows those that are kept; on
/// one GPU and on two (one that holds two parts, where there is no other).
#[test]
fn invariant_tree_rows_have_the_bits_of_chains() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 8, 4, false);
    let two = vec![0, 1 % device_count()];
    // Parts that share a GPU wait for each other: they must leave each other room.
    let most = if device_count() > 1 { CudaOptions::default().rows } else { 64 };
    let whole = KvKept::Dtype;
    for (ordinals, dtype, kv, graphs, windows) in [
        (vec![0], Dtype::Bf16, whole, true, false),
        (vec![0], Dtype::Bf16, whole, false, true),
        (vec![0], Dtype::Bf16, KvKept::Fp8, true, true),
        (vec![0], Dtype::F16, whole, true, true),
        (vec![0], Dtype::F32, whole, true, false),
        (vec![0], Dtype::F32, whole, true, true),
        (two.clone(), Dtype::Bf16, whole, true, false),
        (two, Dtype::Bf16, whole, true, true),
    ] {
        let rows = if ordinals.len() > 1 { most } else { CudaOptions::default().rows };
        let mode = Mode::Invariant;
        let cuda = CudaOptions { ordinals, dtype, kv, graphs, mode, rows, ..CudaOptions::default() };
        let case = Case { cuda, windows, forests: vec![wide(3), wide(5)], within: None };
        // Trees begin at each side of a page's border, and reach over one of attention's splits.
        for length in [1, 15, 16, 249] {
            assert_trees_are_chains(&made, &case, length);
        }
    }
}

/// In the fast mode they are near, also in the persistent kernels, with their sums over two GPUs where there are two.
#[test]
fn fast_tree_rows_are_near_chains() {
    if device().is_none() {
        return;
    }
    let _alone = FILLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let made = Made::new("llama", 64, 8, 4, false);
    let gpus = device_count();
    // Parts that share all of one GPU may wait for each other in vain.
    let cases = [
        (vec![0], Dtype::F32, Persist::Never, false),
        (vec![0], Dtype::F32, Persist::Never, true),
        (vec![0], Dtype::Bf16, Persist::Never, true),
        (vec![0], Dtype::Bf16, Persist::Always, false),
        (vec![0], Dtype::Bf16, Persist::Always, true),
        (vec![0, 1], Dtype::F32, Persist::Never, true),
        (vec![0, 1], Dtype::Bf16, Persist::Always, false),
    ];
    for (ordinals, dtype, persistent, windows) in cases {
        if ordinals.len() > gpus {
            println!("not run: {dtype:?} over two parts takes two GPUs");
            continue;
        }
        let within = Some(if dtype == Dtype::F32 { 1e-4 } else { 0.15 });
        let cuda = CudaOptions { ordinals, dtype, persistent, ..CudaOptions::default() };
        for forests in [vec![narrow()], vec![wide(3), wide(5)]] {
            let case = Case { cuda: cuda.clone(), windows, forests, within };
            for length in [1, 40, 249] {
                assert_trees_are_chains(&made, &case, length);
            }
        }
    }
}

#[test]
fn trees_that_are_too_large_are_refused_by_name() {
    if device().is_none() {
        return;
    }
    let mut model = Made::new("llama", 64, 4, 2, true).gpu(&CudaOptions::default());
    let nodes: Vec<Node> = (0..65).map(|i| (i, None)).collect();
    let mut held = Held { slot: 0, known: tokens(1, 3), computed: 0, pages: 0 };
    let mut step = Step::default();
    held.rows(&nodes, &mut step, 1);
    let refused = model.submit(&step).unwrap_err();
    assert_eq!(refused, ModelError::OutOfRange { what: "tree row", index: 64, bound: 64 });
    step.rows.pop();
    assert_eq!(model.logits(&step).unwrap().len(), 65);
}
