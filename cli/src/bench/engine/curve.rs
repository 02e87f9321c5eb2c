//! The time of one step by its rows.

use anyhow::{Context, Result};
use model::CpuModel;
use scheduler::{Output, Slot, Step};

use super::EngineArgs;
use crate::bench::spread::Spread;
use crate::bench::steps::{execute, made_up, prefill, row};

/// Milliseconds of a step for each of `args.rows`: rows of one sequence right after a prompt of
/// `args.prompt` tokens, or behind `args.depth` positions that nobody computed, all of them picking the most likely
/// token. That is a verification step.
pub(super) fn run(model: &mut CpuModel, args: &EngineArgs, slot: u32) -> Result<Vec<(u32, Spread)>> {
    let Some(most) = args.rows.iter().copied().max() else { return Ok(Vec::new()) };
    let slot = Slot(slot);
    let before = args.before();
    match args.depth {
        None => prefill(model, slot, before, before + most)?,
        Some(depth) => made_up(model, slot, depth, depth + most)?,
    }
    let mut times = Vec::new();
    for count in &args.rows {
        // The same positions are written again each time: a rejected draft's would be as well.
        let rows = (before..before + count).map(|at| row(slot, at, Output::Pick)).collect();
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
