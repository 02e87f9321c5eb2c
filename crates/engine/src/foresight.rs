//! The step that will most likely follow the one under way, for a model that begins it early.
//!
//! While sequences decode without drafts, a step is followed by one of the same sequences, each a position further, with the
//! tokens that the first one picks. A model that is told so ([`Model::expect`](crate::Model::expect)) is at work while this
//! side commits, plans and hands over. A wrong word costs a step's time, a right one wins a hundredth of one or a few: so it is
//! given only after several steps came as they would have been foretold, and more seldom where that proved wrong.

use std::collections::BTreeMap;

use scheduler::{Layers, Output, Parent, Plan, Row, RowToken, Slice, Step};

#[derive(Debug)]
pub(crate) struct Foresight {
    /// What follows if all goes on: the position of each slot's row.
    expected: BTreeMap<u32, u32>,
    /// The model was told.
    told: bool,
    /// Steps in a row that came as expected, and how many of them the model was told of.
    came: u32,
    right: u32,
    /// The step that came is another one than the model was told of: it waited for that one.
    wrong: bool,
    /// So many must have come before the model is told.
    needed: u32,
}

impl Foresight {
    const FEWEST: u32 = 4;
    const MOST: u32 = 1024;
    /// After so many right words what was wrong before is forgotten: they won more than it cost.
    const FORGOTTEN: u32 = 256;

    pub(crate) fn new() -> Self {
        Self { expected: BTreeMap::new(), told: false, came: 0, right: 0, wrong: false, needed: Self::FEWEST }
    }

    /// Looks at the step that comes: whether it is the expected one, or a part of it.
    pub(crate) fn comes(&mut self, step: &Step) {
        let expected = |row: &Row| {
            row.parent == Parent::Previous
                && row.output == Output::Pick
                && self.expected.get(&row.slot.0) == Some(&row.position)
        };
        if !step.rows.is_empty() && step.rows.iter().all(expected) {
            self.came = self.came.saturating_add(1);
            self.right = self.right.saturating_add(u32::from(self.told));
            self.wrong = false;
            if self.right >= Self::FORGOTTEN {
                self.needed = Self::FEWEST;
            }
        } else {
            (self.came, self.right, self.wrong) = (0, 0, self.told);
            if self.wrong {
                self.needed = (2 * self.needed).min(Self::MOST);
            }
        }
    }

    /// Whether the step that came last had to wait for another one.
    pub(crate) fn was_wrong(&self) -> bool {
        self.wrong
    }

    /// What the model is to be told while a plan is executed; `goes_on` says of whom a token more leaves one to compute.
    pub(crate) fn next(&mut self, plan: &Plan, goes_on: impl Fn(&Slice) -> bool) -> Option<Step> {
        self.expected.clear();
        self.told = false;
        let plain = |slice: &Slice| slice.known == 1 && slice.drafts == 0 && slice.picks;
        if !plan.slices.iter().all(plain) {
            return None;
        }
        let rows: Vec<Row> = plan.slices.iter().filter(|slice| goes_on(slice)).map(follows).collect();
        self.expected = rows.iter().map(|row| (row.slot.0, row.position)).collect();
        self.told = !rows.is_empty() && self.came >= self.needed;
        self.told.then_some(Step { deltas: Vec::new(), rows })
    }
}

/// The row behind that of a slice.
fn follows(slice: &Slice) -> Row {
    Row {
        slot: slice.slot,
        token: RowToken::FromStep(slice.first_row),
        position: slice.position + 1,
        parent: Parent::Previous,
        layers: Layers::All,
        output: Output::Pick,
        adapter: None,
    }
}

#[cfg(test)]
mod tests {
    use scheduler::{SequenceId, Slot};

    use super::*;

    /// A plan of one row for each slot, at these positions.
    fn plan(rows: &[(u32, u32)], drafts: u32) -> Plan {
        let slice = |(i, (slot, position)): (usize, &(u32, u32))| Slice {
            sequence: SequenceId(u64::from(*slot)),
            slot: Slot(*slot),
            first_row: i as u32,
            position: *position,
            known: 1,
            drafts,
            tree: false,
            picks: true,
        };
        let slices: Vec<Slice> = rows.iter().enumerate().map(slice).collect();
        let row = |slice: &Slice| Row { position: slice.position, ..follows(slice) };
        let step = Step { deltas: Vec::new(), rows: slices.iter().map(row).collect() };
        Plan { step, slices, ..Plan::default() }
    }

    /// Runs a plan; says how many rows the model was told of.
    fn run(foresight: &mut Foresight, plan: &Plan) -> usize {
        foresight.comes(&plan.step);
        foresight.next(plan, |_| true).map_or(0, |step| step.rows.len())
    }

    #[test]
    fn it_is_said_after_steps_that_came_and_not_beside_others() {
        let mut foresight = Foresight::new();
        let told: Vec<usize> =
            (0..7).map(|i| run(&mut foresight, &plan(&[(0, 10 + i), (3, 50 + i)], 0))).collect();
        assert_eq!(told, [0, 0, 0, 0, 2, 2, 2]);
        // One ended: its row was for nothing, the other's was not.
        assert_eq!(run(&mut foresight, &plan(&[(3, 57)], 0)), 1);
        // Drafts, and from the beginning.
        assert_eq!(run(&mut foresight, &plan(&[(3, 58)], 2)), 0);
        assert_eq!((foresight.came, foresight.needed), (8, 4));
        assert_eq!(run(&mut foresight, &plan(&[(3, 61)], 0)), 0);
        assert_eq!((foresight.came, foresight.needed), (0, 4), "nothing was told before it");
    }

    #[test]
    fn a_wrong_word_makes_the_next_one_later() {
        let mut foresight = Foresight::new();
        let mut waits = Vec::new();
        for answer in 0..4 {
            let told = (0..20).map(|i| run(&mut foresight, &plan(&[(0, 100 * answer + i)], 0)));
            waits.push(told.take_while(|rows| *rows == 0).count());
        }
        assert_eq!(waits, [4, 8, 16, 20], "the last one is never told");
        // Only right words make that forgotten: 32 steps come before the first.
        for (i, needed) in (0..300).map(|i| (i, if i < 32 + 256 { 32 } else { 4 })) {
            run(&mut foresight, &plan(&[(0, 1000 + i)], 0));
            assert_eq!((foresight.needed, foresight.was_wrong()), (needed, false), "step {i}");
        }
        run(&mut foresight, &plan(&[(0, 5)], 0));
        assert!(foresight.was_wrong());
    }

    #[test]
    fn who_ends_is_left_out() {
        let mut foresight = Foresight::new();
        for i in 0..5 {
            run(&mut foresight, &plan(&[(0, i), (1, i)], 0));
        }
        let last = plan(&[(0, 5), (1, 5)], 0);
        foresight.comes(&last.step);
        let step = foresight.next(&last, |slice| slice.slot.0 == 1).unwrap();
        assert_eq!(step.rows.len(), 1);
        assert_eq!((step.rows[0].slot, step.rows[0].token), (Slot(1), RowToken::FromStep(1)));
        assert_eq!(step.rows[0].position, 6);
        // Nobody goes on: nothing is said.
        foresight.comes(&last.step);
        assert!(foresight.next(&last, |_| false).is_none());
    }
}
