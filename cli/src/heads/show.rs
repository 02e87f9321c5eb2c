//! `paceline heads show`: a pattern as a picture, layer by head.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kvcache::{HeadClass, HeadMap};
use model::Pattern;

/// `paceline heads show ...`
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// A pattern folder
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Mark the heads that are full when this share of all has a window
    #[arg(long, value_name = "SHARE")]
    pub sparsity: Option<f64>,
    /// Draw to a file as well
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

pub(super) fn run(args: &ShowArgs) -> Result<()> {
    let pattern = Pattern::open(&args.folder).with_context(|| args.folder.display().to_string())?;
    print!("{}", terminal(&pattern, args.sparsity)?);
    if let Some(file) = &args.svg {
        std::fs::write(file, svg(&pattern, args.sparsity)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// A line a layer: each head's value in thousandths, in brackets where it is full.
pub(super) fn terminal(pattern: &Pattern, sparsity: Option<f64>) -> Result<String> {
    let map = sparsity.map(|sparsity| pattern.map(sparsity)).transpose()?;
    let mut out = String::new();
    let heads = pattern.gates().first().map_or(0, Vec::len);
    let HeadClass::Window { sink, recent } = pattern.window() else { return Ok(out) };
    writeln!(
        out,
        "{} layers of {heads} KV heads, window: {sink} first and {recent} last",
        pattern.gates().len()
    )?;
    if let (Some(map), Some(sparsity)) = (&map, sparsity) {
        let full: usize =
            (0..map.class_of.len()).map(|layer| (0..heads).filter(|h| full(map, layer, *h)).count()).sum();
        writeln!(out, "sparsity {sparsity}: {full} of {} heads are full [ ]", heads * map.class_of.len())?;
    }
    for (layer, gates) in pattern.gates().iter().enumerate() {
        write!(out, "{layer:>4} ")?;
        for (head, gate) in gates.iter().enumerate() {
            let thousandths = (gate * 1000.0).round();
            match &map {
                Some(map) if full(map, layer, head) => write!(out, "[{thousandths:>4}]{}", shade(*gate))?,
                _ => write!(out, " {thousandths:>4} {}", shade(*gate))?,
            }
        }
        out.push('\n');
    }
    Ok(out)
}

fn full(map: &HeadMap, layer: usize, head: usize) -> bool {
    map.classes.get(map.class(layer, head)) == Some(&HeadClass::Full)
}

/// A block, the fuller the larger the value.
fn shade(gate: f64) -> char {
    const BLOCKS: [char; 5] = [' ', '\u{2591}', '\u{2592}', '\u{2593}', '\u{2588}'];
    BLOCKS[((gate * 5.0) as usize).min(4)]
}

/// A square a head, layers downwards; full ones have a frame.
pub(super) fn svg(pattern: &Pattern, sparsity: Option<f64>) -> Result<String> {
    const SIDE: usize = 18;
    const LEFT: usize = 40;
    const TOP: usize = 40;
    let map = sparsity.map(|sparsity| pattern.map(sparsity)).transpose()?;
    let heads = pattern.gates().first().map_or(0, Vec::len);
    let (width, height) = (LEFT + heads.max(16) * SIDE + 20, TOP + pattern.gates().len() * SIDE + 20);
    let HeadClass::Window { sink, recent } = pattern.window() else { return Ok(String::new()) };
    let marked =
        sparsity.map_or_else(String::new, |sparsity| format!(", framed: full at sparsity {sparsity}"));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\">KV heads (across) by layers (down)</text>\n\
         <text x=\"{LEFT}\" y=\"31\">window {sink}+{recent}{marked}</text>\n"
    );
    for (layer, gates) in pattern.gates().iter().enumerate() {
        let y = TOP + layer * SIDE;
        writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{layer}</text>", LEFT - 6, y + SIDE - 5)?;
        for (head, gate) in gates.iter().enumerate() {
            let x = LEFT + head * SIDE;
            // White to the blue of the other plots.
            let mix = |white: f64, blue: f64| (white + (blue - white) * gate).round();
            let fill = format!("rgb({},{},{})", mix(255.0, 27.0), mix(255.0, 108.0), mix(255.0, 168.0));
            let frame = match &map {
                Some(map) if full(map, layer, head) => " stroke=\"#b3262e\" stroke-width=\"2\"",
                _ => " stroke=\"#dddddd\"",
            };
            writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{0}\" height=\"{0}\" fill=\"{fill}\"{frame}>\
                 <title>layer {layer}, KV head {head}: {gate:.3}</title></rect>",
                SIDE - 3
            )?;
        }
    }
    Ok(out + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_is_drawn_and_the_full_ones_are_marked() {
        let gates = vec![vec![0.0, 0.25, 1.0], vec![0.9, 0.1, 0.2]];
        let pattern = Pattern::new(gates, 64, 256).unwrap();
        let text = terminal(&pattern, Some(0.5)).unwrap();
        assert!(text.contains("2 layers of 3 KV heads, window: 64 first and 256 last"), "{text}");
        assert!(text.contains("3 of 6 heads are full"), "{text}");
        assert!(text.contains("[ 250]") && text.contains("[1000]") && text.contains("[ 900]"), "{text}");
        assert!(text.contains("  100 ") && !text.contains("[ 100]"), "{text}");
        assert!(!terminal(&pattern, None).unwrap().contains('['));
        let svg = svg(&pattern, Some(0.5)).unwrap();
        assert_eq!(svg.matches("<title>").count(), 6);
        assert_eq!(svg.matches("#b3262e").count(), 3);
        assert!(terminal(&pattern, Some(2.0)).unwrap_err().to_string().contains("between 0 and 1"));
    }
}
