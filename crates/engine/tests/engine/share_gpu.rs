//! A drafter on the target's own GPU: sequences wait for it together, and whether they wait at all is measured.

use std::time::Duration;

use engine::{Command, Drafter, Engine, Outcome, TargetEvent, ToyModel, Way};
use request::TokenId;
use scheduler::SequenceId;

use crate::lanes::open;
use crate::link::Kept;
use crate::share_cores::{drafts, long, plain, sharing};

const IN_TURN: Drafter = Drafter::InTurn { together: true };

/// Answers under way on one engine, and a drafter that a test plays.
struct Gpu {
    engine: Engine<ToyModel>,
    now: Duration,
    lanes: Vec<Lane>,
}

struct Lane {
    id: SequenceId,
    outlet: Kept<TargetEvent>,
    /// Prompt and answer, as they must become.
    all: Vec<TokenId>,
    known: usize,
    /// How far the drafter may go; `None`: as far as it finds right.
    window: Option<u32>,
}

impl Gpu {
    fn new(prompts: &[[u32; 2]], drafter: Drafter) -> Self {
        let mut gpu = Self { engine: sharing(), now: Duration::ZERO, lanes: Vec::new() };
        for prompt in prompts {
            gpu.open(*prompt, drafter);
        }
        gpu
    }

    fn open(&mut self, prompt: [u32; 2], drafter: Drafter) {
        let id = SequenceId(prompt.map(u64::from).iter().fold(0, |id, token| id * 100 + token));
        let (outlet, admitted) = open(&mut self.engine, id.0, long(&prompt));
        admitted.unwrap();
        self.engine.command(self.now, Command::Drafter(id, drafter));
        let all = prompt.map(TokenId).into_iter().chain(plain(&prompt)).collect();
        self.lanes.push(Lane { id, outlet, all, known: 2, window: Some(1) });
    }

    fn step(&mut self) -> Outcome {
        let outcome = self.engine.step(self.now);
        for lane in &mut self.lanes {
            for event in lane.outlet.take() {
                match event {
                    TargetEvent::Ask { window } => lane.window = window,
                    TargetEvent::Committed { frame, .. } => {
                        let at = frame.at as usize;
                        assert_eq!(
                            frame.ids,
                            lane.all[at..at + frame.ids.len()],
                            "the text is plain decoding's"
                        );
                        lane.known = at + frame.ids.len();
                    }
                    TargetEvent::Started { .. } | TargetEvent::Again(_) | TargetEvent::Ended(_) => {}
                }
            }
        }
        outcome
    }

    /// So many drafts come, of which every seventh word is wrong.
    fn draft(&mut self, lane: usize, count: u32) {
        let lane = &self.lanes[lane];
        let frame = drafts(&lane.all[..lane.known], &lane.all, count as usize);
        self.engine.command(self.now, Command::Drafts(lane.id, frame));
    }
}

#[test]
fn sequences_wait_together_and_who_has_drafts_waits_for_the_others() {
    let mut gpu = Gpu::new(&[[1, 2], [1, 3]], IN_TURN);
    let mut waits = 0;
    while !gpu.engine.is_empty() {
        match gpu.step() {
            Outcome::Worked(facts) => {
                assert_eq!(facts.way, None, "nothing is measured where it was said");
                gpu.now += Duration::from_millis(55);
            }
            Outcome::Idle { until } => {
                assert!(until.is_some_and(|until| until > gpu.now));
                let asked: Vec<u32> = gpu.lanes.iter().map(|lane| lane.window.unwrap()).collect();
                gpu.now += Duration::from_millis(10) * *asked.iter().max().unwrap();
                let both = gpu.lanes.iter().all(|lane| lane.known < lane.all.len() - 1);
                gpu.draft(0, asked[0]);
                if both && asked.iter().all(|window| *window > 0) {
                    assert!(matches!(gpu.step(), Outcome::Idle { .. }), "the second one waits");
                    waits += 1;
                }
                gpu.draft(1, asked[1]);
            }
        }
    }
    assert!(waits >= 4, "{waits}");
    assert!(gpu.lanes.iter().all(|lane| lane.known == lane.all.len()));
}

#[test]
fn a_drafter_that_is_silent_holds_nobody_up_for_long() {
    let mut gpu = Gpu::new(&[[1, 2], [1, 3]], IN_TURN);
    let mut waits = 0;
    while !gpu.engine.is_empty() {
        match gpu.step() {
            Outcome::Worked(_) => gpu.now += Duration::from_millis(50),
            // The first one is drafted for, the second never.
            Outcome::Idle { until } => {
                waits += 1;
                assert!(waits < 60, "waits for nobody");
                match gpu.lanes[0].window {
                    Some(window) if window > 0 && waits > 2 => {
                        gpu.now += Duration::from_millis(10);
                        gpu.draft(0, window);
                    }
                    _ => gpu.now = until.unwrap(),
                }
            }
        }
    }
    assert!(gpu.lanes.iter().all(|lane| lane.known == lane.all.len()));
}

/// Steps of 55 ms while the drafter rests, drafts of 10 ms; ahead of the target it drafts eight a step, which then takes `beside`.
/// What part of the steps was made in each way, after the first hundred.
fn steps_by_way(beside: Duration) -> [u32; 2] {
    let mut gpu = Gpu::new(&[], Drafter::AsMeasured);
    let (mut all, mut steps) = (0, [0; 2]);
    for answer in 0..60 {
        gpu.lanes.clear();
        gpu.open([answer % 20, 1 + answer / 20], Drafter::AsMeasured);
        while !gpu.engine.is_empty() {
            if gpu.lanes[0].window.is_none() {
                gpu.draft(0, 8);
            }
            match gpu.step() {
                Outcome::Worked(facts) => {
                    all += 1;
                    let ahead = facts.way == Some(Way::Ahead);
                    gpu.now += if ahead { beside } else { Duration::from_millis(55) };
                    if let Some(way) = facts.way.filter(|_| all > 100) {
                        steps[usize::from(way == Way::Ahead)] += 1;
                    }
                }
                Outcome::Idle { .. } => {
                    let window = gpu.lanes[0].window.expect("ahead nobody waits");
                    assert!(window > 0, "it waits for what it did not ask for");
                    gpu.now += Duration::from_millis(10) * window;
                    gpu.draft(0, window);
                }
            }
        }
        assert_eq!(gpu.lanes[0].known, gpu.lanes[0].all.len());
        // Somebody thinks for a while.
        gpu.now += Duration::from_secs(7);
    }
    steps
}

#[test]
fn the_faster_way_is_found() {
    let [turns, ahead] = steps_by_way(Duration::from_millis(60));
    assert!(ahead > 4 * turns, "drafts that cost a tenth of a step: {turns} in turn, {ahead} ahead");
    let [turns, ahead] = steps_by_way(Duration::from_millis(240));
    assert!(turns > 4 * ahead, "drafts that make steps four times as long: {turns} in turn, {ahead} ahead");
}
