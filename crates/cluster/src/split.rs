//! Whether a prompt is computed by another worker than the one that answers.

use std::sync::Arc;

use crate::placement::{cost, hit};
use crate::{Duty, Member, NodeRecord, Problem, Role};

/// A request whose prompt may be computed elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Prompts of which the worker that answers has to compute less than this stay there: their pages are not worth the way.
    pub at: u32,
}

/// How much longer than at home the prompt may take. A worker for decodes has streams that its own prefill would slow
/// down; for a mixed one the gain must be nearly its own.
const PATIENCE_OF_DECODE: f64 = 4.0;
const PATIENCE_OF_MIXED: f64 = 1.25;

/// The least busy worker for prompts, when it is worth the way. Of the same numerics as the worker that answers: pages mean
/// nothing to others.
pub(crate) fn prefill(worker: &Member, problem: &Problem<'_>) -> Option<Arc<NodeRecord>> {
    // What is in its cache nobody computes.
    let uncached = problem.tokens - hit(worker, problem);
    problem.split.filter(|split| uncached >= split.at)?;
    let there = problem
        .view
        .role(Role::Worker)
        .filter(|m| {
            let (theirs, ours) = (&m.record, &worker.record);
            theirs.duty == Duty::Prefill
                && m.takes_work()
                && theirs.model == ours.model
                && theirs.fingerprint == ours.fingerprint
                && theirs.context > problem.tokens
                && !problem.tried.contains(&theirs.id)
        })
        .min_by(|a, b| {
            let cheaper = cost(a, problem).total_cmp(&cost(b, problem));
            cheaper.then_with(|| a.record.id.cmp(&b.record.id))
        })?;
    let patience = match worker.record.duty {
        Duty::Decode => PATIENCE_OF_DECODE,
        Duty::Mixed | Duty::Prefill => PATIENCE_OF_MIXED,
    };
    // What nobody has measured yet is tried.
    let here = seconds(uncached, worker.load.prefill_rate);
    let elsewhere = remote(worker, there, problem);
    let pays = here.is_none_or(|here| elsewhere <= patience * here);
    pays.then(|| Arc::clone(&there.record))
}

/// Seconds until the pages are here: prompts before it, each taken to be as long, its own, and the way, which overlaps with the
/// arithmetic as pages follow each chunk.
fn remote(worker: &Member, there: &Member, problem: &Problem<'_>) -> f64 {
    let own = problem.in_flight.get(&there.record.id).copied().unwrap_or(0);
    let before = f64::from(there.load.running) + f64::from(there.load.waiting) + f64::from(own);
    let one = |tokens| seconds(tokens, there.load.prefill_rate).unwrap_or(0.0);
    let compute = one(problem.tokens) * before + one(problem.tokens - hit(there, problem));
    compute.max(seconds(problem.tokens, worker.load.handed_rate).unwrap_or(0.0))
}

fn seconds(tokens: u32, rate: u32) -> Option<f64> {
    (rate > 0).then(|| f64::from(tokens) / f64::from(rate))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::member::tests::node;
    use crate::{Load, NoPlace, NodeId, Presence, View, place};

    fn member(id: &str, duty: Duty, load: Load) -> Member {
        let record = Arc::new(NodeRecord { duty, ..node(id) });
        Member { record, load, presence: Presence::Alive, heard: Duration::ZERO }
    }

    fn rates(prefill_rate: u32, handed_rate: u32) -> Load {
        Load { prefill_rate, handed_rate, ..Load::default() }
    }

    fn placed(members: &[Member], tokens: u32) -> Result<(String, Option<String>), NoPlace> {
        placed_with(members, tokens, &HashMap::new())
    }

    fn placed_with(
        members: &[Member],
        tokens: u32,
        hits: &HashMap<NodeId, u32>,
    ) -> Result<(String, Option<String>), NoPlace> {
        let view: View = members.iter().cloned().collect();
        let placement = place(&Problem {
            view: &view,
            model: "m",
            positions: tokens + 8,
            tried: &[],
            prefer: None,
            in_flight: &HashMap::new(),
            random: 0,
            tokens,
            hits,
            split: Some(Split { at: 100 }),
        })?;
        let name = |record: &NodeRecord| record.id.as_str().to_owned();
        Ok((name(&placement.worker), placement.prefill.as_deref().map(name)))
    }

    #[test]
    fn long_prompts_go_to_a_worker_for_prompts_and_short_ones_stay() {
        let members =
            [member("w-d", Duty::Decode, Load::default()), member("w-p", Duty::Prefill, Load::default())];
        let (worker, prompts) = ("w-d".to_owned(), Some("w-p".to_owned()));
        assert_eq!(placed(&members, 99), Ok((worker.clone(), None)));
        assert_eq!(placed(&members, 100), Ok((worker, prompts)));
    }

    #[test]
    fn what_is_cached_is_no_reason_to_ask_another() {
        let members =
            [member("w-d", Duty::Decode, Load::default()), member("w-p", Duty::Prefill, Load::default())];
        for (here, split) in [(0, true), (400, true), (401, false), (500, false)] {
            let hits = HashMap::from([(NodeId::new("w-d").unwrap(), here)]);
            assert_eq!(placed_with(&members, 500, &hits).unwrap().1.is_some(), split, "{here} cached here");
        }
        // Of two for prompts the one that has it; and one that is slow may have it sooner.
        let p = |id, rate| member(id, Duty::Prefill, rates(rate, 0));
        let members = [member("w-d", Duty::Mixed, rates(1000, 0)), p("w-p", 500), p("w-q", 500)];
        assert_eq!(placed(&members, 500).unwrap().1, None);
        let hits = HashMap::from([(NodeId::new("w-q").unwrap(), 400)]);
        assert_eq!(placed_with(&members, 500, &hits).unwrap().1, Some("w-q".into()));
    }

    #[test]
    fn queue_and_rates_decide() {
        let busy = |running| Load { running, ..rates(1000, 0) };
        for (here, duty, there, split, why) in [
            (rates(1000, 0), Duty::Mixed, rates(1000, 0), true, "as fast, and it has nothing else to do"),
            (rates(1000, 0), Duty::Mixed, rates(500, 0), false, "slower"),
            (rates(1000, 0), Duty::Decode, rates(500, 0), true, "slower, but it spares the streams"),
            (rates(1000, 0), Duty::Decode, busy(2), true, "two before it"),
            (rates(1000, 0), Duty::Decode, busy(9), false, "nine before it"),
            (rates(1000, 100), Duty::Decode, rates(1000, 0), false, "the way takes ten times as long"),
            (rates(0, 0), Duty::Mixed, rates(10, 0), true, "nothing is known here"),
        ] {
            let members = [member("w-d", duty, here), member("w-p", Duty::Prefill, there)];
            assert_eq!(placed(&members, 500).unwrap().1.is_some(), split, "{why}");
        }
    }

    #[test]
    fn pages_never_cross_numerics_and_nobody_who_leaves_is_asked() {
        let worker = member("w-d", Duty::Decode, Load::default());
        let good = member("w-p", Duty::Prefill, Load::default());
        let change = |change: &dyn Fn(&mut Member)| {
            let mut other = good.clone();
            change(&mut other);
            [worker.clone(), other]
        };
        let record = |m: &mut Member, fingerprint: &str| {
            m.record = Arc::new(NodeRecord { fingerprint: fingerprint.into(), ..(*m.record).clone() });
        };
        assert_eq!(placed(&change(&|m| record(m, "fp_1")), 500).unwrap().1, Some("w-p".into()));
        assert_eq!(placed(&change(&|m| record(m, "fp_2")), 500).unwrap().1, None);
        let suspect = Presence::Suspect { since: Duration::ZERO };
        assert_eq!(placed(&change(&|m| m.presence = suspect), 500).unwrap().1, None);
    }

    #[test]
    fn a_worker_for_prompts_answers_nobody() {
        let alone = [member("w-p", Duty::Prefill, Load::default())];
        assert_eq!(placed(&alone, 500), Err(NoPlace::PrefillOnly { model: "m".into() }));
    }
}
