//! RAPID: a drafter that reads half of the prompt, at places of its own, and a target that is pulled towards it.

use std::time::Duration;

use crate::link::{Dice, Faults, MODEL_SEED, Setup, VOCAB, drafter, drive, request, sampled};
use engine::toy_logits;
use request::{
    Quality, Rapid, Request, Retrieval, Rule, Sampling, SamplingParams, Speculation, Strategy, TokenId,
};
use sampling::probabilities;

const PROMPT: [u32; 4] = [5, 3, 1, 2];

/// `half`: the drafter reads the prompt's second half only.
fn rapid(eta: f32, half: bool) -> Strategy {
    rapid_within(5_000, eta, half)
}

fn rapid_within(ms: u64, eta: f32, half: bool) -> Strategy {
    let retrieval = Retrieval { head: u32::from(!half), ..Retrieval::default() };
    Strategy::Rapid(Rapid { k: 3, deadline: Duration::from_millis(ms), eta, retrieval, ..Rapid::default() })
}

fn ask(prompt: &[u32], tokens: u32, sampling: Sampling, strategy: Strategy, rule: Rule) -> Request {
    let mut request = request(prompt, tokens, sampling, Speculation { strategy, rule, max_draft: None });
    request.quality = if strategy.rapid().is_some() { Quality::Approximate } else { Quality::Exact };
    request.limits.stop_ids.clear();
    request
}

fn setup(noise: f64) -> Setup {
    Setup { drafter: Some(drafter(noise)), ..Setup::plain(64) }
}

/// Without a pull the text is ordinary speculation's, token for token, under every rule; the drafter that read half of
/// the prompt changes nothing but how often it is right.
#[test]
fn without_a_pull_it_is_ordinary_speculation() {
    let lockstep = Strategy::Lockstep { k: 3, deadline: Duration::from_secs(5) };
    for rule in [Rule::Coupled, Rule::Strict, Rule::Rejection] {
        for half in [false, true] {
            let mut accepted = 0;
            for seed in 0..40u64 {
                let sampling = if seed % 4 == 0 { Sampling::GREEDY } else { sampled(seed, 0.7) };
                let prompt: Vec<u32> =
                    (0..2 + seed as u32 % 9).map(|i| 1 + (i * 5 + seed as u32) % 20).collect();
                let text = |strategy| {
                    let request = ask(&prompt, 30, sampling, strategy, rule);
                    drive(&[request], setup(0.2), &mut Dice(1)).answers.remove(0)
                };
                let (pulled, ordinary) = (text(rapid(0.0, half)), text(lockstep));
                // Under rejection which text of the law it is depends on what the drafter says.
                if !half || rule != Rule::Rejection {
                    assert_eq!(pulled.output, ordinary.output, "{rule:?}, seed {seed}, half {half}");
                }
                assert_eq!(pulled.stats.augmented_tokens, 0);
                accepted += pulled.stats.accepted_tokens;
            }
            assert!(accepted > if half { 30 } else { 300 }, "{rule:?}, half {half}: {accepted}");
        }
    }
}

/// The drafter's places and noise are the target's: with the same model and the whole prompt every draft stands,
/// whatever the pull, and the text is the plain one.
#[test]
fn a_drafter_that_agrees_changes_nothing() {
    for (sampling, eta) in [(Sampling::GREEDY, 20.0), (sampled(7, 0.8), 20.0), (sampled(8, 0.8), 3.0)] {
        let run = |strategy| {
            let request = ask(&PROMPT, 31, sampling, strategy, Rule::Coupled);
            drive(&[request], setup(0.0), &mut Dice(1)).answers.remove(0)
        };
        let (pulled, plain) = (run(rapid(eta, false)), run(Strategy::None));
        assert_eq!(pulled.output, plain.output);
        assert_eq!(pulled.stats.accepted_tokens, pulled.stats.draft_tokens);
        assert!(pulled.stats.augmented_tokens >= 20, "{:?}", pulled.stats);
    }
}

fn law(tokens: &[u32], temperature: f32) -> Vec<f64> {
    let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
    probabilities(&toy_logits(MODEL_SEED, &tokens, VOCAB), &SamplingParams::at(temperature))
}

/// The second token (the first is the target's own, the second has a draft): of the coupled form it follows the pulled
/// law, of the paper's the law of its rule, and the target's own law is told apart.
#[test]
fn what_is_drawn_follows_the_law_of_its_form() {
    const DRAWS: u64 = 12_000;
    const TEMPERATURE: f32 = 0.7;
    let (eta, plausible) = (8.0, 0.1);
    for rule in [Rule::Coupled, Rule::Rejection] {
        let requests: Vec<Request> = (0..DRAWS)
            .map(|seed| ask(&PROMPT, 3, sampled(seed, TEMPERATURE), rapid(eta as f32, true), rule))
            .collect();
        let (mut seen, mut augmented, mut accepted, mut drafted) =
            (vec![[0f64; VOCAB as usize]; VOCAB as usize], 0, 0, 0);
        for batch in requests.chunks(8) {
            for answer in drive(batch, setup(0.0), &mut Dice(1)).answers {
                seen[answer.output[0].0 as usize][answer.output[1].0 as usize] += 1.0;
                augmented += answer.stats.augmented_tokens;
                accepted += answer.stats.accepted_tokens;
                drafted += answer.stats.draft_tokens;
            }
        }
        assert!(
            augmented > DRAWS && accepted > DRAWS / 10 && drafted > accepted,
            "{augmented} {accepted} {drafted}"
        );
        let pull = sampling::Rapid { eta, plausible };
        let (mut chi, mut plain, mut cells) = (0.0, 0.0, 0.0);
        for (first, row) in seen.iter().enumerate() {
            let n: f64 = row.iter().sum();
            let p = law(&[&PROMPT[..], &[first as u32]].concat(), TEMPERATURE);
            let q = law(&[&PROMPT[2..], &[first as u32]].concat(), TEMPERATURE);
            let expected = if rule == Rule::Coupled { pull.augmented(&p, &q) } else { pull.output(&p, &q) };
            for ((seen, e), p) in row.iter().zip(&expected).zip(&p) {
                if e * n >= 10.0 {
                    chi += (seen - e * n).powi(2) / (e * n);
                    cells += 1.0;
                }
                if p * n >= 10.0 {
                    plain += (seen - p * n).powi(2) / (p * n);
                }
            }
        }
        assert!(cells > 60.0, "{cells}");
        let excess = (chi - cells) / (2.0f64 * cells).sqrt();
        assert!(excess < 4.0, "{rule:?}: {excess}");
        assert!(plain > 10.0 * chi, "{rule:?} looks plain: {plain} {chi}");
    }
}

/// A drafter that is slow, lossy or gone: the answer comes all the same, drawn from the target's own law where no q
/// arrived.
#[test]
fn a_missing_law_is_the_targets_own() {
    let faults = Faults { lose: 30, delay: 40, pause: 40, ..Faults::default() };
    let mut pulled = 0;
    for seed in 0..30u64 {
        let request = ask(&PROMPT, 40, sampled(seed, 0.8), rapid_within(4, 10.0, true), Rule::Coupled);
        let setup = Setup { faults, kill_after: (seed % 3 == 0).then_some(4), ..setup(0.2) };
        let answer = drive(&[request], setup, &mut Dice(seed)).answers.remove(0);
        assert_eq!(answer.output.len(), 40);
        assert!(answer.stats.augmented_tokens < 40, "some of it without a drafter");
        pulled += answer.stats.augmented_tokens;
    }
    assert!(pulled > 100, "{pulled}");
    let alone = Setup { drafter: None, ..setup(0.0) };
    let request = ask(&PROMPT, 40, sampled(3, 0.8), rapid_within(4, 10.0, true), Rule::Coupled);
    let plain = ask(&PROMPT, 40, sampled(3, 0.8), Strategy::None, Rule::Coupled);
    let plain = drive(&[plain], Setup::plain(64), &mut Dice(0)).answers.remove(0);
    assert_eq!(drive(&[request], alone, &mut Dice(0)).answers[0].output, plain.output);
}
