//! Latency and throughput against load.

use super::summary::Summary;
use crate::bench::drawing::{self, Panel};
use crate::bench::spread::Spread;

/// The plot of a sweep. `axis` names what differs, `title` stands above.
pub fn svg(title: &str, axis: &str, runs: &[(f64, &Summary)]) -> String {
    drawing::svg(title, axis, panels(runs))
}

/// The same as a page.
pub fn html(title: &str, axis: &str, runs: &[(f64, &Summary)]) -> String {
    drawing::html(title, &svg(title, axis, runs))
}

fn panels(runs: &[(f64, &Summary)]) -> Vec<Panel> {
    let spread = |tag: &str, pick: fn(&Spread) -> f64| {
        runs.iter().filter_map(|(at, s)| Some((*at, pick(&s.spread(tag)?)))).collect::<Vec<_>>()
    };
    let latency = |title, tag| Panel {
        title,
        lines: vec![
            ("p50", spread(tag, |s| s.p50)),
            ("p90", spread(tag, |s| s.p90)),
            ("p99", spread(tag, |s| s.p99)),
        ],
    };
    let one =
        |tag: &str| runs.iter().filter_map(|(at, s)| Some((*at, s.one(tag)?))).collect::<Vec<(f64, f64)>>();
    let failed = runs.iter().map(|(at, s)| (*at, s.one("request_error_rate").unwrap_or(0.0))).collect();
    vec![
        latency("Time to first token, ms", "time_to_first_token"),
        latency("Inter token latency, ms", "inter_token_latency"),
        latency("End to end, ms", "request_latency"),
        Panel { title: "Output tokens a second", lines: vec![("tokens/s", one("output_token_throughput"))] },
        Panel {
            title: "Requests a second",
            lines: vec![("finished", one("request_throughput")), ("within limits", one("goodput"))],
        },
        Panel { title: "Requests that failed, %", lines: vec![("failed", failed)] },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn the_plot_is_whole_and_needs_nothing_from_outside() {
        let slow = Summary::of(&[record(0, 0, &[100, 200, 400], 3)], &[], 3);
        let fast = Summary::of(&[record(0, 0, &[10, 20, 30], 3)], &[], 3);
        let empty = Summary::of(&[], &[], 3);
        let runs = [(1.0, &fast), (2.0, &slow), (3.0, &empty)];
        let page = html("a <b> & c", "requests/s", &runs);
        assert!(page.contains("a &lt;b&gt; &amp; c") && !page.contains("<b>"), "{page}");
        assert!(page.matches("http").count() == 1 && !page.contains("<script"), "only the namespace");
        for (open, close) in [("<svg", "</svg>"), ("<text", "</text>"), ("<circle", "</circle>")] {
            assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
        }
        // Five panels (no limits were set); the points of the empty run are missing, but for its failures.
        assert_eq!(page.matches("<polyline").count(), 3 * 3 + 1 + 1 + 1);
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
