//! The time of one step by its rows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::{Model, ModelSpec};
use kvcache::{ClassId, PageId};
use model::CpuModel;
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

use super::EngineArgs;
use crate::bench::spread::Spread;

/// Rows of one step while the prompt is computed.
const CHUNK: u32 = 256;

/// Milliseconds of a step for each of `args.rows`: rows of one sequence right after a prompt of
/// `args.prompt` tokens, all of them picking the most likely token. That is a verification step.
pub(super) fn run(model: &mut CpuModel, args: &EngineArgs, slot: u32) -> Result<Vec<(u32, Spread)>> {
    let Some(most) = args.rows.iter().copied().max() else { return Ok(Vec::new()) };
    let slot = Slot(slot);
    let mut deltas = tables(model.spec(), slot, args.prompt + most);
    for first in (0..args.prompt).step_by(CHUNK as usize) {
        let last = args.prompt.min(first + CHUNK);
        let rows = (first..last).map(|at| row(slot, at, Output::None)).collect();
        execute(model, &Step { deltas: std::mem::take(&mut deltas), rows })?;
    }
    let mut times = Vec::new();
    for count in &args.rows {
        // The same positions are written again each time: a rejected draft's would be as well.
        let rows = (args.prompt..args.prompt + count).map(|at| row(slot, at, Output::Pick)).collect();
        let step = Step { deltas: Vec::new(), rows };
        execute(model, &step)?;
        let mut taken = Vec::new();
        for _ in 0..args.repeat {
            taken.push(execute(model, &step)?.as_secs_f64() * 1e3);
        }
        times.push((*count, Spread::of(taken).context("--repeat: nothing was measured")?));
    }
    Ok(times)
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

fn row(slot: Slot, position: u32, output: Output) -> Row {
    // Which tokens they are is of no matter to the time; small ids are in every vocabulary.
    let token = RowToken::Known(TokenId(position % 97));
    Row { slot, token, position, parent: Parent::Previous, layers: Layers::All, output, adapter: None }
}

fn execute(model: &mut CpuModel, step: &Step) -> Result<Duration> {
    let picks = step.rows.iter().filter(|row| row.output == Output::Pick).count();
    let draws = vec![Draw::new(Sampling::GREEDY); picks];
    let start = Instant::now();
    let ticket = model.submit(step)?;
    model.collect(ticket, &draws)?;
    Ok(start.elapsed())
}
