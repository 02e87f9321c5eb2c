use clap::Parser as _;

use super::*;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: ScheduleArgs,
}

fn args(words: &str) -> ScheduleArgs {
    Line::parse_from(["schedule"].into_iter().chain(words.split_whitespace())).args
}

fn trace(text: &str) -> Trace {
    Trace::parse(text).unwrap()
}

fn limits(policy: Policy, rows: u32) -> Limits {
    Limits { policy, rows, slots: 16, pages: 10_000 }
}

#[test]
fn a_made_trace_is_what_was_asked_for_and_the_same_each_time() {
    let lengths = Lengths { requests: 20_000, ..args("").lengths };
    let made = Trace::made(&lengths).unwrap();
    assert_eq!(made, Trace::made(&lengths).unwrap());
    assert_ne!(made, Trace::made(&Lengths { seed: 1, ..lengths.clone() }).unwrap());
    let mut outputs: Vec<u32> = made.asked().iter().map(|a| a.output).collect();
    outputs.sort_unstable();
    let near = |found: u32, wanted: f64| (f64::from(found) / wanted - 1.0).abs() < 0.05;
    assert!(
        near(outputs[10_000], 415.0) && near(outputs[18_000], 830.0),
        "{} {}",
        outputs[10_000],
        outputs[18_000]
    );
    assert!((made.rate() - 1.0).abs() < 0.05 && (made.at(3.5).rate() - 3.5).abs() < 1e-9);
    assert!(made.longest() <= 8192);
}

#[test]
fn traces_are_read_or_refused_by_line() {
    let two = "{\"arrival\": 2.0, \"prompt\": 5, \"output\": 1}\n\n{\"arrival\": 0.5, \"prompt\": 3, \"output\": 2}\n";
    assert_eq!(trace(two).asked()[0].prompt, 3, "by arrival");
    for (line, why) in [
        ("{\"arrival\": -1, \"prompt\": 5, \"output\": 1}", "line 1: arrival"),
        ("{\"arrival\": 0, \"prompt\": 0, \"output\": 1}", "line 1: prompt"),
        ("{\"arrival\": 0, \"prompt\": 5, \"output\": 0}", "line 1: output"),
        ("{\"arrival\": 0, \"prompt\": 5, \"output\": 1, \"x\": 1}", "line 1"),
        ("{\"arrival\": 0, \"prompt\": 5, \"output\": 1}", "two requests"),
    ] {
        let error = format!("{:#}", Trace::parse(line).unwrap_err());
        assert!(error.contains(why), "{error}");
    }
}

/// By hand: a prompt of 100 in one step, then two decodes of one token.
#[test]
fn a_replay_takes_what_its_steps_take() {
    let cost = args("").cost;
    let trace = trace(
        "{\"arrival\": 0, \"prompt\": 100, \"output\": 3}\n{\"arrival\": 50, \"prompt\": 1, \"output\": 1}",
    );
    let outcome = replay(&trace, &cost, &limits(Policy::Sarathi, 512)).unwrap();
    let prefill = cost.step([(100, 0)]) * 1e3;
    let decodes = [cost.step([(1, 100)]) * 1e3, cost.step([(1, 101)]) * 1e3];
    let tbt = outcome.tbt_ms.unwrap();
    assert!((outcome.ttft_ms.max - prefill).abs() < 1e-6, "{} {prefill}", outcome.ttft_ms.max);
    assert!((tbt.sum - decodes[0] - decodes[1]).abs() < 1e-6 && tbt.count == 2);
    assert_eq!(outcome.step_ms.count, 4);
}

/// No step takes longer than a full budget at the longest context does (algorithms.md 4.5).
#[test]
fn under_sarathi_no_pause_is_longer_than_a_step_of_the_budget() {
    let cost = args("").cost;
    let trace = Trace::made(&Lengths { requests: 60, ..args("").lengths }).unwrap().at(4.0);
    let limits = Limits { pages: 100_000, ..limits(Policy::Sarathi, 512) };
    let outcome = replay(&trace, &cost, &limits).unwrap();
    let others: Vec<(u32, u32)> = (1..limits.slots).map(|_| (1, 8192)).collect();
    let worst = cost.step(others.into_iter().chain([(512 - limits.slots + 1, 8192)])) * 1e3;
    let tbt = outcome.tbt_ms.unwrap();
    assert!(outcome.preemptions == 0 && tbt.max <= worst, "{} over {worst}", tbt.max);
    let stalled =
        replay(&trace, &cost, &Limits { policy: Policy::PrefillFirst, rows: 8192, ..limits }).unwrap();
    assert!(stalled.tbt_ms.unwrap().max > worst, "whole prompts stall it for longer");
}

#[test]
fn capacity_is_the_edge_of_the_promise() {
    let cost = args("").cost;
    let trace = Trace::made(&Lengths { requests: 80, ..args("").lengths }).unwrap();
    let promise = Promise { tbt: 0.08, delay: 2.0 };
    let limits = limits(Policy::Sarathi, 512);
    let found = capacity(&trace, &cost, &limits, &promise).unwrap();
    let kept = |rate: f64| promise.kept(&replay(&trace.at(rate), &cost, &limits).unwrap());
    assert!(found > 0.0 && kept(found) && !kept(found * 1.02), "{found}");
    let never = Promise { tbt: 1e-6, delay: 2.0 };
    assert_eq!(capacity(&trace, &cost, &limits, &never).unwrap(), 0.0);
}

#[test]
fn a_request_that_never_fits_is_named() {
    let trace = trace(
        "{\"arrival\": 0, \"prompt\": 10, \"output\": 3}\n{\"arrival\": 5, \"prompt\": 900, \"output\": 1}",
    );
    let small = Limits { pages: 4, ..limits(Policy::Sarathi, 512) };
    let error = format!("{:#}", replay(&trace, &args("").cost, &small).unwrap_err());
    assert!(error.contains("request 2"), "{error}");
}

#[test]
fn bad_arguments_are_named() {
    for (words, flag) in [
        ("--flops 0", "--flops"),
        ("--budget 0", "--budget"),
        ("--rates 0", "--rates"),
        ("--requests 1", "--requests"),
        ("--prompt-median 10 --prompt-p90 5", "--prompt-median"),
    ] {
        let error = run(&args(words)).unwrap_err().to_string();
        assert!(error.contains(flag), "{error}");
    }
}

#[test]
fn the_report_has_every_policy() {
    let dir = tempfile::tempdir().unwrap();
    let (json, plot) = (dir.path().join("a.json"), dir.path().join("a.svg"));
    let words = format!("--requests 20 --rates 1,2 --json {} --plot {}", json.display(), plot.display());
    run(&args(&words)).unwrap();
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let policies = report["policies"].as_array().unwrap();
    let names: Vec<&str> = policies.iter().map(|p| p["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["sarathi", "prefill-first", "decode-first"]);
    assert!(policies.iter().all(|p| p["runs"].as_array().unwrap().len() == 2));
    let plot = std::fs::read_to_string(plot).unwrap();
    assert_eq!(plot.matches("<polyline").count(), 4 * 3);
}
