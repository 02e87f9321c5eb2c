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
    /// Who is first among equals: [`turn`].
    pub random: u64,
    /// Tokens to compute: prompt and what was delivered already.
    pub tokens: u32,
    /// Of those, what each worker is thought to have in its prefix cache; without those that have none.
    pub hits: &'a HashMap<NodeId, u32>,
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

/// What a whole prompt in the cache is worth, in shares of a worker's slots: with half of them more at work than another
/// worker has, it is no better a place.
const WORTH: f64 = 0.5;
/// A prompt is taken to be at least so long when it is asked how much of it is cached: to save a few tokens is worth little.
const LONG: u32 = 512;

/// Picks a worker, and ranks drafters of its vocabulary.
///
/// Where some worker has the beginning of the prompt, the one with the least cost of all: work per slot, less
/// [`WORTH`] times the share of the prompt that it has. Otherwise two candidates are drawn and the less
/// loaded one taken: nearly as even as taking the least loaded
/// of all, without every coordinator sending to the same one on figures that are a heartbeat old.
pub fn place(problem: &Problem<'_>) -> Result<Placement, NoPlace> {
    let mut candidates = candidates(problem)?;
    if let Some(fingerprint) = problem.prefer
        && candidates.iter().any(|m| m.record.fingerprint == fingerprint)
    {
        candidates.retain(|m| m.record.fingerprint == fingerprint);
    }
    let hit = candidates.iter().any(|m| problem.hits.contains_key(&m.record.id));
    let worker = if hit { least(&candidates, problem) } else { two_choices(&candidates, problem) };
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

/// The candidate of least cost. Equal ones take turns, as the problem's random number has it.
fn least<'a>(candidates: &[&'a Member], problem: &Problem<'_>) -> &'a Member {
    let first = (problem.random % candidates.len() as u64) as usize;
    let turns = candidates[first + 1..].iter().chain(&candidates[..first]);
    turns.fold(candidates[first], |best, m| {
        let cheaper = cost(m, problem).total_cmp(&cost(best, problem));
        // What is cached counts where load and prefix even out.
        let cheaper = cheaper.then_with(|| hit(best, problem).cmp(&hit(m, problem)));
        if cheaper.is_lt() { m } else { best }
    })
}

/// Positions of the prompt that a worker need not compute.
pub(crate) fn hit(member: &Member, problem: &Problem<'_>) -> u32 {
    problem.hits.get(&member.record.id).copied().unwrap_or(0).min(problem.tokens)
}

/// Well mixed bits of a request, the same at every coordinator; another try of it has others. FNV-1a, then the end of
/// MurmurHash3.
pub fn turn(request: &str, prompt: u32, tries: u32) -> u64 {
    let bytes = request.bytes().chain(prompt.to_le_bytes()).chain(tries.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// What it costs to send the request there, in shares of a worker's slots.
pub(crate) fn cost(member: &Member, problem: &Problem<'_>) -> f64 {
    let saved = f64::from(hit(member, problem)) / f64::from(problem.tokens.max(LONG));
    work(member, problem) as f64 / f64::from(member.record.slots) - WORTH * saved
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
    // a/slots against b/slots without division; 34 bits times 32 bits needs u128.
    let left = u128::from(work(a, problem)) * u128::from(b.record.slots);
    let right = u128::from(work(b, problem)) * u128::from(a.record.slots);
    left.cmp(&right)
}

/// Sequences at a node: what it reported and what this coordinator placed on it since.
fn work(member: &Member, problem: &Problem<'_>) -> u64 {
    let own = problem.in_flight.get(&member.record.id).copied().unwrap_or(0);
    u64::from(member.load.running) + u64::from(member.load.waiting) + u64::from(own)
}

fn serves(models: &[String]) -> String {
    if models.is_empty() {
        return "no worker has joined yet".into();
    }
    format!("served now: {}", models.join(", "))
}

#[cfg(test)]
mod tests;
