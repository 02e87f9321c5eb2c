//! What a plan costs. Figures, not a test: run with
//! `cargo test -p scheduler --release -- --ignored --nocapture cost`.

// A stopwatch around the scheduler, not in it.
#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use super::*;

#[test]
#[ignore = "prints figures"]
fn cost_of_planning_256_sequences() {
    let scheduler = |slots| {
        Scheduler::new(Config {
            token_budget: 4096,
            tile: 1,
            policy: Policy::Sarathi,
            max_waiting: 1024,
            context: 131_072,
            slots,
            tree_rows: 64,
            classes: vec![(HeadClass::Full, 40_000)],
            prefix_cache: true,
        })
    };
    let new = |id: u64, prompt: u32, max: u32| NewSequence {
        id: SequenceId(id),
        tokens: (0..prompt).map(|at| token(id % 8, at)).collect(),
        limit: prompt + max,
        longest: prompt + max,
        priority: 0,
        root: PrefixRoot::salted(""),
        settled: u32::MAX,
    };
    let drafts = [TokenId(7); 4];
    let steps = |scheduler: &mut Scheduler, drafts: &[TokenId], n: u32| {
        let (mut planned, mut committed) = (0.0, 0.0);
        for _ in 0..n {
            let start = Instant::now();
            let plan = scheduler.plan(|_| Ahead::Go(drafts));
            planned += start.elapsed().as_secs_f64() * 1e6 / f64::from(n);
            let start = Instant::now();
            for slice in &plan.slices {
                let picks = if slice.picks { &drafts[..1] } else { &[] };
                scheduler.commit(slice, 0, None, picks);
            }
            committed += start.elapsed().as_secs_f64() * 1e6 / f64::from(n);
        }
        (planned, committed)
    };
    let mut busy = scheduler(256);
    (0..256).for_each(|id| busy.add(new(id, 512, 4000)).unwrap());
    steps(&mut busy, &drafts, 100);
    let (plan, commit) = steps(&mut busy, &drafts, 200);
    println!("256 decodes with 4 drafts each: plan {plan:.0} us, commit {commit:.0} us");
    busy.add(new(300, 100_000, 10)).unwrap();
    let (plan, commit) = steps(&mut busy, &drafts, 200);
    println!("... and 100k tokens wait for a slot: plan {plan:.0} us, commit {commit:.0} us");
    let mut short = scheduler(257);
    (0..256).for_each(|id| short.add(new(id + 1000 * id, 2000, 4000)).unwrap());
    steps(&mut short, &drafts, 200);
    let prompt = new(300, 100_000, 10);
    let start = Instant::now();
    short.add(prompt).unwrap();
    steps(&mut short, &drafts, 1);
    println!("hashing 100k tokens at first sight: {:.0} us", start.elapsed().as_secs_f64() * 1e6);
    let (plan, commit) = steps(&mut short, &drafts, 200);
    let (running, waiting) = (short.running(), short.waiting());
    println!("{running} run, {waiting} wait for pages: plan {plan:.0} us, commit {commit:.0} us");
}
