//! How a drafter on the target's own GPU is used: in turn with the target or ahead of it, by what was measured.
//!
//! Ahead of the target (PEARL, arXiv 2408.11850) a draft is free where it is computed elsewhere. On the target's own GPU the two
//! processes get the device by slices of time, or share it (MPS): a draft then costs a part of a step, how much depends on
//! both models, the batch and the driver. So both ways are tried, and the one with more tokens a second is used.

use std::time::Duration;

/// What the drafter does while the target computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// It rests; it drafts while the target waits.
    #[default]
    Turns,
    /// It drafts on.
    Ahead,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Turns => Self::Ahead,
            Self::Ahead => Self::Turns,
        }
    }
}

/// Which way to go, by the number of sequences that decode together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ways {
    /// For 1, 2 to 3, 4 to 7, ... sequences.
    crowds: [Trials; CROWDS],
    /// Who went last, and which way.
    last: Option<(usize, Way)>,
    /// Steps that the next ones still have something of the other way in them.
    unsettled: u32,
    before: Option<Before>,
}

/// The step before the one that begins.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Before {
    began: Duration,
    sequences: u32,
    way: Way,
    tokens: u32,
}

const CROWDS: usize = 8;

impl Ways {
    /// Steps after a change that are not counted: what was drafted before it is used up, or not there yet.
    const UNSETTLED: u32 = 2;

    /// The way for so many sequences.
    pub fn way(&self, sequences: u32) -> Way {
        self.crowds[crowd(sequences)].way
    }

    /// A step begins: what the one before took is known, with the wait for the drafts of this one.
    pub fn begins(&mut self, now: Duration) {
        if let Some(before) = self.before.take() {
            self.record(before, now.saturating_sub(before.began));
        }
    }

    /// The step that began then only decoded, `way` as [`Self::way`] said; it brought `tokens` to so many `sequences`.
    pub fn brought(&mut self, began: Duration, (sequences, way): (u32, Way), tokens: u32) {
        self.before = (sequences > 0).then_some(Before { began, sequences, way, tokens });
    }

    /// Nothing runs: from here on time passes for another reason.
    pub fn pause(&mut self) {
        self.before = None;
    }

    fn record(&mut self, step: Before, time: Duration) {
        let crowd = crowd(step.sequences);
        let now = Some((crowd, step.way));
        if self.last != now {
            (self.last, self.unsettled) = (now, Self::UNSETTLED);
        }
        let trials = &mut self.crowds[crowd];
        let counts = self.unsettled == 0 && step.way == trials.way;
        self.unsettled = self.unsettled.saturating_sub(1);
        trials.record(f64::from(step.tokens), time.as_secs_f64(), counts);
    }
}

fn crowd(sequences: u32) -> usize {
    (sequences.max(1).ilog2() as usize).min(CROWDS - 1)
}

/// What is known of both ways for one size of the crowd. A trial is a row of steps in one way.
#[derive(Clone, Debug, Default, PartialEq)]
struct Trials {
    /// In use.
    way: Way,
    /// The better one, as far as is known.
    best: Way,
    turns: Rate,
    ahead: Rate,
    /// Of the trial under way: what was counted, and the seconds of all its steps.
    counted: Rate,
    spent: f64,
    /// Trials made, as far as the first ones.
    made: u32,
    /// Seconds in the better way until the other one is tried again, and what the last pause was in times of a trial.
    rest: f64,
    pause: f64,
}

impl Trials {
    /// Steps that a trial counts.
    const STEPS: f64 = 8.0;
    /// Trials at the beginning, in turn.
    const FIRST: u32 = 4;
    /// The other way must be so much better to be taken: below it, it is chance.
    const BETTER: f64 = 1.05;
    /// What a trial keeps of those before it.
    const KEPT: f64 = 0.5;
    /// How long the better way goes on, in times that the last trial of the other one took: so trials have a 64th of the time.
    const SHORTEST: f64 = 16.0;
    const LONGEST: f64 = 64.0;
    /// A step that takes more than so many times what steps take in its way was disturbed, and counts as so much.
    const DISTURBED: f64 = 4.0;

    fn record(&mut self, tokens: f64, seconds: f64, counts: bool) {
        self.spent += seconds;
        if !counts {
            return;
        }
        let usual = self.rate(self.way).step();
        let seconds = usual.map_or(seconds, |usual| seconds.min(Self::DISTURBED * usual));
        self.counted.add(&Rate { tokens, seconds, steps: 1.0 });
        if self.counted.steps >= Self::STEPS {
            self.judge();
        }
    }

    /// The trial is over.
    fn judge(&mut self) {
        let (counted, spent) = (std::mem::take(&mut self.counted), std::mem::take(&mut self.spent));
        let rate = self.rate_mut(self.way);
        rate.fade(Self::KEPT);
        rate.add(&counted);
        if self.made < Self::FIRST {
            self.made += 1;
            if self.made < Self::FIRST {
                self.way = self.way.other();
                return;
            }
            // Turns unless the other way is clearly better.
            self.best = Way::default();
            self.prefer(spent);
        } else if self.way == self.best {
            self.rest -= spent;
            self.way = if self.rest <= 0.0 { self.best.other() } else { self.best };
        } else {
            self.prefer(spent);
        }
    }

    /// Takes the better way, after both were tried; the last trial took `spent` seconds.
    fn prefer(&mut self, spent: f64) {
        let (best, other) = (self.rate(self.best), self.rate(self.best.other()));
        if other.tokens * best.seconds > Self::BETTER * best.tokens * other.seconds {
            (self.best, self.pause) = (self.best.other(), Self::SHORTEST);
        } else {
            self.pause = (2.0 * self.pause).clamp(Self::SHORTEST, Self::LONGEST);
        }
        self.rest = self.pause * spent;
        self.way = self.best;
    }

    fn rate(&self, way: Way) -> &Rate {
        match way {
            Way::Turns => &self.turns,
            Way::Ahead => &self.ahead,
        }
    }

    fn rate_mut(&mut self, way: Way) -> &mut Rate {
        match way {
            Way::Turns => &mut self.turns,
            Way::Ahead => &mut self.ahead,
        }
    }
}

/// Sums over steps.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rate {
    tokens: f64,
    seconds: f64,
    steps: f64,
}

impl Rate {
    fn add(&mut self, more: &Self) {
        self.tokens += more.tokens;
        self.seconds += more.seconds;
        self.steps += more.steps;
    }

    fn fade(&mut self, kept: f64) {
        self.tokens *= kept;
        self.seconds *= kept;
        self.steps *= kept;
    }

    /// Seconds of a step; `None`: there was none.
    fn step(&self) -> Option<f64> {
        (self.steps > 0.0).then(|| self.seconds / self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPU on which steps take so many milliseconds and bring so many tokens, by way.
    struct Gpu {
        ways: Ways,
        now: Duration,
        turns: (f64, u32),
        ahead: (f64, u32),
    }

    impl Gpu {
        fn new(turns: (f64, u32), ahead: (f64, u32)) -> Self {
            Self { ways: Ways::default(), now: Duration::ZERO, turns, ahead }
        }

        /// The share of the time that was spent ahead.
        fn run(&mut self, sequences: u32, steps: u32) -> f64 {
            let mut spent = [0.0; 2];
            for step in 0..steps {
                self.ways.begins(self.now);
                let way = self.ways.way(sequences);
                let (ms, tokens) = if way == Way::Ahead { self.ahead } else { self.turns };
                // Texts differ: some steps bring nothing, others twice as much.
                self.ways.brought(self.now, (sequences, way), tokens * (step * 7 % 3));
                self.now += Duration::from_secs_f64(ms / 1e3);
                spent[usize::from(way == Way::Ahead)] += ms;
            }
            spent[1] / (spent[0] + spent[1])
        }
    }

    #[test]
    fn the_better_way_is_found_and_the_other_costs_little() {
        for (case, turns, ahead, better) in [
            ("slices of time", (24.0, 6), (36.0, 7), Way::Turns),
            ("they hardly meet", (24.0, 6), (18.0, 6), Way::Ahead),
            ("hopeless", (24.0, 6), (400.0, 6), Way::Turns),
            ("hopeless in turn", (400.0, 6), (24.0, 6), Way::Ahead),
        ] {
            let mut gpu = Gpu::new(turns, ahead);
            gpu.run(1, 100);
            assert_eq!(gpu.ways.crowds[0].best, better, "{case}");
            gpu.run(1, 20_000);
            let share = gpu.run(1, 20_000);
            let other = if better == Way::Ahead { 1.0 - share } else { share };
            assert!((0.001..0.02).contains(&other), "{case}: {other} of the time in the other way");
            assert_eq!(gpu.ways.crowds[0].best, better, "{case}, after a long time");
        }
    }

    #[test]
    fn what_changes_is_noticed() {
        let mut gpu = Gpu::new((24.0, 6), (36.0, 7));
        gpu.run(1, 2000);
        gpu.ahead = (16.0, 7);
        gpu.run(1, 3000);
        assert_eq!(gpu.ways.crowds[0].best, Way::Ahead);
        gpu.ahead = (36.0, 7);
        gpu.run(1, 3000);
        assert_eq!(gpu.ways.crowds[0].best, Way::Turns);
    }

    #[test]
    fn each_size_of_the_crowd_has_a_way_of_its_own() {
        let mut gpu = Gpu::new((24.0, 6), (18.0, 6));
        gpu.run(1, 100);
        gpu.ahead = (60.0, 6);
        gpu.run(8, 100);
        assert_eq!((gpu.ways.way(1), gpu.ways.way(8)), (Way::Ahead, Way::Turns));
        assert_eq!(gpu.ways.way(15), Way::Turns);
        assert_eq!(gpu.ways.crowds[2], Trials::default(), "nobody was there");
        gpu.run(100_000, 10);
        assert_ne!(gpu.ways.crowds[CROWDS - 1], Trials::default());
    }

    #[test]
    fn neither_one_disturbed_step_nor_a_pause_is_a_reason() {
        let mut gpu = Gpu::new((24.0, 6), (36.0, 7));
        gpu.run(1, 60);
        let before = gpu.ways.clone();
        gpu.now += Duration::from_secs(60);
        gpu.ways.pause();
        gpu.ways.begins(gpu.now);
        assert_eq!(gpu.ways.crowds, before.crowds);
        for _ in 0..20 {
            // A second that is nobody's fault, in the better way.
            gpu.ways.brought(gpu.now, (1, Way::Turns), 6);
            gpu.now += Duration::from_secs(1);
            gpu.run(1, 40);
        }
        assert_eq!(gpu.ways.crowds[0].best, Way::Turns);
    }

    #[test]
    fn steps_after_a_change_are_not_counted() {
        let mut ways = Ways::default();
        let counted = |ways: &Ways| ways.crowds[0].counted.steps;
        for step in 0..5 {
            ways.begins(Duration::from_millis(step));
            ways.brought(Duration::from_millis(step), (1, Way::Turns), 1);
        }
        assert_eq!(counted(&ways), 2.0, "of four");
        // Others came and went.
        let step = |sequences| Before { began: Duration::ZERO, sequences, way: Way::Turns, tokens: 1 };
        ways.record(step(4), Duration::from_millis(1));
        for _ in 0..3 {
            ways.record(step(1), Duration::from_millis(1));
        }
        assert_eq!(counted(&ways), 3.0);
    }
}
