//! A trace through the real scheduler, on a clock that only steps move.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use kvcache::{HeadClass, PrefixRoot};
use request::TokenId;
use scheduler::{Ahead, Config, NewSequence, Plan, Policy, Scheduler, SequenceId};
use serde::Serialize;

use super::cost::Cost;
use super::trace::{Asked, Trace};
use crate::bench::spread::Spread;

/// What the rank has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub policy: Policy,
    pub rows: u32,
    pub slots: u32,
    pub pages: u32,
}

/// What requests saw, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// From arrival to the first token.
    pub ttft_ms: Spread,
    /// Between two tokens of an answer, over all answers; none when all answers are one token long.
    pub tbt_ms: Option<Spread>,
    /// From arrival to the first row.
    pub delay_ms: Spread,
    pub step_ms: Spread,
    /// Sequences that gave way.
    pub preemptions: u64,
    pub output_tokens_per_s: f64,
}

/// One request on its way.
struct Life {
    asked: Asked,
    started: Option<f64>,
    latest: Option<f64>,
    left: u32,
}

/// # Errors
/// A request that can never run on such a rank.
pub fn replay(trace: &Trace, cost: &Cost, limits: &Limits) -> Result<Outcome> {
    let mut scheduler = Scheduler::new(Config {
        token_budget: limits.rows,
        tile: cost.tile,
        policy: limits.policy,
        max_waiting: trace.asked().len(),
        context: trace.longest(),
        slots: limits.slots,
        tree_rows: 0,
        classes: vec![(HeadClass::Full, limits.pages)],
        prefix_cache: false,
    });
    let mut seen = Seen::default();
    let mut lives: BTreeMap<SequenceId, Life> = BTreeMap::new();
    let mut coming = (0..).zip(trace.asked()).peekable();
    let mut now = 0.0;
    loop {
        while let Some((id, asked)) = coming.next_if(|(_, asked)| asked.arrival <= now) {
            let id = SequenceId(id);
            scheduler
                .add(sequence(id, asked))
                .with_context(|| format!("request {} of the trace", id.0 + 1))?;
            lives.insert(id, Life { asked: *asked, started: None, latest: None, left: asked.output });
        }
        let plan = scheduler.plan(|_| Ahead::Go(&[]));
        if plan.slices.is_empty() {
            match coming.peek() {
                Some((_, next)) => now = next.arrival,
                None => break,
            }
            continue;
        }
        let took = cost.step(plan.slices.iter().map(|s| (s.rows(), s.position)));
        seen.steps.push(took * 1e3);
        for slice in &plan.slices {
            if let Some(life) = lives.get_mut(&slice.sequence) {
                life.started.get_or_insert(now);
            }
        }
        now += took;
        commit(&mut scheduler, &plan, now, &mut lives, &mut seen);
    }
    seen.outcome(now, &scheduler).context("no request ended")
}

fn sequence(id: SequenceId, asked: &Asked) -> NewSequence {
    let longest = asked.prompt + asked.output;
    NewSequence {
        id,
        tokens: vec![TokenId(0); asked.prompt as usize],
        limit: longest,
        longest,
        priority: 0,
        root: PrefixRoot::salted(""),
        settled: u32::MAX,
    }
}

fn commit(
    scheduler: &mut Scheduler,
    plan: &Plan,
    now: f64,
    lives: &mut BTreeMap<SequenceId, Life>,
    seen: &mut Seen,
) {
    for slice in &plan.slices {
        scheduler.commit(slice, 0, None, if slice.picks { &[TokenId(0)] } else { &[] });
        let Some(life) = lives.get_mut(&slice.sequence).filter(|_| slice.picks) else { continue };
        match life.latest.replace(now) {
            None => seen.first.push((now - life.asked.arrival) * 1e3),
            Some(before) => seen.between.push((now - before) * 1e3),
        }
        life.left -= 1;
        seen.tokens += 1;
        if life.left == 0 {
            seen.delays.push((life.started.unwrap_or(now) - life.asked.arrival) * 1e3);
            scheduler.remove(slice.sequence);
            lives.remove(&slice.sequence);
        }
    }
}

#[derive(Default)]
struct Seen {
    first: Vec<f64>,
    between: Vec<f64>,
    delays: Vec<f64>,
    steps: Vec<f64>,
    tokens: u64,
}

impl Seen {
    fn outcome(self, now: f64, scheduler: &Scheduler) -> Option<Outcome> {
        Some(Outcome {
            ttft_ms: Spread::of(self.first)?,
            tbt_ms: Spread::of(self.between),
            delay_ms: Spread::of(self.delays)?,
            step_ms: Spread::of(self.steps)?,
            preemptions: scheduler.counters().preemptions,
            output_tokens_per_s: self.tokens as f64 / now,
        })
    }
}
