//! Steps as a scheduler would plan them, timed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::Model as _;
use kvcache::{ClassId, PageId, pages_for};
use model::{Ceilings, CudaModel, Shape};
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

use super::StepTime;
use crate::bench::spread::Spread;

/// A model, and steps as a scheduler would plan them.
pub(super) struct Bench {
    pub(super) model: CudaModel,
    /// Of a position.
    pub(super) kv_bytes: u64,
    pub(super) classes: usize,
    pub(super) random: fastrand::Rng,
    pub(super) repeat: u32,
    /// Tell the model which step comes next, as an engine does that decodes without drafts.
    pub(super) early: bool,
}

/// Times of steps.
#[derive(Default)]
pub(super) struct Times {
    steps: Vec<Duration>,
    submits: Vec<Duration>,
}

impl Bench {
    /// One token of each of `batch` sequences a step. The steps lie around `context`: as many see fewer
    /// tokens as more.
    pub(super) fn decode(&mut self, batch: u32, context: u32) -> Result<Times> {
        let first = context.saturating_sub(self.repeat / 2 + 2);
        self.fill(batch, first, self.repeat + 2)?;
        let mut times = Times::default();
        let mut tokens: Vec<TokenId> = (0..batch).map(|_| self.token()).collect();
        // The first captures the graph, the second runs it for the first time.
        for n in 0..self.repeat + 2 {
            let rows = (0..batch).map(|slot| row(slot, tokens[slot as usize], first + n, true)).collect();
            let next = |slot| {
                let token = RowToken::FromStep(slot);
                Row { token, ..row(slot, TokenId(0), first + n + 1, true) }
            };
            let next = Step { deltas: Vec::new(), rows: (0..batch).map(next).collect() };
            // The first one captures the graph, which nothing can begin before.
            let next = (self.early && n > 0 && n < self.repeat + 1).then_some(next);
            let step = Step { deltas: Vec::new(), rows };
            tokens = self.step(step, next.as_ref(), (n >= 2).then_some(&mut times))?;
        }
        Ok(times)
    }

    /// `rows` rows of one sequence a step, each time the same positions.
    pub(super) fn verify(&mut self, rows: u32, context: u32) -> Result<Times> {
        self.fill(1, context, rows + 1)?;
        let mut times = Times::default();
        for n in 0..self.repeat + 2 {
            let rows = (0..rows).map(|i| row(0, self.token(), context + i, true)).collect();
            self.step(Step { deltas: Vec::new(), rows }, None, (n >= 2).then_some(&mut times))?;
        }
        Ok(times)
    }

    /// A prompt in one step, its last token picking.
    pub(super) fn prefill(&mut self, tokens: u32) -> Result<Times> {
        let mut times = Times::default();
        for n in 0..self.repeat.min(8) + 2 {
            let rows = (0..tokens).map(|i| row(0, self.token(), i, i + 1 == tokens)).collect();
            let deltas = self.tables(1, tokens);
            self.step(Step { deltas, rows }, None, (n >= 2).then_some(&mut times))?;
        }
        Ok(times)
    }

    /// Prompts of `context` tokens in slots 0 to `batch`, with pages for `more` tokens behind.
    fn fill(&mut self, batch: u32, context: u32, more: u32) -> Result<()> {
        let deltas = self.tables(batch, context + more);
        self.step(Step { deltas, rows: Vec::new() }, None, None)?;
        for slot in 0..batch {
            let rows = (0..context).map(|i| row(slot, self.token(), i, false)).collect();
            self.step(Step { deltas: Vec::new(), rows }, None, None)?;
        }
        Ok(())
    }

    /// Fresh page tables for `batch` sequences of `tokens` tokens.
    fn tables(&self, batch: u32, tokens: u32) -> Vec<TableDelta> {
        let mut deltas = Vec::new();
        let slots = self.model.spec().slots;
        for class in 0..self.classes {
            let class = ClassId(class as u8);
            let change = |slot, change| TableDelta { slot: Slot(slot), class, change };
            deltas.extend((0..slots).map(|slot| change(slot, TableChange::Clear)));
            for slot in 0..batch {
                let pages = pages_for(tokens);
                deltas.extend(
                    (0..pages).map(|page| change(slot, TableChange::Append(PageId(slot * pages + page)))),
                );
            }
        }
        deltas
    }

    fn token(&mut self) -> TokenId {
        TokenId(self.random.u32(0..self.model.spec().vocab_size))
    }

    fn step(&mut self, step: Step, next: Option<&Step>, times: Option<&mut Times>) -> Result<Vec<TokenId>> {
        let picks = step.rows.iter().filter(|row| row.output == Output::Pick).count();
        let draws = vec![Draw::new(Sampling::GREEDY); picks];
        let start = Instant::now();
        let ticket = self.model.submit(&step)?;
        let submitted = start.elapsed();
        if let Some(next) = next {
            self.model.expect(next);
        }
        let picks = self.model.collect(ticket, &draws)?;
        if let Some(times) = times {
            times.steps.push(start.elapsed());
            times.submits.push(submitted);
        }
        Ok(picks.0.into_iter().map(|pick| pick.drawn.token).collect())
    }
}

fn row(slot: u32, token: TokenId, position: u32, pick: bool) -> Row {
    Row {
        slot: Slot(slot),
        token: RowToken::Known(token),
        position,
        parent: Parent::Previous,
        layers: Layers::All,
        output: if pick { Output::Pick } else { Output::None },
        adapter: None,
    }
}

impl Times {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn step(
        &self,
        what: &'static str,
        sequences: u32,
        rows: u32,
        context: u32,
        shape: &Shape,
        bench: &Bench,
        ceilings: &Ceilings,
    ) -> Result<StepTime> {
        let ms = |d: &Duration| d.as_secs_f64() * 1e3;
        let step_ms = Spread::of(self.steps.iter().map(ms)).context("no step was timed")?;
        let submit = Spread::of(self.submits.iter().map(|d| ms(d) * 1e3)).map_or(0.0, |s| s.p50);
        let (all, picks) = (
            u64::from(sequences) * u64::from(rows),
            u64::from(if what == "prefill" { 1 } else { sequences * rows }),
        );
        // Keys and values before each sequence are read once a step, whatever its rows.
        let bytes = bench.model.step_bytes() + u64::from(sequences) * u64::from(context) * bench.kv_bytes;
        let operations =
            shape.operations(all, picks, u64::from(context), u64::from(rows), u64::from(sequences));
        let floor = (bytes as f64 / ceilings.copy).max(operations as f64 / ceilings.product);
        Ok(StepTime {
            what,
            sequences,
            rows,
            step_ms,
            submit_us: submit,
            floor_ms: floor * 1e3,
            over_floor: step_ms.p50 / (floor * 1e3),
            tflop_per_s: operations as f64 / (step_ms.p50 * 1e-3) / 1e12,
        })
    }
}
