//! The sampling law: the joint of the first three tokens is the target's, drafted or not.

use crate::link::{Dice, Faults, MODEL_SEED, Setup, VOCAB, drafter, drive, request, run, sampled};
use engine::toy_logits;
use request::{Rule, SamplingParams, Speculation, Strategy, TokenId};
use sampling::probabilities;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const PROMPT: [u32; 3] = [3, 1, 2];
const DRAWS: u64 = 20_000;
const TEMPERATURE: f32 = 0.5;

/// Exact probability of each triple of first tokens, in order of falling probability.
fn exact() -> Vec<([u32; 3], f64)> {
    let prompt: Vec<TokenId> = PROMPT.iter().copied().map(TokenId).collect();
    let params = SamplingParams::at(TEMPERATURE);
    let law = |tokens: &[TokenId]| probabilities(&toy_logits(MODEL_SEED, tokens, VOCAB), &params);
    let mut joint = Vec::new();
    for (a, pa) in law(&prompt).into_iter().enumerate() {
        let after_a = [prompt.as_slice(), &[TokenId(a as u32)]].concat();
        for (b, pb) in law(&after_a).into_iter().enumerate() {
            let after_b = [after_a.as_slice(), &[TokenId(b as u32)]].concat();
            for (c, pc) in law(&after_b).into_iter().enumerate() {
                joint.push(([a as u32, b as u32, c as u32], pa * pb * pc));
            }
        }
    }
    joint.sort_by(|x, y| y.1.total_cmp(&x.1));
    joint
}

/// Chi-square statistic over cells of at least 20 expected draws (the rest pooled), as standard
/// deviations above its mean.
fn excess(draws: &[[u32; 3]], exact: &[([u32; 3], f64)]) -> f64 {
    let n = draws.len() as f64;
    let mut seen = std::collections::HashMap::<[u32; 3], f64>::new();
    for draw in draws {
        *seen.entry(*draw).or_default() += 1.0;
    }
    let (mut chi, mut cells, mut rest) = (0.0, 0.0, (0.0, 0.0));
    for (triple, p) in exact {
        let observed = seen.get(triple).copied().unwrap_or_default();
        if p * n >= 20.0 {
            chi += (observed - p * n).powi(2) / (p * n);
            cells += 1.0;
        } else {
            rest = (rest.0 + observed, rest.1 + p * n);
        }
    }
    chi += (rest.0 - rest.1).powi(2) / rest.1;
    assert!(cells > 100.0, "the test looks at {cells} cells");
    (chi - cells) / (2.0 * cells).sqrt()
}

fn draws(strategy: Strategy, rule: Rule) -> (Vec<[u32; 3]>, u64, u64) {
    let (mut triples, mut accepted, mut drafted) = (Vec::new(), 0, 0);
    let requests: Vec<_> = (0..DRAWS)
        .map(|seed| {
            let speculation = Speculation { strategy, rule, max_draft: None };
            let mut request = request(&PROMPT, 3, sampled(seed, TEMPERATURE), speculation);
            request.limits.stop_ids.clear();
            request
        })
        .collect();
    for batch in requests.chunks(8) {
        for answer in run(batch, 64, Some(drafter(0.5)), Faults::default(), &mut Dice(1), None) {
            triples.push([answer.output[0].0, answer.output[1].0, answer.output[2].0]);
            accepted += answer.stats.accepted_tokens;
            drafted += answer.stats.draft_tokens;
        }
    }
    (triples, accepted, drafted)
}

#[test]
fn the_first_three_tokens_follow_the_exact_law() {
    let exact = exact();
    let (plain, ..) = draws(Strategy::None, Rule::Coupled);
    assert!(excess(&plain, &exact) < 4.0, "plain: {}", excess(&plain, &exact));
    let lockstep = Strategy::Lockstep { k: 2, deadline: Duration::from_secs(1) };
    let mut acceptance = Vec::new();
    for (rule, strategy) in [
        (Rule::Coupled, lockstep),
        (Rule::Strict, lockstep),
        (Rule::Rejection, lockstep),
        (Rule::Rejection, Strategy::Draft),
    ] {
        let (triples, accepted, drafted) = draws(strategy, rule);
        assert!(
            accepted > DRAWS / 20 && drafted - accepted > DRAWS / 20,
            "{rule:?} {strategy:?}: {accepted} of {drafted} drafts accepted"
        );
        // Under all but rejection the tokens are the target's own draws, whoever drafted.
        assert_eq!(plain == triples, rule != Rule::Rejection, "{rule:?}: a seed has one text");
        let excess = excess(&triples, &exact);
        assert!(excess < 4.0, "{rule:?} {strategy:?}: {excess}");
        acceptance.push(accepted as f64 / drafted as f64);
    }
    // The overlap of p and q is the most that any rule can accept.
    assert!(acceptance[2] > acceptance[1], "{acceptance:?}");
}

/// What is drawn after each token is recycled from one request to the next, as trees: the law is the target's under
/// every rule (without a drafter nobody draws from a q, so rejection is strict).
#[test]
fn trees_follow_the_exact_law() {
    let (exact, (plain, ..)) = (exact(), draws(Strategy::None, Rule::Coupled));
    for rule in [Rule::Coupled, Rule::Strict, Rule::Rejection] {
        let (mut triples, mut accepted, mut drafted, later) = (Vec::new(), 0, 0, Arc::default());
        let requests: Vec<_> = (0..DRAWS)
            .map(|seed| {
                let speculation = Speculation { strategy: Strategy::Recycle, rule, max_draft: None };
                let mut request = request(&PROMPT, 3, sampled(seed, TEMPERATURE), speculation);
                request.limits.stop_ids.clear();
                request
            })
            .collect();
        for batch in requests.chunks(200) {
            for answer in drive(batch, Setup::watched(64, &later), &mut Dice(1)).answers {
                triples.push([answer.output[0].0, answer.output[1].0, answer.output[2].0]);
                accepted += answer.stats.accepted_tokens;
                drafted += answer.stats.draft_tokens;
            }
        }
        let later = later.load(Ordering::Relaxed);
        assert!(accepted > DRAWS / 20 && drafted - accepted > DRAWS / 20, "{accepted} of {drafted}");
        assert!(later > DRAWS / 100, "{rule:?}: {later} later siblings stood");
        assert_eq!(plain, triples, "{rule:?}: a seed has one text");
        assert!(excess(&triples, &exact) < 4.0, "{rule:?}: {}", excess(&triples, &exact));
    }
}

/// The twin for trees: a verifier that takes a sibling for being likely enough (typical acceptance), not for being
/// what the target drew.
#[test]
fn a_verifier_that_takes_what_is_likely_is_told_apart() {
    let exact = exact();
    let prompt: Vec<TokenId> = PROMPT.iter().copied().map(TokenId).collect();
    let mut biased = Vec::new();
    for seed in 0..DRAWS {
        let mut known = prompt.clone();
        let mut triple = [0u32; 3];
        for token in &mut triple {
            let position = known.len() as u32;
            let logits = toy_logits(MODEL_SEED, &known, VOCAB);
            let law = probabilities(&logits, &SamplingParams::at(TEMPERATURE));
            let pick = sampling::pick(&logits, &sampled(seed, TEMPERATURE), position).unwrap();
            // Two siblings, as they were drawn for others.
            let siblings = [1, 2]
                .map(|other| sampling::pick(&logits, &sampled(seed + other, TEMPERATURE), position).unwrap());
            let likely = siblings.iter().find(|sibling| law[sibling.0 as usize] > 0.15);
            *token = likely.copied().unwrap_or(pick).0;
            known.push(TokenId(*token));
        }
        biased.push(triple);
    }
    assert!(excess(&biased, &exact) > 8.0, "the biased verifier passed: {}", excess(&biased, &exact));
}

/// The twin that must fail: a verifier that, after a rejection, draws again *without* the rejected
/// token (right for a ratio test on a one-hot draft, wrong for coupled drafts), here applied to the
/// recorded draws of the second token.
#[test]
fn a_biased_verifier_is_told_apart() {
    let exact = exact();
    let prompt: Vec<TokenId> = PROMPT.iter().copied().map(TokenId).collect();
    let mut biased = Vec::new();
    for seed in 0..DRAWS {
        let mut known = prompt.clone();
        let mut triple = [0u32; 3];
        for token in &mut triple {
            let position = known.len() as u32;
            let logits = toy_logits(MODEL_SEED, &known, VOCAB);
            // A drafter that is right half of the time, with the target's noise.
            let draft =
                if seed % 2 == 0 { logits.clone() } else { toy_logits(MODEL_SEED ^ 1, &known, VOCAB) };
            let draft = sampling::pick(&draft, &sampled(seed, TEMPERATURE), position).unwrap();
            let pick = sampling::pick(&logits, &sampled(seed, TEMPERATURE), position).unwrap();
            *token = if pick == draft {
                pick.0
            } else {
                let mut masked = logits;
                masked[draft.0 as usize] = f32::NEG_INFINITY;
                sampling::pick(&masked, &sampled(seed ^ 0xABCD, TEMPERATURE), position).unwrap().0
            };
            known.push(TokenId(*token));
        }
        biased.push(triple);
    }
    assert!(excess(&biased, &exact) > 8.0, "the biased verifier passed: {}", excess(&biased, &exact));
}
