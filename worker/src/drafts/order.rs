//! Which drafter is asked first.

use std::time::Duration;

use cluster::Nearness;

/// What is known of a drafter that is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Until the first draft after a commit: the way there and back, and the time of one draft.
    pub(super) cost: Duration,
    pub(super) nearness: Nearness,
}

/// A target's step while none was timed.
const STEP: Duration = Duration::from_millis(20);
/// Costs that differ by less than this part of a step are the same.
const PARTS: u128 = 4;

/// Orders drafters by cost, in parts of the target's step: who is slower than a step comes behind all who are not. Of
/// equal cost, those come first that compute on a device of their own, the nearest of them before others; then it is
/// as the coordinator ranked them, by load. Of whom nothing is known comes last.
pub(super) fn order<T>(step: Duration, drafters: &mut [(T, Option<Known>)]) {
    let step = if step.is_zero() { STEP } else { step };
    // Stable.
    drafters.sort_by_key(|(_, known)| match known {
        Some(Known { cost, nearness }) => {
            (false, cost.as_nanos() * PARTS / step.as_nanos(), class(*nearness))
        }
        None => (true, 0, 0),
    });
}

/// On a device of its own a drafter runs ahead while the target computes. On the target's it takes time from it.
fn class(nearness: Nearness) -> u8 {
    match nearness {
        Nearness::SameNode => 0,
        Nearness::Remote => 1,
        Nearness::Colocated => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Nearness::{Colocated, Remote, SameNode};

    /// Costs in tenths of a millisecond.
    fn ordered(step: u64, drafters: &[Option<(u64, Nearness)>]) -> Vec<usize> {
        let known = |&(cost, nearness): &(u64, Nearness)| Known { cost: tenths(cost), nearness };
        let mut drafters: Vec<_> = drafters.iter().map(|d| d.as_ref().map(known)).enumerate().collect();
        order(tenths(step), &mut drafters);
        drafters.into_iter().map(|(i, _)| i).collect()
    }

    fn tenths(time: u64) -> Duration {
        Duration::from_micros(time * 100)
    }

    #[test]
    fn drafters_are_ordered_by_cost_then_class_then_load() {
        for (case, step, drafters, expected) in [
            ("nobody", 100, vec![], vec![]),
            ("the near one, named second", 100, vec![Some((60, Remote)), Some((2, Remote))], vec![1, 0]),
            ("about as near: by load", 100, vec![Some((9, Remote)), Some((2, Remote))], vec![0, 1]),
            (
                "longer than a step goes last, whatever its class",
                100,
                vec![Some((120, SameNode)), Some((99, Colocated)), Some((2, Colocated))],
                vec![2, 1, 0],
            ),
            (
                "both too long: the lesser evil",
                100,
                vec![Some((900, SameNode)), Some((120, Remote))],
                vec![1, 0],
            ),
            (
                "equal: own device, near, before the target's own",
                100,
                vec![Some((3, Colocated)), Some((5, Remote)), Some((9, SameNode))],
                vec![2, 1, 0],
            ),
            ("what is unknown is last", 100, vec![None, Some((5000, Remote)), None], vec![1, 0, 2]),
            ("nothing timed yet: as of 20 ms", 0, vec![Some((49, Remote)), Some((2, Remote))], vec![0, 1]),
            ("nothing timed yet", 0, vec![Some((51, Remote)), Some((2, Remote))], vec![1, 0]),
            ("a faster target looks closer", 4, vec![Some((9, Remote)), Some((2, Remote))], vec![1, 0]),
        ] {
            assert_eq!(ordered(step, &drafters), expected, "{case}");
        }
    }

    #[test]
    fn absurd_figures_are_ordered_too() {
        let most = Some(Known { cost: Duration::MAX, nearness: SameNode });
        let mut drafters = [(0, most), (1, Some(Known { cost: Duration::ZERO, nearness: Remote }))];
        order(Duration::from_nanos(1), &mut drafters);
        assert_eq!(drafters.map(|(i, _)| i), [1, 0]);
    }
}
