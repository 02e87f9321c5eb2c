//! Pages a position ahead: for models that begin the next step early.

use super::*;
use crate::{Config, TableChange};

/// Of a sequence of 10 tokens that may grow to `longest`, with as many pages in all: at which positions of its rows more of
/// them were mapped.
fn appended(pages: u32, longest: u32, ahead: bool) -> Vec<u32> {
    let mut scheduler = Scheduler::new(Config {
        token_budget: 32,
        tile: 1,
        policy: Policy::Sarathi,
        max_waiting: 4,
        context: 256,
        slots: 2,
        tree_rows: 0,
        classes: vec![(HeadClass::Full, pages)],
        prefix_cache: false,
    });
    if ahead {
        scheduler.keep_pages_ahead();
    }
    let id = SequenceId(0);
    let new = NewSequence {
        id,
        tokens: (0..10).map(|at| token(1, at)).collect(),
        limit: longest,
        longest,
        priority: 0,
        root: PrefixRoot::salted(""),
        settled: u32::MAX,
    };
    scheduler.add(new).unwrap();
    let mut at = Vec::new();
    while scheduler.tokens(id).unwrap().len() < longest as usize {
        let plan = scheduler.plan(|_| Ahead::Go(&[]));
        let slice = &plan.slices[0];
        let appends = plan.step.deltas.iter().any(|delta| matches!(delta.change, TableChange::Append(_)));
        assert!(!plan.step.deltas.iter().any(|delta| matches!(delta.change, TableChange::Truncate(_))));
        if appends {
            at.push(slice.position);
        }
        let goes_on = scheduler.goes_on(id);
        scheduler.commit(slice, 0, &[token(1, slice.position + slice.known)]);
        assert_eq!(goes_on, scheduler.tokens(id).unwrap().len() < longest as usize);
    }
    at
}

#[test]
fn a_page_is_there_a_step_before_it_is_written() {
    assert_eq!(appended(8, 60, false), [0, 16, 32, 48]);
    assert_eq!(appended(8, 60, true), [0, 15, 31, 47]);
}

#[test]
fn nobody_takes_a_page_ahead_that_may_be_the_last_or_is_never_written() {
    // Four pages hold it to the end: of the last ones nothing is taken ahead.
    assert_eq!(appended(4, 60, true), [0, 15, 31, 48]);
    // It ends with the page.
    assert_eq!(appended(8, 33, true), [0, 15]);
    assert_eq!(appended(8, 34, true), [0, 15, 31]);
}
