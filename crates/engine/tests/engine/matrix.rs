//! Everything that may change how an answer is computed, at once, and none of it changes the answer:
//! prefix cache, preemption, priorities, predictions, drafters and their rules, chunks, bad links; with
//! penalties, bias, constraints, minimal lengths and log-probabilities on.

use std::time::Duration;

use crate::link::{Answer, Dice, Faults, MODEL_SEED, Setup, VOCAB, drafter, drive, request, sampled};
use engine::{Constraint, Engine, Settings, ToyModel};
use request::{Adjustments, Penalties, Request, Rule, Sampling, Speculation, Strategy, TokenId};
use sampling::Mask;

/// Tokens are even and odd in turn, and after `most` of them only the stop token 0 is left.
#[derive(Debug, Default)]
struct EvenOdd {
    taken: Vec<TokenId>,
    most: usize,
}

impl EvenOdd {
    fn fits(&self, at: usize, token: TokenId) -> bool {
        at < self.most && token.0 != 0 && token.0 as usize % 2 == at % 2
    }
}

impl Constraint for EvenOdd {
    fn commit(&mut self, ids: &[TokenId]) -> Result<(), TokenId> {
        let wrong = ids.iter().enumerate().find(|(i, id)| !self.fits(self.taken.len() + i, **id));
        match wrong {
            Some((_, id)) => Err(*id),
            None => {
                self.taken.extend(ids);
                Ok(())
            }
        }
    }

    fn rollback(&mut self, tokens: usize) {
        self.taken.truncate(self.taken.len().checked_sub(tokens).expect("only what was committed"));
    }

    fn allowed(&mut self, drafts: &[TokenId]) -> usize {
        drafts.iter().enumerate().take_while(|(i, id)| self.fits(self.taken.len() + i, **id)).count()
    }

    fn masks(&mut self, drafts: &[TokenId]) -> Result<Vec<Mask>, String> {
        assert_eq!(self.allowed(drafts), drafts.len(), "forbidden drafts are cut before");
        let mask = |at: usize| {
            let mut mask = Mask::none(VOCAB as usize);
            (0..VOCAB).map(TokenId).filter(|id| self.fits(at, *id)).for_each(|id| mask.allow(id));
            if at >= self.most {
                mask.allow(TokenId(0));
            }
            mask
        };
        Ok((0..=drafts.len()).map(|i| mask(self.taken.len() + i)).collect())
    }
}

fn even_odd() -> Option<Box<dyn Fn() -> Box<dyn Constraint>>> {
    Some(Box::new(|| Box::new(EvenOdd { taken: Vec::new(), most: 40 })))
}

fn some_request(dice: &mut Dice, constrained: bool) -> Request {
    // A few common beginnings, so that prefixes meet in the cache.
    let beginning = dice.below(3) as u32;
    let common = (0..dice.below(60) as u32).map(|i| 1 + (i * 7 + beginning) % (VOCAB - 1));
    let own: Vec<u32> = (0..1 + dice.below(8)).map(|_| 1 + dice.below(u64::from(VOCAB) - 1) as u32).collect();
    let prompt: Vec<u32> = common.chain(own).collect();
    let sampling = if dice.chance(30) { Sampling::GREEDY } else { sampled(dice.below(1 << 40), 0.8) };
    let strategy = match dice.below(3) {
        0 => Strategy::Lockstep { k: 1 + dice.below(5) as u32, deadline: Duration::from_millis(4) },
        _ => Strategy::Draft,
    };
    let rule = if dice.chance(30) { Rule::Strict } else { Rule::Coupled };
    let max_tokens = 1 + dice.below(50) as u32;
    let mut request = request(&prompt, max_tokens, sampling, Speculation { strategy, rule, max_draft: None });
    if dice.chance(60) {
        request.adjust = Adjustments {
            logit_bias: vec![(TokenId(3), 1.5), (TokenId(4), -100.0)],
            penalties: Penalties { repetition: 1.3, presence: 0.4, frequency: 0.2 },
        };
    }
    if dice.chance(40) {
        request.limits.min_tokens = dice.below(u64::from(max_tokens) + 1) as u32;
    }
    if dice.chance(30) {
        request.logprobs = Some(2);
    }
    if constrained {
        request.constraint = Some(request::Constraint::JsonObject);
    }
    request.priority = dice.below(3) as i32;
    request
}

fn target(pages: u32, prefix_cache: bool, budget: u32) -> Engine<ToyModel> {
    let settings = Settings { token_budget: budget, prefix_cache, ..Settings::default() };
    Engine::new(ToyModel::new(ToyModel::spec(VOCAB, 256, 4, pages), MODEL_SEED), settings)
}

#[test]
fn nothing_but_the_request_decides_the_text() {
    let mut dice = Dice(33);
    let (mut preempted, mut hits, mut accepted, mut guessed, mut missed, mut stopped) = (0, 0, 0, 0, 0, 0);
    for case in 0..300 {
        let constrained = case % 3 == 0;
        let constraint = || if constrained { even_odd() } else { None };
        let mut requests: Vec<Request> =
            (0..2 + dice.below(6)).map(|_| some_request(&mut dice, constrained)).collect();
        // Each alone: no drafter, no cache, room for everything.
        let alone: Vec<Answer> = requests
            .iter()
            .map(|r| {
                let setup = Setup { constraint: constraint(), ..Setup::plain(512) };
                let setup = Setup { target: target(200, false, 512), ..setup };
                drive(std::slice::from_ref(r), setup, &mut Dice(0)).answers.remove(0)
            })
            .collect();
        for (request, alone) in requests.iter_mut().zip(&alone) {
            if dice.chance(50) {
                // A guess that is right, but for some tokens left out or changed.
                request.prediction = alone.output.clone();
                if dice.chance(70) && request.prediction.len() > 2 {
                    let at = dice.below(request.prediction.len() as u64 - 1) as usize;
                    request.prediction[at] = TokenId(7);
                    request.prediction.remove(at + 1);
                }
            }
        }
        let percent = |most: u64, dice: &mut Dice| dice.below(most);
        let faults = Faults {
            lose: percent(30, &mut dice),
            delay: percent(40, &mut dice),
            lie: percent(40, &mut dice),
            ..Faults::default()
        };
        let noise = [0.0, 0.3][dice.below(2) as usize];
        let ran = drive(
            &requests,
            Setup {
                // The longest needs 8 pages; two of them do not fit into the smallest.
                target: target([9, 14, 200][case % 3], case % 4 != 0, [7, 64][case % 2]),
                drafter: dice.chance(70).then(|| drafter(noise)),
                faults,
                kill_after: dice.chance(20).then_some(4),
                switch: [0, 20][case / 2 % 2],
                constraint: constraint(),
            },
            &mut dice,
        );
        (preempted, hits) = (preempted + ran.preempted, hits + ran.prefix_hits);
        for ((alone, together), request) in alone.iter().zip(&ran.answers).zip(&requests) {
            assert_eq!(alone.output, together.output, "case {case}: {request:?}");
            assert_eq!(alone.finish, together.finish, "case {case}: {request:?}");
            assert_eq!(alone.logprobs, together.logprobs, "case {case}: {request:?}");
            let reported = if request.logprobs.is_some() { together.output.len() } else { 0 };
            assert_eq!(together.logprobs.len(), reported);
            let short = (together.output.len() as u32) < request.limits.min_tokens;
            assert!(!short || constrained, "stopped too early: {together:?}");
            if constrained {
                let mut check = EvenOdd { taken: Vec::new(), most: 40 };
                let text: Vec<TokenId> = together.output.iter().copied().filter(|id| id.0 != 0).collect();
                assert_eq!(check.commit(&text), Ok(()), "{:?}", together.output);
            }
            accepted += together.stats.accepted_tokens;
            guessed += together.usage.accepted_prediction_tokens;
            missed += together.usage.rejected_prediction_tokens;
            stopped += u32::from(together.finish == Some(request::Finish::Stop));
        }
    }
    // The run exercised its subject.
    assert!(preempted > 50, "preempted {preempted}");
    assert!(hits > 2_000, "prefix hits {hits}");
    assert!(accepted > 2_000, "accepted {accepted}");
    assert!(guessed > 1_000 && missed > 50, "predicted {guessed} right, {missed} wrong");
    assert!(stopped > 20, "stopped {stopped}");
}

/// Another salt is another tenant: nothing is shared, and the text is the same.
#[test]
fn prefixes_are_shared_within_a_salt_only() {
    let prompt: Vec<u32> = (0..70).map(|i| 1 + i % (VOCAB - 1)).collect();
    let ask = |salt: &str| {
        let mut request = request(&prompt, 4, Sampling::GREEDY, Speculation::default());
        request.cache_salt = salt.into();
        request
    };
    // One after the other on one engine: 64 of the 70 positions are in whole pages.
    for (salts, cached) in [(["a", "a"], 64), (["a", "b"], 0), (["", "a"], 0), (["", ""], 64)] {
        let mut target = target(200, true, 512);
        let mut texts = Vec::new();
        for (i, salt) in salts.into_iter().enumerate() {
            let (outlet, admitted) = crate::lanes::open(&mut target, i as u64, ask(salt));
            admitted.unwrap();
            while !target.is_empty() {
                target.step(Duration::ZERO);
            }
            texts.push(crate::lanes::answer(&outlet));
        }
        assert_eq!(texts[0].0, texts[1].0);
        assert_eq!((texts[0].1.cached_tokens, texts[1].1.cached_tokens), (0, cached), "{salts:?}");
    }
}

/// A replay may bring any cut of an answer as `committed`: penalties, constraint, minimal length and
/// log-probabilities go on as if nothing had happened.
#[test]
fn replays_continue_at_every_cut() {
    let mut dice = Dice(5);
    for case in 0..30 {
        let constrained = case % 2 == 0;
        let constraint = || if constrained { even_odd() } else { None };
        let whole = some_request(&mut dice, constrained);
        let plain = Setup { constraint: constraint(), ..Setup::plain(64) };
        let full = drive(std::slice::from_ref(&whole), plain, &mut Dice(0)).answers.remove(0);
        for cut in 0..full.output.len() {
            let replay = Request { committed: full.output[..cut].to_vec(), attempt: 1, ..whole.clone() };
            let setup = Setup { drafter: Some(drafter(0.2)), constraint: constraint(), ..Setup::plain(64) };
            let rest = drive(&[replay], setup, &mut dice).answers.remove(0);
            assert_eq!(rest.output, full.output[cut..], "case {case} cut at {cut}");
            assert_eq!(rest.finish, full.finish, "case {case} cut at {cut}");
            assert_eq!(rest.logprobs, full.logprobs[full.logprobs.len().min(cut)..], "case {case}");
        }
    }
}

/// A request that stops at no token of the model is ended by its constraint; sent again with all of its
/// answer, there is nothing to add, and with any part of it, the rest.
#[test]
fn an_answer_that_its_constraint_ended_is_complete_in_a_replay() {
    let mut whole = request(&[1, 2, 3], 60, sampled(3, 0.8), Speculation::default());
    whole.constraint = Some(request::Constraint::JsonObject);
    whole.limits.stop_ids.clear();
    let ask = |request: Request| {
        let setup = Setup { constraint: even_odd(), ..Setup::plain(64) };
        drive(&[request], setup, &mut Dice(0)).answers.remove(0)
    };
    let full = ask(whole.clone());
    assert_eq!((full.output.len(), full.output[40]), (41, TokenId(0)), "forty, and the end");
    assert_eq!(full.finish, Some(request::Finish::Stop));
    for cut in [0, 1, 39, 40, 41] {
        let rest = ask(Request { committed: full.output[..cut].to_vec(), attempt: 1, ..whole.clone() });
        assert_eq!((rest.output.as_slice(), rest.finish), (&full.output[cut..], full.finish), "cut at {cut}");
    }
}
