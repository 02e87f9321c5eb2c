//! Tokens per second of a GGUF file: `cargo run -p model --example speed -- FILE [THREADS] [PROMPT] [DECODE] [LEVEL]`.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::time::Instant;

use engine::Model;
use kvcache::{ClassId, PAGE_POSITIONS, PageId};
use model::{CpuModel, Options, PageBudget};
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| anyhow::anyhow!("give the path of a .gguf file"))?;
    let mut number = |default| arguments.next().map_or(Ok(default), |a| a.parse::<u32>());
    let (threads, prompt, decode) = (number(2)?, number(128)?, number(64)?);
    let options = Options {
        context: None,
        vocab: None,
        slots: 1,
        pages: PageBudget::Pages(1024),
        threads: threads as usize,
        heads: None,
    };
    let mut model = CpuModel::load(path.as_ref(), &options)?;
    let only = arguments.next();
    for level in model::Level::available() {
        if only.as_ref().is_some_and(|only| level.to_string() != *only) {
            continue;
        }
        model.set_level(level);
        let prompt_time = run(&mut model, 0, prompt)?;
        let start = Instant::now();
        for position in prompt..prompt + decode {
            run(&mut model, position, 1)?;
        }
        let decode_time = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for position in 0..8 {
            run(&mut model, prompt + 5 * position, 5)?;
        }
        let verify_time = start.elapsed().as_secs_f64() / 8.0;
        println!(
            "{level:12} prompt {:8.1} tok/s   decode {:7.1} tok/s   5 rows {:6.2} steps of 1",
            f64::from(prompt) / prompt_time,
            f64::from(decode) / decode_time,
            verify_time / (decode_time / f64::from(decode)),
        );
    }
    Ok(())
}

/// One step of `rows` positions from `first` on; seconds.
fn run(model: &mut CpuModel, first: u32, rows: u32) -> anyhow::Result<f64> {
    let slot = Slot(0);
    let mut step = Step::default();
    let delta = |change| TableDelta { slot, class: ClassId(0), change };
    let from = first.div_ceil(PAGE_POSITIONS);
    step.deltas.push(delta(TableChange::Truncate(from)));
    for page in from..(first + rows).div_ceil(PAGE_POSITIONS) {
        step.deltas.push(delta(TableChange::Append(PageId(page))));
    }
    for position in first..first + rows {
        let last = position + 1 == first + rows || rows < 16;
        step.rows.push(Row {
            slot,
            token: RowToken::Known(TokenId((position * 7919 + 13) % 20_000)),
            position,
            parent: Parent::Previous,
            layers: Layers::All,
            output: if last { Output::Pick } else { Output::None },
            adapter: None,
        });
    }
    let picks = step.rows.iter().filter(|row| row.output == Output::Pick).count();
    let draws = vec![Draw::new(Sampling::GREEDY); picks];
    let start = Instant::now();
    let ticket = model.submit(&step)?;
    model.collect(ticket, &draws)?;
    Ok(start.elapsed().as_secs_f64())
}
