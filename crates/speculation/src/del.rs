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

/// Of one exit layer, each round that it has words in weighing less than the next one.
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
    /// Drafts that are best where all are as sure as on average; 0: plain decoding.
    pub drafts: u32,
    /// When to stop instead, as soon as something is known.
    pub stop: Option<Stop>,
    /// Do not verify a draft that is reached and right with a chance below this: its row costs more than it promises. Not
    /// the paper's; where a draft stands only if it equals the target's own token, what is left out changes no law.
    pub drop_below: f64,
}

/// Drafts end behind the first one with which the chance that all of them are right falls below a threshold.
///
/// The paper's threshold is for each draft alone, midway between how sure right and wrong ones are. Here it is the chance
/// at which the next draft no longer brings what it costs, so that a sure text is drafted further than an unsure one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    pub below: f64,
    /// What a draft's confidence is multiplied by: how often drafts were right, by how sure they were.
    pub trust: f64,
}

impl Stop {
    /// The chance that a draft of this confidence is right, when the chance that all before it are is `before`.
    pub fn chance(&self, before: f64, confidence: f64) -> f64 {
        before * (confidence * self.trust).min(1.0)
    }
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

    /// A round is over: what every exit layer said at the places that were judged. A layer without words stays as it was:
    /// it is heard less often than the one in use, and would seem the more doubtful.
    pub fn record(&mut self, said: &[Vec<Said>]) {
        for (exit, said) in self.layers.iter_mut().zip(said).filter(|(_, said)| !said.is_empty()) {
            for sum in [&mut exit.right, &mut exit.wrong, &mut exit.sure_right, &mut exit.sure_wrong] {
                *sum *= Self::MEMORY;
            }
            for said in said {
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
        let Some(known) = self.layers.get(exit.wrapping_sub(1) as usize) else { return 0.0 };
        let rate = known.rate();
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
        let behind = self.all() - f64::from(exit) + self.head;
        let row = f64::from(exit) + behind * (rows(2) - rows(1));
        let stop = known.filter(|_| drafts > 0).map(|known| {
            let further = behind * (rows(drafts + 1) - rows(1)) / f64::from(drafts);
            let due = speed * (f64::from(exit) + self.draft + further);
            // What the next draft brings is right only as often as this exit is.
            Stop { below: due / known.rate().max(f64::MIN_POSITIVE), trust: known.trust() }
        });
        Round { exit, drafts, stop, drop_below: (speed * row).min(1.0) }
    }
}

impl Exit {
    fn rate(self) -> f64 {
        self.right / (self.right + self.wrong + Exits::DOUBT)
    }

    /// How often it was right, by how sure it was.
    fn trust(self) -> f64 {
        let sure = self.sure_right + self.sure_wrong;
        if sure > 0.0 { self.right / sure } else { 1.0 }
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
                let own = rounds.iter().rev().map(|round| &round[exit - 1]).filter(|said| !said.is_empty());
                let judged = own.enumerate().flat_map(|(age, said)| {
                    said.iter().map(move |(right, _)| (0.95f64.powi(age as i32), *right))
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
                prop_assert_eq!(plan, Round { exit: 1, drafts: 1, stop: None, drop_below: 0.0 });
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
    fn old_rounds_count_less_and_a_silent_layer_stays_as_it_was() {
        let mut exits = Exits::new(3, 0.5, 0.5);
        for _ in 0..400 {
            exits.record(&[vec![said(true, 0.8)], vec![]]);
        }
        assert!((exits.layers[0].right - 20.0).abs() < 1e-6, "one a round comes to 1 / (1 - 0.95)");
        let before = exits.layers[0];
        exits.record(&[vec![], vec![said(false, 0.4)]]);
        assert_eq!((exits.layers[0], exits.layers[1].wrong), (before, 1.0));
    }

    /// The threshold is where one more draft brings as much as it costs, by the formula, written once more.
    #[test]
    fn a_sure_text_is_drafted_further_than_an_unsure_one() {
        let mut exits = Exits::new(20, 2.0, 0.5);
        let words: Vec<Said> = (0..10).map(|i| said(i < 7, if i < 7 { 0.9 } else { 0.4 })).collect();
        (0..100).for_each(|_| exits.record(&[vec![], words.clone()]));
        let rows = |n: u32| 1.0 + 0.1 * f64::from(n - 1);
        let plan = exits.plan(rows);
        let stop = plan.stop.unwrap();
        let rate = 140.0 / 202.0;
        let tokens: f64 = (0..=plan.drafts).map(|k| f64::powi(rate, k as i32)).sum();
        let (k, behind) = (f64::from(plan.drafts), 20.0);
        let speed = tokens / (k * 2.5 + 2.0 + behind * (1.0 + 0.1 * k));
        let due = speed * (2.5 + behind * 0.1) / rate;
        assert!((stop.below - due).abs() < 1e-3 && (0.1..0.9).contains(&due), "{stop:?} {due}");
        assert!((stop.trust - 0.7 / (0.7 * 0.9 + 0.3 * 0.4)).abs() < 1e-9, "{stop:?}");
        let drafts = |confidence: f64| {
            let chances = std::iter::successors(Some(1.0), |before| Some(stop.chance(*before, confidence)));
            chances.skip(1).take(16).take_while(|chance| *chance >= stop.below).count()
        };
        assert!(drafts(1.0) > plan.drafts as usize && drafts(0.3) == 0, "{} {}", drafts(1.0), drafts(0.3));
        assert_eq!(Stop { trust: 1.5, ..stop }.chance(0.5, 0.9), 0.5, "no chance is above one");
    }
}
