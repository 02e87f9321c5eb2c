//! `paceline up` and `paceline demo` as a person runs them: real processes, real weights.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr)]

#[path = "support/cluster.rs"]
mod cluster;

use std::time::Duration;

use cli::client::Client;
use serde_json::json;
use telemetry::testing::Collector;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use cluster::{Cluster, HANG, PACELINE, has_model};

const MODEL: &str = "smollm2-135m";

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_streams_an_answer_and_stops() {
    if !has_model(MODEL) {
        return;
    }
    let words =
        ["demo", "--target", MODEL, "--drafter", MODEL, "--max-tokens", "40", "--prompt", "What is gravity?"];
    let running = Command::new(PACELINE).args(words).kill_on_drop(true).output();
    let output = timeout(HANG, running).await.unwrap().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{out}\n{err}");
    let last = out.lines().last().unwrap();
    let figures: Vec<f64> = ["tokens/s=", " plain_tokens/s=", " mean_acceptance_length="]
        .iter()
        .map(|key| {
            let from = last.find(key).unwrap_or_else(|| panic!("{key} is missing in {last:?}")) + key.len();
            last[from..].split_whitespace().next().unwrap().parse().unwrap()
        })
        .collect();
    assert!(figures[0] > 0.0 && figures[1] > 0.0 && figures[2] >= 1.0, "{last}");
    for (role, pid) in pids(&out) {
        assert!(!alive(pid), "{role} outlived the demo");
    }
    assert_eq!(pids(&out).len(), 3, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drafter_killed_in_the_middle_of_an_answer_changes_nothing_but_the_speed() {
    if !has_model(MODEL) {
        return;
    }
    let (mut up, url, pids) = up(&[]).await;
    let drafter = pids.iter().find(|(role, _)| role.starts_with("drafter")).unwrap().1;
    let client = Client::new(&url).unwrap();
    let body = |strategy| {
        json!({
            "model": MODEL, "messages": [{ "role": "user", "content": "What is gravity?" }],
            "temperature": 0.8, "seed": 3, "max_tokens": 64, "speculation": strategy,
        })
    };
    let plain = client.chat(body(json!({ "strategy": "none" })), |_| {}).await.unwrap();
    let mut killed = false;
    let drafted = client
        .chat(body(json!({ "strategy": "lockstep", "k": 4 })), |segment| {
            if segment.drafted && !std::mem::replace(&mut killed, true) {
                let kill = std::process::Command::new("kill").args(["-9", &drafter.to_string()]).status();
                assert!(kill.unwrap().success());
            }
        })
        .await
        .unwrap();
    assert!(killed, "no draft was accepted before the end");
    assert_eq!(drafted.text, plain.text);
    let after = client.chat(body(json!({ "strategy": "auto" })), |_| {}).await.unwrap();
    assert_eq!(after.text, plain.text);

    // Ctrl-C: everything drains and ends.
    let pid = up.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let status = timeout(HANG, up.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    for (role, pid) in pids {
        assert!(!alive(pid), "{role} outlived `up`");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_up_and_settings_of_one_role_stay_with_it() {
    if !has_model(MODEL) {
        return;
    }
    // `up` starts although the coordinator knows no `rank` (all of them get the variable).
    let (mut up, _, pids) = up(&[("PACELINE_RANK__SLOTS", "2")]).await;
    let pid = up.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = timeout(HANG, up.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    for (role, pid) in pids {
        assert!(!alive(pid), "{role} outlived `up`");
    }
}

/// What three processes say of one request: over OTLP to one collector, and each on its own port.
#[tokio::test(flavor = "multi_thread")]
async fn one_trace_holds_spans_of_every_process_and_each_has_metrics() {
    if !has_model(MODEL) {
        return;
    }
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let collector = Collector::start().await.unwrap();
    let endpoint = collector.endpoint();
    let environment = [
        ("PACELINE_TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()),
        ("PACELINE_TELEMETRY__SPANS_INTERVAL", "100ms"),
        ("PACELINE_TELEMETRY__METRICS_INTERVAL", "100ms"),
    ];
    let Cluster { mut up, url, said } = Cluster::start(MODEL, MODEL, &environment).await;
    let body = json!({
        "model": MODEL, "messages": [{ "role": "user", "content": "What is gravity?" }], "max_tokens": 48,
    });
    let client = reqwest::Client::new();
    let asked = client.post(format!("{url}/v1/chat/completions")).json(&body);
    let asked = asked.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    assert_eq!(asked.send().await.unwrap().status(), 200);

    let metrics: Vec<&str> = said.split_whitespace().filter(|word| word.ends_with("/metrics")).collect();
    assert_eq!(metrics.len(), 3, "{said}");
    let mut texts = Vec::new();
    for address in metrics {
        texts.push(client.get(address).send().await.unwrap().text().await.unwrap());
    }
    for (text, service, metric) in [
        (&texts[0], "paceline-coordinator", "paceline_generation_tokens_total"),
        (&texts[1], "paceline-worker", "paceline_request_decode_time_seconds_count"),
        (&texts[2], "paceline-drafter", "paceline_step_duration_seconds_count"),
    ] {
        let info = text.lines().find(|line| line.starts_with("target_info{")).unwrap_or_default();
        assert!(info.contains(&format!("service_name=\"{service}\"")), "{info}");
        let counts = text.lines().any(|l| l.starts_with(&format!("{metric}{{")) && !l.ends_with(" 0"));
        assert!(counts, "{metric} of {service}:\n{text}");
    }

    // Ended by Ctrl-C, the processes send what is left.
    let pid = up.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(timeout(HANG, up.wait()).await.unwrap().unwrap().success());
    for (service, span, metric) in [
        ("paceline-coordinator", format!("chat {MODEL}"), "paceline.generation_tokens"),
        ("paceline-worker", "engine.generate".to_owned(), "paceline.request_decode_time"),
        ("paceline-drafter", "draft.session".to_owned(), "paceline.step_duration"),
    ] {
        let spans = collector.spans();
        let here = |s: &telemetry::testing::Span| s.trace == TRACE && s.service == service && s.name == span;
        assert!(spans.iter().any(here), "{span} of {service}: {spans:#?}");
        assert!(collector.metrics(service).iter().any(|m| m == metric), "{metric} of {service}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_outlives_a_killed_up() {
    if !has_model(MODEL) {
        return;
    }
    let (mut up, _, pids) = up(&[]).await;
    up.kill().await.unwrap();
    for (role, pid) in pids {
        let gone = async {
            while alive(pid) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(HANG, gone).await.unwrap_or_else(|_| panic!("{role} outlived a killed `up`"));
    }
}

/// A cluster whose drafter is its target's twin; its URL and its processes.
async fn up(environment: &[(&str, &str)]) -> (Child, String, Vec<(String, u32)>) {
    let Cluster { up, url, said } = Cluster::start(MODEL, MODEL, environment).await;
    (up, url, pids(&said))
}

/// Names and process ids from the table that `up` prints.
fn pids(said: &str) -> Vec<(String, u32)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        (words.next()? == "pid").then(|| (name, words.next().unwrap().parse().unwrap()))
    };
    said.lines().filter_map(row).collect()
}

fn alive(pid: u32) -> bool {
    // A zombie that its parent has not awaited is gone too.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}
