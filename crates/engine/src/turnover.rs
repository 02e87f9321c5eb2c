use std::collections::BTreeMap;
use std::time::Duration;

use scheduler::SequenceId;

/// How fast places come free: what a new sequence has to wait for.
///
/// By Little's law: so many at once, each for so long. The time from one end to the next would say the
/// same in the mean, but sequences that began together end together, and then the last few of those
/// times are all zero or one that is very long.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    /// Since when each has its place. One that gave way keeps its first time: it is not done sooner.
    since: BTreeMap<SequenceId, Duration>,
    /// Ended after the last plan; how long they took is known when the step is over.
    ended: Vec<Duration>,
    /// When a place last came free.
    last: Option<Duration>,
    /// Recent mean time that a place was held.
    tenure: Option<Duration>,
    /// Places taken after the last plan.
    at_once: u32,
    /// After it, somebody waited although there were slots: pages were short.
    short: bool,
}

impl Turnover {
    pub(crate) fn started(&mut self, now: Duration, id: SequenceId) {
        self.since.entry(id).or_insert(now);
    }

    /// A sequence is gone; nothing happens for one that never had a place.
    pub(crate) fn left(&mut self, now: Duration, id: SequenceId) {
        if let Some(since) = self.since.remove(&id) {
            self.ended.push(since);
            self.last = Some(now);
        }
    }

    /// A step was planned: so many run, so many wait.
    pub(crate) fn planned(&mut self, now: Duration, slots: u32, running: usize, waiting: usize) {
        for since in self.ended.drain(..) {
            let new = now.saturating_sub(since);
            self.tenure = Some(self.tenure.map_or(new, |old| old - old / 8 + new / 8));
        }
        self.at_once = u32::try_from(running).unwrap_or(u32::MAX);
        self.short = waiting > 0 && self.at_once < slots;
    }

    /// The wait of a sequence that finds `running` and `waiting` others. Zero while nothing is known: the
    /// length of the queue bounds it then.
    pub(crate) fn wait(&self, now: Duration, slots: u32, running: usize, waiting: usize) -> Duration {
        let free = if self.short { 0 } else { (slots as usize).saturating_sub(running) };
        let Some(before) = waiting.checked_sub(free) else { return Duration::ZERO };
        let at_once = self.at_once.max(1);
        // Who runs already for longer than others took shows that it takes longer now.
        let ages: Duration = self.since.values().map(|since| now.saturating_sub(*since)).sum();
        let tenure = self.tenure.unwrap_or_default().max(ages / at_once);
        let places = u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1);
        // The first place is the nearer the longer ago the last one came free.
        let interval = tenure / at_once;
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last)).min(interval);
        interval.saturating_mul(places).saturating_sub(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// `slots` sequences that begin at one second and end at another, all together.
    fn burst(turnover: &mut Turnover, slots: u32, from: u64, to: u64) {
        let ids = || (0..u64::from(slots)).map(|i| SequenceId(from * 1000 + i));
        ids().for_each(|id| turnover.started(s(from), id));
        turnover.planned(s(from), slots, slots as usize, 1);
        ids().for_each(|id| turnover.left(s(to), id));
        turnover.planned(s(to), slots, slots as usize, 1);
    }

    #[test]
    fn the_wait_is_places_times_what_one_takes() {
        let mut turnover = Turnover::default();
        assert_eq!(turnover.wait(s(0), 4, 4, 100), s(0), "nothing is known yet");
        burst(&mut turnover, 4, 0, 8);
        for (now, running, waiting, wait, why) in [
            (8, 4, 0, 2, "four at once, eight seconds each"),
            (8, 4, 4, 10, "four are before it"),
            (9, 4, 4, 9, "a second later"),
            (90, 4, 0, 0, "overdue"),
            (8, 1, 2, 0, "there is a slot for all that wait and for it"),
            (8, 1, 3, 2, "the last slot goes to another"),
        ] {
            assert_eq!(turnover.wait(s(now), 4, running, waiting), s(wait), "{why}");
        }
    }

    /// Ends that come together do not make the wait look short, nor the pause before them long.
    #[test]
    fn bursts_say_what_a_steady_flow_says() {
        let mut turnover = Turnover::default();
        for round in 0..10 {
            burst(&mut turnover, 64, round * 32, round * 32 + 32);
            assert_eq!(turnover.wait(s(round * 32 + 32), 64, 64, 63), s(32), "round {round}");
        }
    }

    #[test]
    fn who_runs_for_longer_than_others_took_makes_the_wait_longer() {
        let mut turnover = Turnover::default();
        burst(&mut turnover, 2, 0, 2);
        for id in 0..2 {
            turnover.started(s(2), SequenceId(id));
        }
        turnover.planned(s(2), 2, 2, 0);
        assert_eq!(turnover.wait(s(2), 2, 2, 1), s(2));
        assert_eq!(turnover.wait(s(42), 2, 2, 1), s(20), "forty seconds by two, less what is overdue");
    }

    #[test]
    fn free_slots_are_no_places_while_pages_are_short() {
        let mut turnover = Turnover::default();
        burst(&mut turnover, 2, 0, 4);
        turnover.planned(s(4), 8, 2, 3);
        assert_eq!(turnover.wait(s(4), 8, 2, 3), s(8));
        turnover.planned(s(4), 8, 2, 0);
        assert_eq!(turnover.wait(s(4), 8, 2, 3), s(0));
    }
}
