//! DEL (arXiv 2504.05598): after which layer to draft, how many, and when to stop.
//!
//! Pure figures of one sequence. They are worth something with weights that were trained for early exit (LayerSkip, arXiv
//! 2404.16710): of others the first layers are hardly ever right.

/// How right each exit layer was lately, and how sure.
#[derive(Clone, Debug, PartialEq)]
pub struct Exits {
    /// By layers passed, from 1 to one less than all.
    layers: Vec<Exit>,
    /// What a pass through the head costs, in layers.
    head: f64,
    /// What a draft costs besides its layers, in layers: a head of fewer tokens, and the time around it.
    draft: f64,
}

/// Of one exit layer, each round weighing less than the one after it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Exit {
    right: f64,
    wrong: f64,
    /// Sums of the confidence of right and of wrong tokens.
    sure_right: f64,
    sure_wrong: f64,
}

/// A shadow token: what a layer would have said, and with which probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said {
    pub right: bool,
    pub confidence: f64,
}

/// What to do in the next round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// Layers that a draft passes.
    pub exit: u32,
    /// Drafts to make; 0: plain decoding.
    pub drafts: u32,
    /// Stop after a draft that is less sure than this; `None` while nothing tells right from wrong.
    pub stop_below: Option<f64>,
    /// Do not verify a draft that is less sure than this: its row costs more than it promises. Not the paper's; where a
    /// draft stands only if it equals the target's own token, what is left out changes no law.
    pub drop_below: f64,
}

impl Exits {
    /// Weight of the past in each round.
    const MEMORY: f64 = 0.95;
    /// Wrong tokens that every exit is taken to have said before it said anything: of several exits that were heard a few
    /// times the best looks better than it is. Not the paper's.
    const DOUBT: f64 = 2.0;
    /// Plain decoding unless drafts promise so much more. Not the paper's.
    const GAIN: f64 = 1.03;
    /// Most drafts of a round.
    pub const MOST: u32 = 18;

    /// A model of `layers` layers, at least 2, whose head costs as much as `head` of them, and a draft `draft` besides its
    /// layers.
    pub fn new(layers: u32, head: f64, draft: f64) -> Self {
        Self { layers: vec![Exit::default(); layers.max(2) as usize - 1], head, draft }
    }

    fn all(&self) -> f64 {
        self.layers.len() as f64 + 1.0
    }

    /// A round is over: what every exit layer said at the places that were judged. A layer without words only
    /// grows older.
    pub fn record(&mut self, said: &[Vec<Said>]) {
        for (layer, exit) in self.layers.iter_mut().enumerate() {
            for sum in [&mut exit.right, &mut exit.wrong, &mut exit.sure_right, &mut exit.sure_wrong] {
                *sum *= Self::MEMORY;
            }
            for said in said.get(layer).into_iter().flatten() {
                let (count, sure) = if said.right {
                    (&mut exit.right, &mut exit.sure_right)
                } else {
                    (&mut exit.wrong, &mut exit.sure_wrong)
                };
                *count += 1.0;
                *sure += said.confidence;
            }
        }
    }

    /// What a round costs, in layers: every draft its layers and itself; the last one's own row those layers again, as
    /// only the others' states are kept; then all rows together the layers behind the exit and the head.
    /// `rows`: what that many rows take, by what one takes.
    fn cost(&self, exit: u32, drafts: u32, rows: &impl Fn(u32) -> f64) -> f64 {
        if drafts == 0 {
            return self.all() + self.head;
        }
        let (exit, count) = (f64::from(exit), f64::from(drafts));
        count * (exit + self.draft) + exit + (self.all() - exit + self.head) * rows(drafts + 1)
    }

    /// Tokens a layer for drafts after layer `exit`: what a round brings by what it costs.
    pub fn tokens_per_layer(&self, exit: u32, drafts: u32, rows: &impl Fn(u32) -> f64) -> f64 {
        let Some(Exit { right, wrong, .. }) = self.layers.get(exit.wrapping_sub(1) as usize) else {
            return 0.0;
        };
        let rate = right / (right + wrong + Self::DOUBT);
        let tokens: f64 = (0..=drafts).map(|k| rate.powi(k as i32)).sum();
        tokens / self.cost(exit, drafts, rows)
    }

    /// The exit layer and length with the most tokens a layer, and no drafts where that is hardly more than without; the
    /// first layer as long as nothing is known.
    pub fn plan(&self, rows: impl Fn(u32) -> f64) -> Round {
        let exits = (1u32..).zip(&self.layers).filter(|(_, e)| e.right + e.wrong > 0.0).map(|(exit, _)| exit);
        let rounds = exits.flat_map(|exit| (0..Self::MOST).map(move |drafts| (exit, drafts)));
        let better = |best: (f64, u32, u32), (exit, drafts): (u32, u32)| {
            let speed = self.tokens_per_layer(exit, drafts, &rows);
            if speed > best.0 { (speed, exit, drafts) } else { best }
        };
        let (speed, exit, mut drafts) = rounds.fold((0.0, 1, 1), better);
        if speed > 0.0 && speed < Self::GAIN / self.cost(exit, 0, &rows) {
            drafts = 0;
        }
        let known = (speed > 0.0).then(|| self.layers[exit as usize - 1]);
        // A right draft saves what a token costs. The last one's row has yet to pass the layers before the exit.
        let row = f64::from(exit) + (self.all() - f64::from(exit) + self.head) * (rows(2) - rows(1));
        Round {
            exit,
            drafts,
            stop_below: known.and_then(Exit::threshold),
            drop_below: (speed * row).min(1.0),
        }
    }
}

impl Exit {
    /// Midway between how sure it is when it is right and when it is wrong.
    fn threshold(self) -> Option<f64> {
        let both = self.right > 0.0 && self.wrong > 0.0;
        both.then(|| (self.sure_right / self.right + self.sure_wrong / self.wrong) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(right: bool, confidence: f64) -> Said {
        Said { right, confidence }
    }

    proptest! {
        /// The plan is the best of all exits and lengths.
        #[test]
        fn the_plan_equals_brute_force(
            rounds in prop::collection::vec(prop::collection::vec(prop::collection::vec((any::<bool>(), 0.0..1.0f64), 0..4), 11), 1..8),
            (head, draft, row) in (0.0..4.0f64, 0.0..4.0f64, 0.0..1.0f64),
        ) {
            let mut exits = Exits::new(12, head, draft);
            for round in &rounds {
                let words: Vec<Vec<Said>> =
                    round.iter().map(|l| l.iter().map(|(r, c)| said(*r, *c)).collect()).collect();
                exits.record(&words);
            }
            let rows = |n: u32| 1.0 + row * f64::from(n - 1);
            let plan = exits.plan(rows);
            // By the formula, written once more.
            let speed = |exit: usize, drafts: u32| {
                let judged = rounds.iter().rev().enumerate().flat_map(|(age, round)| {
                    round[exit - 1].iter().map(move |(right, _)| (0.95f64.powi(age as i32), *right))
                });
                let (mut right, mut all) = (0.0, 0.0);
                for (weight, is_right) in judged {
                    right += if is_right { weight } else { 0.0 };
                    all += weight;
                }
                if all == 0.0 {
                    return None;
                }
                let tokens: f64 = (0..=drafts).map(|k| (right / (all + 2.0)).powi(k as i32)).sum();
                let (d, e) = (f64::from(drafts), exit as f64);
                let drafting = d * (e + draft);
                let again = if drafts == 0 { 0.0 } else { e };
                let behind = if drafts == 0 { 12.0 } else { 12.0 - e };
                Some(tokens / (drafting + again + (behind + head) * (1.0 + row * d)))
            };
            let best = (1..12).flat_map(|e| (0..18).map(move |d| (e, d))).filter_map(|(e, d)| speed(e, d)).fold(0.0, f64::max);
            if best > 0.0 {
                let planned = speed(plan.exit as usize, plan.drafts).unwrap();
                let plain = 1.0 / (12.0 + head);
                let wanted = if best < 1.03 * plain { plain } else { best };
                prop_assert!((planned / wanted - 1.0).abs() < 1e-9, "{:?}: {} of {}", plan, planned, wanted);
            } else {
                prop_assert_eq!(plan, Round { exit: 1, drafts: 1, stop_below: None, drop_below: 0.0 });
            }
        }
    }

    /// More rows cost nothing.
    fn free(_: u32) -> f64 {
        1.0
    }

    #[test]
    fn layers_that_are_never_right_draft_nothing_and_those_that_always_are_draft_all() {
        let mut exits = Exits::new(4, 0.0, 0.0);
        exits.record(&[vec![said(false, 0.4)], vec![], vec![said(false, 0.2)]]);
        assert_eq!((exits.plan(free).drafts, exits.tokens_per_layer(1, 0, &free)), (0, 0.25));
        for _ in 0..400 {
            exits.record(&[vec![], vec![said(true, 0.9); 20]]);
        }
        let plan = exits.plan(free);
        assert_eq!((plan.exit, plan.drafts), (2, Exits::MOST - 1));
        // What a draft has to promise: what its own row costs of the layers before the exit, at this speed.
        let due = exits.tokens_per_layer(2, Exits::MOST - 1, &free) * 2.0;
        assert!((plan.drop_below - due).abs() < 1e-12 && due < 1.0, "{plan:?}");
        // The paper's: its drafts' layers, and all layers once; all of 400 were right, and two were doubted.
        let tokens: f64 = (0..4).map(|k| (400.0_f64 / 402.0).powi(k)).sum();
        assert!((exits.tokens_per_layer(2, 3, &free) - tokens / (4.0 + 3.0 * 2.0)).abs() < 1e-6);
        // A draft that costs what a step does gains nothing, nor do rows that do.
        exits.draft = 40.0;
        assert_eq!(exits.plan(free).drafts, 0);
        exits.draft = 0.0;
        assert_eq!(exits.plan(f64::from).drafts, 0);
    }

    #[test]
    fn old_rounds_count_less_and_the_threshold_lies_between() {
        let mut exits = Exits::new(3, 0.5, 0.5);
        for _ in 0..400 {
            exits.record(&[vec![said(true, 0.8)], vec![]]);
        }
        assert!((exits.layers[0].right - 20.0).abs() < 1e-6, "one a round comes to 1 / (1 - 0.95)");
        assert_eq!(exits.plan(free).stop_below, None, "nothing was ever wrong");
        exits.record(&[vec![said(true, 0.8), said(false, 0.4)], vec![]]);
        let threshold = exits.plan(free).stop_below.unwrap();
        assert!((threshold - 0.6).abs() < 1e-9, "{threshold}");
    }
}
