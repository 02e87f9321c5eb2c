//! Constraints that fail, and drafts that a constraint cuts.

use std::time::Duration;

use crate::lanes::text;
use crate::link::{Kept, MODEL_SEED, VOCAB, request, sampled, target};
use engine::{Command, Constraint, Engine, TargetEvent, TargetOpen, ToyModel, toy_logits};
use request::{Finish, Request, Rule, Sampling, SamplingParams, Speculation, TokenId};
use sampling::{Draw, How, Mask, draw, probabilities};
use scheduler::SequenceId;
use speculation::{Drafts, PrefixHashes};

fn open(
    engine: &mut Engine<ToyModel>,
    id: u64,
    request: Request,
    constraint: Box<dyn Constraint>,
) -> Kept<TargetEvent> {
    let outlet = Kept::new();
    let open = TargetOpen {
        sequence: SequenceId(id),
        request,
        constraint: Some(constraint),
        deadline: None,
        outlet: Box::new(outlet.share()),
        admitted: Box::new(|admitted| admitted.unwrap()),
    };
    engine.command(Duration::ZERO, Command::Target(Box::new(open)));
    outlet
}

/// Takes everything until it has `most` tokens; then it fails for good: in a mask, or while it takes one.
#[derive(Debug)]
struct Failing {
    taken: usize,
    most: usize,
    in_masks: bool,
    broken: bool,
}

impl Constraint for Failing {
    fn commit(&mut self, ids: &[TokenId]) -> Result<(), TokenId> {
        if self.taken >= self.most {
            self.broken = true;
            return Err(ids[0]);
        }
        self.taken += ids.len();
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) {
        self.taken -= tokens;
    }

    fn allowed(&mut self, drafts: &[TokenId]) -> usize {
        drafts.len()
    }

    fn masks(&mut self, drafts: &[TokenId]) -> Result<Vec<Mask>, String> {
        if self.broken || (self.taken >= self.most && self.in_masks) {
            return Err("too complex".into());
        }
        Ok(vec![Mask::from_words(vec![u32::MAX]); drafts.len() + 1])
    }
}

/// What was drawn under it stands; nothing that was held to nothing is added, and the end is a failure, not
/// a stop.
#[test]
fn a_constraint_that_gives_up_ends_the_answer_and_nothing_else() {
    // In a mask: before the fourth token is drawn. While it takes the fourth: that one was allowed.
    for (in_masks, tokens) in [(true, 3), (false, 4)] {
        let mut engine = target(64);
        let mut asked = request(&[1, 2], 20, Sampling::GREEDY, Speculation::default());
        asked.limits.stop_ids.clear();
        let failing = Failing { taken: 0, most: 3, in_masks, broken: false };
        let failing = open(&mut engine, 1, asked.clone(), Box::new(failing));
        let (other, _) = crate::lanes::open(&mut engine, 2, asked);
        while !engine.is_empty() {
            engine.step(Duration::ZERO);
        }
        let ((ids, end), (all, _)) = (text(&failing), text(&other));
        assert_eq!((ids.as_slice(), end), (&all[..tokens], Some(Finish::Failed)), "in masks: {in_masks}");
        assert_eq!(all.len(), 20, "the other one goes on");
    }
}

/// Token 5, then any of the first six.
#[derive(Debug, Default)]
struct Six {
    taken: usize,
}

impl Constraint for Six {
    fn commit(&mut self, ids: &[TokenId]) -> Result<(), TokenId> {
        self.taken += ids.len();
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) {
        self.taken -= tokens;
    }

    fn allowed(&mut self, drafts: &[TokenId]) -> usize {
        drafts.iter().take_while(|id| id.0 < 6).count()
    }

    fn masks(&mut self, drafts: &[TokenId]) -> Result<Vec<Mask>, String> {
        let allowed = if self.taken == 0 { 0b10_0000 } else { 0b11_1111 };
        Ok(vec![Mask::from_words(vec![allowed]); drafts.len() + 1])
    }
}

/// A stop token under a constraint is cut from the drafts. What is drawn in its place follows the law all the
/// same: that a draft was cut depends on the noise that it was drawn with.
#[test]
fn drafts_that_are_cut_leave_the_law_of_the_rejection_rule() {
    let (draws, seen) = (40_000, &mut [0u32; 6]);
    let speculation = Speculation { rule: Rule::Rejection, ..Speculation::default() };
    let mut engine = target(64);
    for seed in 0..draws {
        let mut asked = request(&[1, 2], 4, sampled(seed, 1.0), speculation);
        asked.limits.stop_ids = vec![TokenId(0), TokenId(3)];
        let outlet = open(&mut engine, seed, asked.clone(), Box::new(Six::default()));
        engine.step(Duration::ZERO);
        let known = engine.scheduler().tokens(SequenceId(seed)).unwrap();
        assert_eq!(known, [1, 2, 5].map(TokenId));
        // A drafter that finds all six equally likely.
        let draft = Draw { how: How::Top, ..Draw::new(asked.sampling) };
        let drawn = draw(&[0.0; 6], &draft, 3).unwrap();
        let drafts = Drafts {
            at: 3,
            prefix_hash: PrefixHashes::new(known).last(),
            ids: vec![drawn.token],
            q: drawn.q.into_iter().map(|q| *q).collect(),
        };
        engine.command(Duration::ZERO, Command::Drafts(SequenceId(seed), drafts));
        engine.step(Duration::ZERO);
        seen[text(&outlet).0[1].0 as usize] += 1;
        engine.command(Duration::ZERO, Command::Cancel(SequenceId(seed)));
    }
    let logits = toy_logits(MODEL_SEED, &[1, 2, 5].map(TokenId), VOCAB);
    let law = probabilities(&logits[..6], &SamplingParams::at(1.0));
    let term = |(seen, p): (&u32, &f64)| {
        let expected = p * draws as f64;
        (f64::from(*seen) - expected).powi(2) / expected
    };
    let chi: f64 = seen.iter().zip(&law).map(term).sum();
    // Five degrees of freedom: mean plus four standard deviations.
    assert!(chi < 5.0 + 4.0 * 10f64.sqrt(), "chi-square {chi}: {seen:?}");
}
