use std::collections::HashMap;
use std::sync::Arc;

use crate::split::{self, Split};
use crate::{Duty, Member, NodeId, NodeRecord, Role, View};

/// Most drafters ranked for one placement; a worker that is refused by so many decodes plainly.
pub const MAX_DRAFTERS: usize = 4;

/// Who should run a request, as plain values: the same problem always gives the same answer.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    pub view: &'a View,
    /// Name of the model asked for.
    pub model: &'a str,
    /// Positions the answer may need: prompt and most output. A worker with a smaller context is none.
    pub positions: u32,
    /// Workers that already refused or lost this request.
    pub tried: &'a [NodeId],
    /// Fingerprint of the tokens already delivered: workers that have it come first, others only when
    /// none of them is left.
    pub prefer: Option<&'a str>,
    /// What this coordinator placed on each node beyond the load that it reported last.
    pub in_flight: &'a HashMap<NodeId, u32>,
    /// 64 random bits.
    pub random: u64,
    /// Whether another worker may compute the prompt; `None`: no.
    pub split: Option<Split>,
}

/// The answer: ask this worker, and name it these drafters, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub worker: Arc<NodeRecord>,
    /// At most [`MAX_DRAFTERS`], none full ones before one with room; empty means plain decoding.
    pub drafters: Vec<Arc<NodeRecord>>,
    /// Computes the prompt and hands its pages over; `None`: the worker does it.
    pub prefill: Option<Arc<NodeRecord>>,
}

/// Why nobody can be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("no worker serves model `{model}`; {}", serves(.served))]
    NoSuchModel { model: String, served: Vec<String> },
    #[error(
        "every worker of model `{model}` is for prompts alone; start one with pages.duty mixed or decode"
    )]
    PrefillOnly { model: String },
    #[error(
        "the request needs {needed} positions and the longest context of a worker of `{model}` is {longest}: shorten the prompt or lower max_tokens"
    )]
    TooLong { model: String, needed: u32, longest: u32 },
    /// Workers of the model are there, none takes the request. Each is counted once.
    #[error(
        "no worker of model `{model}` takes new work: {tried} tried, {draining} draining, {suspect} suspect, {disconnected} disconnected; try again shortly"
    )]
    NoneLeft { model: String, tried: u32, draining: u32, suspect: u32, disconnected: u32 },
}

impl NoPlace {
    /// Every worker of the model is leaving (and none refused or fell silent).
    pub fn all_draining(&self) -> bool {
        matches!(self, Self::NoneLeft { tried: 0, suspect: 0, disconnected: 0, .. })
    }
}

/// Picks a worker by power of two choices over load, and ranks drafters of its vocabulary.
///
/// Two candidates are drawn and the less loaded one taken: nearly as even as taking the least loaded
/// of all, without every coordinator sending to the same one on figures that are a heartbeat old.
pub fn place(problem: &Problem<'_>) -> Result<Placement, NoPlace> {
    let mut candidates = candidates(problem)?;
    if let Some(fingerprint) = problem.prefer
        && candidates.iter().any(|m| m.record.fingerprint == fingerprint)
    {
        candidates.retain(|m| m.record.fingerprint == fingerprint);
    }
    let worker = two_choices(&candidates, problem);
    Ok(Placement {
        worker: Arc::clone(&worker.record),
        drafters: drafters(&worker.record, problem),
        prefill: split::prefill(worker, problem),
    })
}

/// Workers that may be asked; never empty.
fn candidates<'a>(problem: &Problem<'a>) -> Result<Vec<&'a Member>, NoPlace> {
    use crate::{NodeState::Draining, Presence};

    let of_model: Vec<&Member> =
        problem.view.role(Role::Worker).filter(|m| m.record.model == problem.model).collect();
    let (of_model, prefill): (Vec<&Member>, Vec<&Member>) =
        of_model.into_iter().partition(|m| m.record.duty != Duty::Prefill);
    let model = || problem.model.to_owned();
    if of_model.is_empty() && !prefill.is_empty() {
        return Err(NoPlace::PrefillOnly { model: model() });
    }
    let Some(longest) = of_model.iter().map(|m| m.record.context).max() else {
        return Err(NoPlace::NoSuchModel { model: model(), served: problem.view.models() });
    };
    if problem.positions > longest {
        return Err(NoPlace::TooLong { model: model(), needed: problem.positions, longest });
    }
    let (mut tried, mut draining, mut suspect, mut disconnected) = (0, 0, 0, 0);
    let mut candidates = Vec::with_capacity(of_model.len());
    for member in of_model.into_iter().filter(|m| m.record.context >= problem.positions) {
        match (member.presence, member.record.state) {
            _ if problem.tried.contains(&member.record.id) => tried += 1,
            (Presence::Disconnected { .. }, _) => disconnected += 1,
            (_, Draining) => draining += 1,
            (Presence::Suspect { .. }, _) => suspect += 1,
            _ => candidates.push(member),
        }
    }
    if candidates.is_empty() {
        return Err(NoPlace::NoneLeft { model: model(), tried, draining, suspect, disconnected });
    }
    Ok(candidates)
}

fn two_choices<'a>(candidates: &[&'a Member], problem: &Problem<'_>) -> &'a Member {
    let n = candidates.len() as u64;
    let first = problem.random % n;
    let first = candidates[first as usize];
    if n == 1 {
        return first;
    }
    // Any other one, each equally likely; the high bits, since the low ones chose the first.
    let skip = 1 + (problem.random >> 32) % (n - 1);
    let second = candidates[((problem.random % n + skip) % n) as usize];
    if fuller(second, first, problem).is_lt() { second } else { first }
}

fn drafters(worker: &NodeRecord, problem: &Problem<'_>) -> Vec<Arc<NodeRecord>> {
    let mut drafters: Vec<&Member> = problem
        .view
        .role(Role::Drafter)
        .filter(|m| m.takes_work() && m.record.vocab_hash == worker.vocab_hash)
        .collect();
    if !drafters.is_empty() {
        // Equally loaded drafters take turns; the sort is stable.
        let turn = (problem.random % drafters.len() as u64) as usize;
        drafters.rotate_left(turn);
    }
    drafters.sort_by(|a, b| fuller(a, b, problem));
    drafters.into_iter().take(MAX_DRAFTERS).map(|m| Arc::clone(&m.record)).collect()
}

/// Orders by work per slot: what the node reported and what this coordinator placed on it since.
pub(crate) fn fuller(a: &Member, b: &Member, problem: &Problem<'_>) -> std::cmp::Ordering {
    let work = |m: &Member| {
        let own = problem.in_flight.get(&m.record.id).copied().unwrap_or(0);
        u64::from(m.load.running) + u64::from(m.load.waiting) + u64::from(own)
    };
    // a/slots against b/slots without division; 34 bits times 32 bits needs u128.
    let left = u128::from(work(a)) * u128::from(b.record.slots);
    let right = u128::from(work(b)) * u128::from(a.record.slots);
    left.cmp(&right)
}

fn serves(models: &[String]) -> String {
    if models.is_empty() {
        return "no worker has joined yet".into();
    }
    format!("served now: {}", models.join(", "))
}

#[cfg(test)]
mod tests;
