//! Drafters on the target's own device: which way they work, and who waits for their drafts.

use std::collections::BTreeSet;
use std::time::Duration;

use scheduler::SequenceId;
use speculation::Way;

use crate::step::Lane;
use crate::target_lane::{Crowd, Server, TargetLane};
use crate::{Engine, Facts, Model};

impl<M: Model> Engine<M> {
    /// What the rank allows its target lanes.
    pub(crate) fn server(&self) -> Server {
        Server { max_draft: self.settings.max_draft, trees: self.spec().tree_rows > 0 }
    }

    /// Decides for how many drafts of a drafter on the target's device each sequence waits before the next step; for how
    /// many sequences the way is a matter of measurement, and which one it is.
    pub(crate) fn ask(&mut self) -> (u32, Way) {
        let (server, running) = (self.server(), self.scheduler.running());
        let measured = self.decoding(TargetLane::is_measured);
        if measured == 0 {
            self.drafting.ways.pause();
        }
        let together = self.decoding(TargetLane::on_our_gpu);
        let way = self.drafting.ways.way(measured);
        let crowd = Crowd { alone: running == 1, together, way };
        for (id, lane) in &mut self.lanes {
            if let (Lane::Target(lane), Some(known)) = (lane, self.scheduler.tokens(*id))
                && self.scheduler.decoding(*id)
            {
                lane.ask(known, server, crowd, &mut self.drafting);
            }
        }
        (measured, way)
    }

    /// Target lanes that decode and of which this is so.
    fn decoding(&self, so: impl Fn(&TargetLane) -> bool) -> u32 {
        let counts = |(id, lane): &(&SequenceId, &Lane)| {
            matches!(lane, Lane::Target(lane) if so(lane)) && self.scheduler.decoding(**id)
        };
        self.lanes.iter().filter(counts).count() as u32
    }

    /// While one sequence waits for drafts, the GPU is the drafter's: who has drafts waits with it.
    pub(crate) fn wait_together(&self, held: &mut BTreeSet<SequenceId>) {
        let ours = |lane: &Lane| matches!(lane, Lane::Target(lane) if lane.on_our_gpu());
        let waits = |lane: &Lane| matches!(lane, Lane::Target(lane) if lane.waits_in_turn());
        if self.lanes.values().any(|lane| ours(lane) && waits(lane)) {
            let together = self.lanes.iter().filter(|(id, lane)| ours(lane) && self.scheduler.decoding(**id));
            held.extend(together.map(|(id, _)| *id));
        }
    }

    /// The step that began at `now` came to these facts: what its way of drafting is worth.
    pub(crate) fn compare_ways(&mut self, now: Duration, (crowd, way): (u32, Way), facts: &mut Facts) {
        // With a prompt in it, a step says nothing of drafts.
        if crowd > 0 && facts.decodes > 0 && facts.known_rows == facts.decodes {
            facts.way = Some(way);
            self.drafting.ways.brought(now, (crowd, way), facts.decodes + facts.accepted);
        }
    }
}
