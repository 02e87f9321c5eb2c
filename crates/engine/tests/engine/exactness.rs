//! Drafts are hints: whatever a drafter and the link to it do, the text is the target's own.

use crate::link::{
    Dice, Faults, MODEL_SEED, STRATEGIES, Setup, VOCAB, Watched, drafter, drive, request, run, run_counting,
    sampled,
};
use engine::{Engine, Settings, ToyModel};
use request::{Del, Request, Sampling, Source, Speculation, Strategy, TokenId, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn random_request(dice: &mut Dice, strategy: Strategy) -> Request {
    let prompt: Vec<u32> =
        (0..1 + dice.below(40)).map(|_| 1 + dice.below(u64::from(VOCAB) - 1) as u32).collect();
    let sampling = if dice.chance(30) { Sampling::GREEDY } else { sampled(dice.below(1 << 40), 0.8) };
    let max_tokens = 1 + dice.below(60) as u32;
    request(&prompt, max_tokens, sampling, Speculation { strategy, ..Speculation::default() })
}

#[test]
fn text_does_not_depend_on_drafts_or_the_link() {
    let mut dice = Dice(2026);
    let (mut accepted, mut killed_after_accepted) = (0, 0);
    let mut rejected_at = [0u64; 4];
    let mut dropped = 0;
    for case in 0..500 {
        let strategy = match case % 3 {
            0 => Strategy::Lockstep { k: 1 + dice.below(5) as u32, deadline: Duration::from_millis(4) },
            _ => Strategy::Draft,
        };
        let requests: Vec<_> = (0..1 + dice.below(6)).map(|_| random_request(&mut dice, strategy)).collect();
        let mut quiet = Dice(0);
        // Each alone, no drafter, one large chunk: the reference.
        let plain: Vec<_> = requests
            .iter()
            .map(|r| run(std::slice::from_ref(r), 512, None, Faults::default(), &mut quiet, None).remove(0))
            .collect();
        let faults = if case % 5 == 0 {
            Faults::default()
        } else {
            let mut percent = |most| dice.below(most);
            Faults {
                lose: percent(40),
                delay: percent(60),
                double: percent(40),
                reorder: percent(60),
                lie: percent(50),
                pause: percent(60),
            }
        };
        let noise = [0.0, 0.2, 0.6][dice.below(3) as usize];
        let kill = dice.chance(20).then(|| 1 + dice.below(10));
        let budget = [7, 64, 512][dice.below(3) as usize];
        let drafted = run(&requests, budget, Some(drafter(noise)), faults, &mut dice, kill);
        for ((plain, drafted), request) in plain.iter().zip(&drafted).zip(&requests) {
            assert_eq!(plain.output, drafted.output, "case {case}: {request:?} under {faults:?}");
            assert_eq!(plain.finish, drafted.finish, "case {case}");
            assert_eq!(plain.stats.accepted_tokens, 0);
            accepted += drafted.stats.accepted_tokens;
            dropped += drafted.stats.dropped_tokens;
            for (depth, steps) in drafted.rejected_at.iter().enumerate() {
                rejected_at[depth.min(3)] += steps;
            }
            assert!(drafted.drafted as u64 <= drafted.stats.accepted_tokens);
        }
        let total: u64 = drafted.iter().map(|a| a.stats.accepted_tokens).sum();
        killed_after_accepted += u64::from(kill.is_some_and(|n| total >= n));
    }
    // The run exercised its subject.
    assert!(accepted > 3_000, "accepted {accepted}");
    assert!(dropped > 1_000, "dropped {dropped}");
    assert!(killed_after_accepted > 30, "drafters killed after an accepted draft: {killed_after_accepted}");
    assert!(
        rejected_at.iter().all(|n| *n > 10),
        "steps by the depth of the first rejected draft: {rejected_at:?}"
    );
}

/// Drafted for in one way, then in another, at random and mid-stream, over a bad link; the drafter's model, what
/// was said before and the text's own repetitions all get their turn.
#[test]
fn text_does_not_depend_on_the_strategy_nor_on_when_it_changes() {
    let mut dice = Dice(99);
    let mut sources = [(0, 0); Source::ALL.len()];
    let later = Arc::default();
    for case in 0..300 {
        let mut requests: Vec<_> = (0..1 + dice.below(5))
            .map(|_| random_request(&mut dice, STRATEGIES[case % STRATEGIES.len()]))
            .collect();
        for request in &mut requests {
            // Half of them with a law that repeats itself, as texts do: two tokens are left, one is likelier.
            if dice.chance(50) {
                let rare = (3..VOCAB).map(|id| (TokenId(id), -100.0));
                request.adjust.logit_bias = rare.chain([(TokenId(0), -100.0), (TokenId(1), 1.0)]).collect();
            }
            // Half of them again what another asks: what was said before is said again.
            if dice.chance(30) {
                request.prompt = vec![TokenId(1), TokenId(2), TokenId(3)];
                request.sampling = Sampling::GREEDY;
            }
        }
        let plain: Vec<_> = requests
            .iter()
            .map(|r| {
                let speculation = Speculation { strategy: Strategy::None, ..r.speculation };
                let plain = Request { speculation, ..r.clone() };
                run(&[plain], 512, None, Faults::default(), &mut Dice(0), None).remove(0)
            })
            .collect();
        let faults = if case % 3 == 0 {
            Faults::default()
        } else {
            Faults { lose: 15, delay: 30, double: 10, reorder: 20, lie: 15, pause: 20 }
        };
        let kill_after = dice.chance(20).then(|| 1 + dice.below(10));
        let drafter = dice.chance(80).then(|| drafter(0.2));
        let setup =
            Setup { drafter, faults, kill_after, switch: 30, ..Setup::watched([7, 64][case % 2], &later) };
        for (plain, drafted) in plain.iter().zip(&drive(&requests, setup, &mut dice).answers) {
            assert_eq!((&plain.output, plain.finish), (&drafted.output, drafted.finish), "case {case}");
            for (sum, did) in sources.iter_mut().zip(drafted.stats.sources) {
                *sum = (sum.0 + did.accepted_tokens, sum.1 + did.draft_tokens - did.accepted_tokens);
            }
        }
    }
    let later = later.load(Ordering::Relaxed);
    assert!(later > 50, "drafts that stood and were not the first of their siblings: {later}");
    // The run exercised its subject: drafts of every source stood, and others did not. No prediction is sent.
    for (source, (accepted, rejected)) in Source::ALL.into_iter().zip(sources) {
        let enough = accepted > 50 && rejected > 50;
        assert!(
            enough || source == Source::Prediction,
            "{source:?}: {accepted} accepted, {rejected} rejected"
        );
    }
}

#[test]
fn a_replay_continues_where_the_first_attempt_stopped() {
    let mut dice = Dice(7);
    for case in 0..60 {
        let whole = random_request(&mut dice, Strategy::Draft);
        let full =
            run(std::slice::from_ref(&whole), 64, None, Faults::default(), &mut Dice(0), None).remove(0);
        for cut in 0..full.output.len() {
            let replay = Request { committed: full.output[..cut].to_vec(), attempt: 1, ..whole.clone() };
            let mut rest = run(&[replay], 64, Some(drafter(0.2)), Faults::default(), &mut dice, None);
            let rest = rest.remove(0);
            assert_eq!(rest.output, full.output[cut..], "case {case} cut at {cut}");
            assert_eq!(rest.finish, full.finish);
        }
    }
}

#[test]
fn lockstep_waits_for_its_drafts_and_commits_them_together() {
    let prompt: Vec<u32> = (1..20).collect();
    let strategy = Strategy::Lockstep { k: 4, deadline: Duration::from_secs(5) };
    let request = request(&prompt, 61, Sampling::GREEDY, Speculation { strategy, ..Speculation::default() });
    let request =
        Request { limits: request::Limits { stop_ids: vec![], ..request.limits.clone() }, ..request };
    let answer = run(&[request], 64, Some(drafter(0.0)), Faults::default(), &mut Dice(0), None).remove(0);
    assert_eq!(answer.output.len(), 61);
    // One token from the prompt's step, then 12 steps of 4 drafts and the target's own.
    assert_eq!(answer.stats.histogram, [0, 0, 0, 0, 12]);
    assert_eq!(answer.stats.mean_acceptance_length(), Some(5.0));
}

/// A drafter that falls silent costs one deadline, not one a token.
#[test]
fn lockstep_waits_once_for_a_silent_drafter() {
    let strategy = Strategy::Lockstep { k: 4, deadline: Duration::from_millis(50) };
    let mut request =
        request(&[1, 2, 3], 40, Sampling::GREEDY, Speculation { strategy, ..Speculation::default() });
    request.limits.stop_ids.clear();
    let silent = Faults { pause: 100, ..Faults::default() };
    let before = run(std::slice::from_ref(&request), 64, None, Faults::default(), &mut Dice(0), None);
    let (answer, steps) = run_counting(&[request], 64, Some(drafter(0.0)), silent, &mut Dice(0));
    assert_eq!(answer[0].output, before[0].output);
    assert!((50..2 * 50 + 40).contains(&steps), "{steps} ms of virtual time");
}

/// A back end without trees is asked for none, and the text is the same.
#[test]
fn a_model_without_trees_verifies_chains() {
    let mut texts = Vec::new();
    for trees in [true, false] {
        let toy = ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED);
        let later = Arc::default();
        let toy = Watched::new(if trees { toy } else { toy.without_trees() }, &later);
        let setup = Setup { target: Engine::new(toy, Settings::default()), ..Setup::watched(64, &later) };
        let requests: Vec<_> = (0..8)
            .map(|seed| {
                let speculation = Speculation { strategy: Strategy::Recycle, ..Speculation::default() };
                let mut request = request(&[1, 2, 3], 60, sampled(seed, 0.8), speculation);
                let rare = (4..VOCAB).chain([0]).map(|id| (TokenId(id), -100.0));
                request.adjust.logit_bias = rare.collect();
                request
            })
            .collect();
        let answers = drive(&requests, setup, &mut Dice(1)).answers;
        let accepted: u64 = answers.iter().map(|a| a.stats.accepted_tokens).sum();
        assert!(accepted > 50 && answers.iter().all(|a| a.output.len() == 60), "{accepted}");
        assert_eq!(later.load(Ordering::Relaxed) > 10, trees);
        texts.push(answers.into_iter().map(|a| a.output).collect::<Vec<_>>());
    }
    assert_eq!(texts[0], texts[1]);
}

/// The dynamic exit finds the layers that pay: toys' later layers are right more often.
#[test]
fn a_model_drafts_for_itself_after_the_layers_that_pay() {
    let plain = |seed| {
        let mut request = request(&[1, 2, 3], 80, sampled(seed, 0.8), Speculation::default());
        request.limits.stop_ids.clear();
        request
    };
    let run = |strategy| {
        let requests: Vec<_> = (0..8)
            .map(|seed| {
                let mut request = plain(seed);
                request.speculation.strategy = strategy;
                request
            })
            .collect();
        let answers = drive(&requests, Setup::plain(64), &mut Dice(1)).answers;
        let sum =
            |of: fn(&request::SpeculationStats) -> u64| answers.iter().map(|a| of(&a.stats)).sum::<u64>();
        let (drafted, accepted) = (sum(|s| s.draft_tokens), sum(|s| s.accepted_tokens));
        (answers.into_iter().map(|a| a.output).collect::<Vec<_>>(), drafted, accepted)
    };
    let (reference, none, _) = run(Strategy::None);
    assert_eq!(none, 0);
    let mut rates = Vec::new();
    for fixed in [Some((1, 2)), Some((3, 2)), None] {
        let (texts, drafted, accepted) = run(Strategy::Del(Del { fixed }));
        assert_eq!(texts, reference, "{fixed:?}");
        rates.push(accepted as f64 / drafted as f64);
    }
    assert!(rates[1] > rates[0] + 0.2 && rates[2] > rates[0] + 0.1, "{rates:?}");
}

/// Over a window a toy is wrong now and then; over a window of everything it never is.
#[test]
fn a_model_drafts_for_itself_over_a_window() {
    let run = |strategy| {
        let requests: Vec<_> = (0..4)
            .map(|seed| {
                let speculation = Speculation { strategy, ..Speculation::default() };
                let mut request = request(&[1, 2, 3], 80, sampled(seed, 0.8), speculation);
                request.limits.stop_ids.clear();
                request
            })
            .collect();
        let answers = drive(&requests, Setup::plain(64), &mut Dice(1)).answers;
        let sum = |of: fn(&request::SourceStats) -> u64| {
            answers.iter().map(|a| of(&a.stats.of(Source::Window))).sum::<u64>()
        };
        let (drafted, accepted) = (sum(|s| s.draft_tokens), sum(|s| s.accepted_tokens));
        (answers.into_iter().map(|a| a.output).collect::<Vec<_>>(), drafted, accepted)
    };
    let (reference, none, _) = run(Strategy::None);
    assert_eq!(none, 0);
    for (recent, k) in [(8, Some(3)), (8, None), (200, Some(4))] {
        let (texts, drafted, accepted) = run(Strategy::Window(Window { sink: 2, recent, k }));
        assert_eq!(texts, reference, "{recent} {k:?}");
        assert!(accepted > 100, "{recent} {k:?}: {accepted}");
        assert_eq!(accepted < drafted, recent == 8, "{recent} {k:?}: {accepted} of {drafted}");
    }
}

#[test]
fn plain_decoding_is_what_strategy_none_does() {
    let request = request(
        &[1, 2, 3],
        30,
        Sampling::GREEDY,
        Speculation { strategy: Strategy::None, ..Speculation::default() },
    );
    let answer = run(&[request], 64, Some(drafter(0.0)), Faults::default(), &mut Dice(0), None).remove(0);
    assert_eq!(answer.stats.drafts, 0);
}
