//! Drafting with the first layers and the model's own head (LayerSkip, arXiv 2404.16710), and what the layers would have
//! said (DEL's shadow tokens, arXiv 2504.05598); drafting with all layers over a window of the keys (MagicDec, arXiv
//! 2408.11049), of which nothing is kept for the step.

use engine::{ModelError, SaidBy, SelfDraft};
use request::{Del, Sampling, TokenId};
use sampling::Draw;
use scheduler::Slot;

use super::branches::Branches;
use super::exp::exp;
use super::forward::{Forward, Picking, forward};
use super::pool::Pool;
use super::{CpuModel, RowLogits};
use crate::cache::bound;
use crate::check::{Branch, CheckedRow};
use crate::simd::{Kernel, LANES, Lanes, Level};

impl CpuModel {
    pub(super) fn draft(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        let SelfDraft { slot, position, exit, most, .. } = *asked;
        if self.submitted.is_some() {
            return Err(ModelError::Unsupported { what: "drafts before the last step is collected" });
        }
        let layers = self.decoder.layers.len();
        bound("slot", slot.0 as usize, self.spec.slots as usize)?;
        bound("token", asked.token.0 as usize, self.spec.vocab_size as usize)?;
        bound("position", position as usize + most as usize, self.spec.context as usize)?;
        bound("drafts", most as usize, Del::MOST as usize + 1)?;
        if asked.window.is_some() {
            if self.spec.layered.is_none_or(|layered| !layered.windows) {
                return Err(ModelError::Unsupported { what: "drafts over a window" });
            }
            bound("layers below the exit", layers - 1, exit as usize)?;
        }
        bound("exit layer", exit as usize, layers + usize::from(asked.window.is_some()))?;
        bound("layers below the exit", 0, exit as usize)?;
        if let Some(before) = position.checked_sub(1) {
            self.tables.covers(&self.tables.change(&[])?, slot, before)?;
        }
        match asked.window {
            None => self.exits.begin(slot.0, position, exit as usize, asked.watch),
            Some(_) => self.exits.forget(slot.0),
        }
        let drafted = self.drafts(asked);
        if drafted.is_err() {
            self.exits.forget(slot.0);
        }
        drafted
    }

    fn drafts(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        let SelfDraft { slot, position: base, exit, .. } = *asked;
        let level = self.level;
        let (branches, branch) = Branches::of_slot(slot.0, base, &self.tables, &self.storage);
        let forward = Forward { view: asked.window, ..forward!(self, &branches) };
        // Behind the last layer there is nothing but the model's own head.
        let (leaving, head) = match asked.window {
            None => (exit as usize, self.packed.drafting_head()),
            Some(_) => (0, &self.packed.head),
        };
        let (mut ids, mut token, mut chance) = (Vec::new(), asked.token, 1.0);
        for position in (base..).take(asked.most as usize) {
            // Each row is in the pages of the one before it.
            let parent = (position > base).then_some(branch.index);
            let branch = Some(Branch { parent, ..branch });
            let row = CheckedRow { row: 0, slot, token, position, pick: true, branch };
            forward.embed(&mut self.pool, &[row], &mut self.scratch);
            let (storage, scratch) = (&mut self.storage, &mut self.scratch);
            forward.through(&mut self.pool, &[row], 0..exit as usize, storage, &mut self.exits, scratch)?;
            if let Some(drafted) = self.exits.get_mut(slot.0) {
                drafted.tokens.push(token);
                drafted.states.extend_from_slice(&self.scratch.x);
            }
            let mut hidden = self.scratch.x.clone();
            forward.leave(&mut self.pool, leaving, &mut hidden, &mut self.scratch);
            let picking = Picking { rows: vec![(0, position)], hidden };
            let mut said = Vec::new();
            forward.head(
                (head, spread(&asked.sampling)),
                &mut self.pool,
                &picking,
                &mut self.scratch,
                &mut |pool: &mut Pool, found: &[RowLogits<'_>]| {
                    said.extend(say(pool, level, found, &asked.sampling)?);
                    Ok(())
                },
            )?;
            let Some((id, sure)) = said.pop() else { break };
            ids.push((id, sure));
            if asked.ends(id, sure, &mut chance) {
                break;
            }
            token = id;
        }
        Ok(ids)
    }

    pub(super) fn shadows(
        &mut self,
        slot: Slot,
        rows: u32,
        sampling: &Sampling,
    ) -> Result<Vec<SaidBy>, ModelError> {
        let nothing = ModelError::Unsupported { what: "shadow tokens of a slot that was not watched" };
        let watched = self.exits.watched(slot.0).ok_or(nothing)?;
        let (base, hidden, level) = (watched.base, self.parameters.hidden, self.level);
        let forward = forward!(self, &self.branches);
        let (mut picking, mut of) = (Picking::default(), Vec::new());
        // One product of the head for all layers and rows.
        for (layers, states) in &watched.heard {
            let mut states = states[..states.len().min(rows as usize * hidden)].to_vec();
            forward.leave(&mut self.pool, *layers, &mut states, &mut self.scratch);
            for (position, state) in (base..).zip(states.chunks_exact(hidden)) {
                picking.rows.push((of.len() as u32, position));
                picking.hidden.extend_from_slice(state);
                of.push(*layers as u32);
            }
        }
        let mut all = Vec::with_capacity(of.len());
        forward.head(
            (self.packed.drafting_head(), spread(sampling)),
            &mut self.pool,
            &picking,
            &mut self.scratch,
            &mut |pool: &mut Pool, found: &[RowLogits<'_>]| {
                all.extend(say(pool, level, found, sampling)?);
                Ok(())
            },
        )?;
        let mut by: Vec<SaidBy> = Vec::new();
        for (exit, said) in of.into_iter().zip(all) {
            match by.last_mut() {
                Some(last) if last.exit == exit => last.said.push(said),
                _ => by.push(SaidBy { exit, said: vec![said] }),
            }
        }
        Ok(by)
    }
}

/// Noise is found among all tokens; without, the largest of a few among the few.
fn spread(sampling: &Sampling) -> bool {
    !sampling.params.is_greedy()
}

/// Draws each row with the noise of its place, and says how likely the token was.
fn say(
    pool: &mut Pool,
    level: Level,
    found: &[RowLogits<'_>],
    sampling: &Sampling,
) -> Result<Vec<(TokenId, f64)>, ModelError> {
    let mut said: Vec<Option<(TokenId, f64)>> = vec![None; found.len()];
    pool.pieces(&mut said, 1, |i, said| {
        let RowLogits { logits, position, listed, .. } = &found[i];
        // The token, its logit, and all that it stands among.
        let drawn = match listed {
            Some((ids, few)) if !spread(sampling) => sampling::pick(few, sampling, position + 1)
                .map(|at| (TokenId(ids[at.0 as usize]), few[at.0 as usize], *few)),
            _ => sampling::draw(logits, &Draw::new(*sampling), position + 1).map(|drawn| {
                let token = drawn.token;
                (token, logits[token.0 as usize], listed.map_or(*logits, |(_, few)| few))
            }),
        };
        said[0] = drawn.map(|(token, of, logits)| (token, 1.0 / f64::from(level.run(Sum { logits, of }))));
    });
    let broken = |i: usize| ModelError::NotFinite { row: found[i].row };
    said.into_iter().enumerate().map(|(i, said)| said.ok_or_else(|| broken(i))).collect()
}

/// The sum of what all logits are to one of them, as e^: one over its probability.
struct Sum<'a> {
    logits: &'a [f32],
    of: f32,
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f32 {
        let (rows, rest) = self.logits.as_chunks::<LANES>();
        let mut sums = [0.0_f32; LANES];
        for row in rows {
            for (sum, logit) in sums.iter_mut().zip(row) {
                *sum += exp((logit - self.of).min(80.0));
            }
        }
        let rest = rest.iter().map(|logit| exp((logit - self.of).min(80.0)));
        sums.into_iter().chain(rest).sum()
    }
}
