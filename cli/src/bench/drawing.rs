//! Lines over an axis, as one SVG without anything from outside.

use std::fmt::Write as _;

use super::figure;

const WIDTH: f64 = 720.0;
const PANEL: f64 = 220.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 4] = ["#1b6ca8", "#e07b00", "#b3262e", "#4a7c2f"];

/// One drawing: at most four lines over the same axis.
#[derive(Debug)]
pub struct Panel {
    pub title: &'static str,
    /// Label and points. One without points is not drawn.
    pub lines: Vec<(&'static str, Vec<(f64, f64)>)>,
}

/// Panels under each other. `axis` names what differs, `title` stands above.
pub fn svg(title: &str, axis: &str, mut panels: Vec<Panel>) -> String {
    for panel in &mut panels {
        panel.lines.retain(|(_, points)| !points.is_empty());
    }
    panels.retain(|panel| !panel.lines.is_empty());
    let height = 40.0 + panels.len() as f64 * (PANEL + TOP + BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    for (nth, panel) in panels.iter().enumerate() {
        draw(&mut out, panel, axis, 40.0 + nth as f64 * (PANEL + TOP + BOTTOM) + TOP);
    }
    out + "</svg>\n"
}

/// A drawing as a page.
pub fn html(title: &str, svg: &str) -> String {
    let head = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{head}</title>\n<body>\n{svg}</body></html>\n"
    )
}

fn draw(out: &mut String, panel: &Panel, axis: &str, top: f64) {
    let points = || panel.lines.iter().flat_map(|(_, points)| points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0f64, f64::max);
    let (xs, ys) = (ticks(most(|p| p.0)), ticks(most(|p| p.1)));
    let end = |ticks: &[f64]| ticks.last().copied().unwrap_or(1.0);
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
    let x = |v: f64| LEFT + v / end(&xs) * (right - LEFT);
    let y = |v: f64| bottom - v / end(&ys) * PANEL;
    let mut put = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{line}");
    };
    put(format!(
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        top - 10.0,
        escape(panel.title)
    ));
    for tick in &ys {
        let at = y(*tick);
        put(format!("<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"));
        let (left, low) = (LEFT - 8.0, at + 4.0);
        put(format!("<text x=\"{left}\" y=\"{low:.1}\" text-anchor=\"end\">{}</text>", tick_label(*tick)));
    }
    for tick in &xs {
        let (at, low) = (x(*tick), bottom + 16.0);
        put(format!("<text x=\"{at:.1}\" y=\"{low}\" text-anchor=\"middle\">{}</text>", tick_label(*tick)));
    }
    let (middle, low) = (f64::midpoint(LEFT, right), bottom + 32.0);
    put(format!("<text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{}</text>", escape(axis)));
    for (nth, ((label, points), colour)) in panel.lines.iter().zip(COLOURS).enumerate() {
        let path: Vec<String> = points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        put(format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            path.join(" ")
        ));
        for (a, b) in points {
            let tip = format!("{axis} {a}: {label} {}", figure(*b));
            let (cx, cy) = (x(*a), y(*b));
            put(format!(
                "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"><title>{}</title></circle>",
                escape(&tip)
            ));
        }
        let (at, low) = (right + 16.0, top + 14.0 + 18.0 * nth as f64);
        put(format!("<text x=\"{at}\" y=\"{low}\" fill=\"{colour}\">{}</text>", escape(label)));
    }
}

/// Round figures from 0 to the first that is not below `most`: four to six of them.
fn ticks(most: f64) -> Vec<f64> {
    if !(most.is_finite() && most > 0.0) {
        return vec![0.0, 1.0];
    }
    let raw = most / 5.0;
    let scale = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|s| s * scale >= raw).unwrap_or(10.0) * scale;
    let count = (most / step - 1e-9).ceil() as usize;
    (0..=count).map(|nth| nth as f64 * step).collect()
}

fn tick_label(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        for (most, wanted) in [
            (1.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (97.0, vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (11.0, vec![0.0, 2.5, 5.0, 7.5, 10.0, 12.5]),
            (0.0, vec![0.0, 1.0]),
            (f64::NAN, vec![0.0, 1.0]),
        ] {
            let got = ticks(most);
            assert_eq!(got.len(), wanted.len(), "{most}: {got:?}");
            assert!(got.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{most}: {got:?}");
        }
    }
}
