//! Steps of a model without an engine around it, for what is measured a step at a time.

use std::time::{Duration, Instant};

use anyhow::Result;
use engine::{Model, ModelSpec};
use kvcache::{ClassId, PageId};
use model::CpuModel;
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

/// Rows of one step while the prompt is computed.
const CHUNK: u32 = 256;

/// Computes a prompt of `prompt` tokens in `slot`, which gets room for `positions`.
pub(super) fn prefill(model: &mut CpuModel, slot: Slot, prompt: u32, positions: u32) -> Result<()> {
    let mut deltas = tables(model.spec(), slot, positions);
    for first in (0..prompt).step_by(CHUNK as usize) {
        let last = prompt.min(first + CHUNK);
        let rows = (first..last).map(|at| row(slot, at, Output::None)).collect();
        execute(model, &Step { deltas: std::mem::take(&mut deltas), rows })?;
    }
    Ok(())
}

/// Gives `slot` room for `positions`, and the first `depth` of them keys and values that nobody computed: small numbers, none
/// of them zero and hardly two alike, so that memory is read as for real ones.
pub(super) fn made_up(model: &mut CpuModel, slot: Slot, depth: u32, positions: u32) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(0);
    for class in (0..u8::MAX).take(model.spec().classes.len()).map(ClassId) {
        for page in (0..kvcache::pages_for(depth)).map(PageId) {
            for layer in 0..model.layers() {
                let mut bytes = Vec::new();
                model.export(class, page, layer, &mut bytes)?;
                for half in bytes.as_chunks_mut().0 {
                    // Half floats from 1/16 to 1/8 of either sign.
                    *half = (random.u16(..) & 0x83ff | 0x2c00).to_le_bytes();
                }
                model.import(class, page, layer, &bytes)?;
            }
        }
    }
    let deltas = tables(model.spec(), slot, positions);
    execute(model, &Step { deltas, rows: vec![row(slot, depth, Output::None)] })?;
    Ok(())
}

/// Room for `positions` in every class of the model.
fn tables(spec: &ModelSpec, slot: Slot, positions: u32) -> Vec<TableDelta> {
    let classes = (0..u8::MAX).take(spec.classes.len());
    let pages = 0..kvcache::pages_for(positions);
    let append = |class| {
        pages.clone().map(move |page| TableDelta {
            slot,
            class: ClassId(class),
            change: TableChange::Append(PageId(page)),
        })
    };
    classes.flat_map(append).collect()
}

/// One row of a sequence. Which tokens they are is of no matter to the time; small ids are in every vocabulary.
pub(super) fn row(slot: Slot, position: u32, output: Output) -> Row {
    let token = RowToken::Known(TokenId(position % 97));
    Row { slot, token, position, parent: Parent::Previous, layers: Layers::All, output, adapter: None }
}

/// Runs a step to its end.
pub(super) fn execute(model: &mut CpuModel, step: &Step) -> Result<Duration> {
    let picks = step.rows.iter().filter(|row| row.output == Output::Pick).count();
    let draws = vec![Draw::new(Sampling::GREEDY); picks];
    let start = Instant::now();
    let ticket = model.submit(step)?;
    model.collect(ticket, &draws)?;
    Ok(start.elapsed())
}
