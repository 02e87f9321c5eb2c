//! Tree rows: each computes what it would without the tree, to the bit, and what is kept goes on so.

use gguf::TensorKind;
use model::{CpuModel, Level};
use scheduler::{Parent, Row, Slot, Step, TableChange, TableDelta};

use crate::bits::assert_equal;
use crate::steps::{Sequences, append, clear, logits, row};
use crate::tiny::{Shape, Tiny, tokens};

/// A tree after `prompt`: token and parent of each node, as deep as may be and with siblings everywhere.
fn nodes(seed: u32) -> Vec<(u32, Option<u32>)> {
    let mut nodes: Vec<(u32, Option<u32>)> = (0..16u32).map(|i| (3 + i, i.checked_sub(1))).collect();
    for i in 0..14u32 {
        let parent = (i * 7 + seed) % (nodes.len() as u32 + 1);
        let depth = |mut node: Option<u32>, nodes: &[(u32, Option<u32>)]| {
            let mut depth = 0;
            while let Some(at) = node {
                (depth, node) = (depth + 1, nodes[at as usize].1);
            }
            depth
        };
        let parent = parent.checked_sub(1);
        if depth(parent, &nodes) < 16 {
            nodes.push((30 + i, parent));
        }
    }
    nodes
}

fn path(nodes: &[(u32, Option<u32>)], node: usize) -> Vec<u32> {
    let mut path = vec![nodes[node].0];
    let mut at = nodes[node].1;
    while let Some(node) = at {
        path.insert(0, nodes[node as usize].0);
        at = nodes[node as usize].1;
    }
    path
}

/// Rows of a tree behind row `last` of a step, which is at `position`.
fn tree_rows(slot: u32, last: u32, position: u32, nodes: &[(u32, Option<u32>)]) -> Vec<Row> {
    (0..nodes.len())
        .map(|node| {
            let (token, parent) = nodes[node];
            let parent = Parent::Row(parent.map_or(last, |parent| last + 1 + parent));
            Row { parent, ..row(slot, position + path(nodes, node).len() as u32, token) }
        })
        .collect()
}

/// What each row of a tree gives, and what comes after its path is kept, against the same tokens in a row.
fn assert_tree_equals_chains(model: &mut CpuModel, plain: &mut CpuModel, length: usize, what: &str) {
    let prompts = [tokens(length), tokens(length + 5)[5..].to_vec()];
    let mut sequences = Sequences::new(2, 64);
    let all = |p: &Vec<u32>| p[..p.len() - 1].to_vec();
    let (first, second) = (all(&prompts[0]), all(&prompts[1]));
    let mut step = sequences.step(&[(0, 0, &first), (1, 0, &second)]);
    step.deltas.splice(0..0, [clear(0), clear(1)]);
    model.logits(&step).unwrap();

    let at = length as u32 - 1;
    let forests = [nodes(3), nodes(5)];
    let mut step = Step::default();
    for slot in 0..2u32 {
        // Pages for the deepest position.
        let grown = sequences.step(&[(slot, at, &[0; 17])]);
        step.deltas.extend(grown.deltas);
        let last = step.rows.len() as u32;
        step.rows.push(row(slot, at, prompts[slot as usize][at as usize]));
        step.rows.extend(tree_rows(slot, last, at, &forests[slot as usize]));
    }
    let found: Vec<Vec<f32>> = model.logits(&step).unwrap().into_iter().map(|(_, l)| l).collect();
    let mut place = 0;
    for (prompt, nodes) in prompts.iter().zip(&forests) {
        assert_equal(&found[place..=place], &logits(plain, prompt, 64).unwrap()[length - 1..], what);
        for node in 0..nodes.len() {
            let text = [prompt.clone(), path(nodes, node)].concat();
            let expected = logits(plain, &text, 64).unwrap().pop().unwrap();
            let found = &found[place + 1 + node..=place + 1 + node];
            assert_equal(found, &[expected], &format!("{what}, node {node} of {:?}", path(nodes, node)));
        }
        place += 1 + nodes.len();
    }

    // Slot 0 keeps a path through siblings that are not the first ones, slot 1 the deepest.
    let forked = (16..forests[0].len()).max_by_key(|node| path(&forests[0], *node).len()).unwrap();
    let leaves = [forked, 15];
    let mut step = Step::default();
    let mut expected = Vec::new();
    for slot in 0..2u32 {
        let (nodes, leaf) = (&forests[slot as usize], leaves[slot as usize]);
        let row_of = if slot == 0 { 1 } else { forests[0].len() as u32 + 2 } + leaf as u32;
        let change = TableChange::Keep { row: row_of, from: at + 1 };
        step.deltas.push(TableDelta { change, slot: Slot(slot), ..append(0, 0) });
        let kept = path(nodes, leaf);
        let next = [9, 4];
        let end = at + 1 + kept.len() as u32;
        let grown = sequences.step(&[(slot, end, &next)]);
        step.deltas.extend(grown.deltas);
        step.rows.extend(grown.rows);
        let text = [prompts[slot as usize].clone(), kept, next.to_vec()].concat();
        let all = logits(plain, &text, 64).unwrap();
        expected.extend(all[all.len() - 2..].to_vec());
    }
    let found: Vec<Vec<f32>> = model.logits(&step).unwrap().into_iter().map(|(_, l)| l).collect();
    assert_equal(&found, &expected, &format!("{what}, kept"));
}

#[test]
fn tree_rows_are_bit_equal_to_chains_and_so_is_what_follows() {
    for (architecture, kind, window) in [
        ("llama", TensorKind::Q4_0, None),
        ("qwen2", TensorKind::Q5_K, None),
        ("qwen3", TensorKind::F32, None),
        ("llama", TensorKind::Q8_0, Some(11)),
    ] {
        let tiny = Tiny::new(Shape::of(architecture, kind));
        let tiny = window.map_or(tiny.clone(), |window| tiny.windowed(window));
        let (mut model, mut plain) = (tiny.load(2).unwrap(), tiny.load(1).unwrap());
        for level in Level::available() {
            model.set_level(level);
            // The tree begins at each side of a page's border, and reaches over one of attention's spans.
            for length in [1, 15, 16, 17, 505] {
                let what = format!("{architecture} {kind} {level}, {length} tokens before");
                assert_tree_equals_chains(&mut model, &mut plain, length, &what);
            }
        }
    }
}
