//! What SARATHI promises (arXiv 2403.02310), for any arrivals, and what the other policies do instead.

use proptest::prelude::*;

use super::*;

/// A request: the step before which it arrives, its prompt, its output.
type Trace = Vec<(u32, u32, u32)>;

/// Rows of a step, the ids that picked, and the ids that could have decoded before it.
struct Seen {
    rows: u32,
    picked: Vec<u64>,
    decoding: Vec<u64>,
}

fn config(policy: Policy, token_budget: u32, tile: u32, slots: u32) -> Config {
    Config {
        token_budget,
        tile,
        policy,
        max_waiting: 1000,
        context: 4096,
        slots,
        tree_rows: 0,
        classes: vec![(HeadClass::Full, 4096)],
        prefix_cache: false,
    }
}

fn run(config: Config, trace: &Trace) -> Vec<Seen> {
    let mut scheduler = Scheduler::new(config);
    let (mut seen, mut left): (Vec<Seen>, BTreeMap<SequenceId, u32>) = Default::default();
    let last = trace.iter().map(|t| t.0).max().unwrap_or(0);
    for step in 0.. {
        for (id, (_, prompt, output)) in (0..).zip(trace).filter(|(_, t)| t.0 == step) {
            let tokens = (0..*prompt).map(|at| token(id, at)).collect();
            let (limit, id) = (prompt + output, SequenceId(id));
            let root = PrefixRoot::salted("");
            let new = NewSequence { id, tokens, limit, longest: limit, priority: 0, root, settled: u32::MAX };
            scheduler.add(new).unwrap();
            left.insert(id, *output);
        }
        if left.is_empty() && step > last {
            return seen;
        }
        let decoding = left.keys().filter(|id| scheduler.decoding(**id)).map(|id| id.0).collect();
        let plan = scheduler.plan(|_| Ahead::Go(&[]));
        assert!(step < 20_000 && (left.is_empty() || !plan.slices.is_empty()), "no progress");
        let picked = plan.slices.iter().filter(|s| s.picks).map(|s| s.sequence.0).collect();
        seen.push(Seen { rows: plan.step.rows.len() as u32, picked, decoding });
        for slice in &plan.slices {
            let tokens = if slice.picks { &[TokenId(1)][..] } else { &[] };
            scheduler.commit(slice, 0, None, tokens);
            let output = left.get_mut(&slice.sequence).unwrap();
            *output -= tokens.len() as u32;
            if *output == 0 {
                left.remove(&slice.sequence);
                scheduler.remove(slice.sequence);
            }
        }
    }
    unreachable!()
}

fn traces() -> impl Strategy<Value = Trace> {
    // A prompt of one token is a decode from the start.
    prop::collection::vec((0u32..60, 2u32..300, 1u32..40), 1..24)
}

/// Ids in the order of their first tokens.
fn first_tokens(seen: &[Seen]) -> Vec<u64> {
    let mut order = Vec::new();
    for id in seen.iter().flat_map(|s| &s.picked) {
        if !order.contains(id) {
            order.push(*id);
        }
    }
    order
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn decodes_never_stall_and_steps_keep_the_budget(
        trace in traces(), budget in 1u32..200, tile in prop::sample::select(vec![1u32, 8, 16, 128]), slots in 1u32..12,
    ) {
        let seen = run(config(Policy::Sarathi, budget, tile, slots), &trace);
        for step in &seen {
            for id in &step.decoding {
                prop_assert!(step.picked.contains(id), "{} stalled", id);
            }
            let decodes = step.decoding.len() as u32;
            prop_assert!(step.rows <= budget.max((decodes + 1).next_multiple_of(tile.min(budget))));
        }
        // Work is conserved: every position but the last of each answer is computed once.
        let work: u32 = trace.iter().map(|(_, prompt, output)| prompt + output - 1).sum();
        prop_assert_eq!(seen.iter().map(|s| s.rows).sum::<u32>(), work);
        let picks: u32 = trace.iter().map(|t| t.2).sum();
        prop_assert_eq!(seen.iter().map(|s| s.picked.len() as u32).sum::<u32>(), picks);
    }

    #[test]
    fn prompts_end_in_the_order_of_their_arrival(trace in traces(), budget in 1u32..200, slots in 1u32..12) {
        let seen = run(config(Policy::Sarathi, budget, 1, slots), &trace);
        let mut wanted: Vec<(u32, u64)> = trace.iter().zip(0..).map(|(t, id)| (t.0, id)).collect();
        wanted.sort_unstable();
        prop_assert_eq!(first_tokens(&seen), wanted.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
    }

    /// A budget without end: no prompt is ever cut, as in a server without chunks.
    #[test]
    fn without_a_budget_every_prompt_is_one_step(trace in traces()) {
        let seen = run(config(Policy::Sarathi, 100_000, 1, 100), &trace);
        for (id, (arrival, ..)) in (0..).zip(&trace) {
            prop_assert!(seen[*arrival as usize].picked.contains(&id));
        }
    }

    /// The others, for the same work: one stalls decodes, the other newcomers.
    #[test]
    fn the_other_policies_stall_whom_they_say(trace in traces(), slots in 1u32..12) {
        for policy in [Policy::PrefillFirst, Policy::DecodeFirst] {
            let seen = run(config(policy, 64, 1, slots), &trace);
            let work: u32 = trace.iter().map(|(_, prompt, output)| prompt + output - 1).sum();
            prop_assert_eq!(seen.iter().map(|s| s.rows).sum::<u32>(), work, "{:?}", policy);
            for step in &seen {
                let decoded = step.decoding.iter().filter(|id| step.picked.contains(id)).count();
                prop_assert!(decoded == 0 || decoded == step.rows as usize, "{:?} mixes", policy);
                if policy == Policy::DecodeFirst {
                    prop_assert_eq!(decoded, step.decoding.len());
                }
            }
        }
    }
}

#[test]
fn prefill_first_lets_decodes_wait_for_a_prompt_and_sarathi_does_not() {
    let trace = vec![(0, 4, 20), (5, 1000, 1)];
    let stalled = |policy| {
        let seen = run(config(policy, 64, 1, 4), &trace);
        seen.iter().filter(|s| s.decoding.iter().any(|id| !s.picked.contains(id))).count()
    };
    assert_eq!((stalled(Policy::Sarathi), stalled(Policy::PrefillFirst)), (0, 1));
}

/// Eight streams and a prompt of 16 k: each stream has its token in every step, no step is larger than the budget,
/// and the prompt is computed by full budgets: so nobody starves.
#[test]
fn a_long_prompt_costs_running_streams_no_more_than_the_budget() {
    let mut scheduler = Scheduler::new(Config { context: 20_000, ..config(Policy::Sarathi, 128, 8, 16) });
    let add = |scheduler: &mut Scheduler, id: u64, prompt: u32, output: u32| {
        let tokens = (0..prompt).map(|at| token(id, at)).collect();
        let (limit, id, root) = (prompt + output, SequenceId(id), PrefixRoot::salted(""));
        scheduler
            .add(NewSequence { id, tokens, limit, longest: limit, priority: 0, root, settled: u32::MAX })
            .unwrap();
    };
    (0..8).for_each(|id| add(&mut scheduler, id, 10, 2000));
    let step = |scheduler: &mut Scheduler| {
        let plan = scheduler.plan(|_| Ahead::Go(&[]));
        for slice in &plan.slices {
            scheduler.commit(slice, 0, None, if slice.picks { &[TokenId(1)] } else { &[] });
        }
        plan
    };
    step(&mut scheduler);
    add(&mut scheduler, 8, 16_384, 1);
    let (mut steps, mut prefilled) = (0, 0);
    while prefilled < 16_384 {
        let plan = step(&mut scheduler);
        let of = |id| plan.slices.iter().find(|s| s.sequence == SequenceId(id));
        assert!((0..8).all(|id| of(id).is_some_and(|s| s.picks)), "step {steps}: a stream has no token");
        assert!(plan.step.rows.len() <= 128);
        prefilled += of(8).map_or(0, |s| s.known);
        steps += 1;
    }
    assert_eq!(steps, 16_384_u32.div_ceil(120), "the prompt has all that eight decodes leave");
}

/// The step is a multiple of the tile, not the chunk: decodes and chunk share its last tile.
#[test]
fn chunks_fill_tiles() {
    let first_with_both = |budget, tile, decodes: u32| {
        let mut trace: Trace = (0..decodes).map(|_| (0, 1, 50)).collect();
        trace.push((1, 1000, 1));
        run(config(Policy::Sarathi, budget, tile, 64), &trace)[1].rows
    };
    for (budget, tile, decodes, rows) in [
        (100, 1, 3, 100),
        (100, 32, 3, 96),
        (100, 32, 30, 96),
        // Decodes are over the budget: the prompt gets what their last tile has left.
        (32, 32, 40, 64),
        (32, 1, 40, 41),
        // A budget below a tile.
        (4, 8, 1, 4),
    ] {
        assert_eq!(
            first_with_both(budget, tile, decodes),
            rows,
            "budget {budget}, tile {tile}, {decodes} decodes"
        );
    }
}
