//! Which heads retrieve: the pattern folders of DuoAttention (arXiv 2410.10819).
//!
//! A folder holds `full_attention_heads.tsv`, one row a layer and one column a KV head, how much each head needs to
//! see everything (0 to 1), and `config.json`, of which `sink_size` and `recent_size` count. [`Pattern::map`] makes a
//! head map of it: of all heads together, the given share with the lowest values gets a window.

use std::fmt::Write as _;
use std::path::Path;

use kvcache::{HeadClass, HeadMap};
use serde_json::{Value, json};

/// Of a folder: how much every head needs its past, and the window that would do for the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// `[layer][KV head]`, 0 to 1.
    gates: Vec<Vec<f64>>,
    sink: u32,
    recent: u32,
}

/// Why a folder is no pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    #[error("{file}: {source}")]
    Io { file: &'static str, source: std::io::Error },
    #[error("{file} has more than {most} bytes")]
    TooLarge { file: &'static str, most: u64 },
    #[error("{TSV} line {line}, column {column}: {found:?} is not a finite number")]
    NotANumber { line: usize, column: usize, found: String },
    #[error("{TSV} line {line} has {found} columns and line 1 has {expected}; each is a KV head")]
    Ragged { line: usize, found: usize, expected: usize },
    #[error("{TSV} has no rows; each is a layer")]
    Empty,
    #[error("{TSV} has {layers} layers of {heads} KV heads; at most {MOST} of either are built")]
    TooMany { layers: usize, heads: usize },
    #[error("{CONFIG}: {0}")]
    Config(String),
    #[error("sparsity {0} is not between 0 and 1")]
    Sparsity(f64),
}

const TSV: &str = "full_attention_heads.tsv";
const CONFIG: &str = "config.json";
/// Larger files are no pattern.
const MOST_BYTES: u64 = 16 << 20;
/// Layers, and heads of one.
const MOST: usize = 4096;

impl Pattern {
    /// Values are cut to 0 and 1.
    ///
    /// # Errors
    /// No layers, layers of different width, a value that is not finite, a window of nothing.
    pub fn new(gates: Vec<Vec<f64>>, sink: u32, recent: u32) -> Result<Self, PatternError> {
        let heads = gates.first().map_or(0, Vec::len);
        if heads == 0 {
            return Err(PatternError::Empty);
        }
        if gates.len() > MOST || heads > MOST {
            return Err(PatternError::TooMany { layers: gates.len(), heads });
        }
        for (row, layer) in gates.iter().enumerate() {
            if layer.len() != heads {
                return Err(PatternError::Ragged { line: row + 1, found: layer.len(), expected: heads });
            }
            if let Some(column) = layer.iter().position(|gate| !gate.is_finite()) {
                let found = layer[column].to_string();
                return Err(PatternError::NotANumber { line: row + 1, column: column + 1, found });
            }
        }
        if recent == 0 {
            let why = "recent_size is 0; it counts the query's own position and must be at least 1";
            return Err(PatternError::Config(why.to_owned()));
        }
        let cut = |layer: Vec<f64>| layer.into_iter().map(|gate| gate.clamp(0.0, 1.0)).collect();
        Ok(Self { gates: gates.into_iter().map(cut).collect(), sink, recent })
    }

    /// Reads a pattern folder.
    pub fn open(folder: &Path) -> Result<Self, PatternError> {
        Self::parse(&read(folder, TSV)?, &read(folder, CONFIG)?)
    }

    /// Reads the text of the two files.
    pub fn parse(tsv: &str, config: &str) -> Result<Self, PatternError> {
        let mut gates = Vec::new();
        for (row, line) in tsv.lines().enumerate() {
            // As numpy reads such files: comments and empty lines say nothing.
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let number = |(column, field): (usize, &str)| {
                let bad = || {
                    let found = field.chars().take(40).collect();
                    PatternError::NotANumber { line: row + 1, column: column + 1, found }
                };
                field.parse::<f64>().ok().filter(|gate| gate.is_finite()).ok_or_else(bad)
            };
            let layer: Vec<f64> =
                line.split_whitespace().enumerate().map(number).collect::<Result<_, _>>()?;
            if let Some(expected) = gates.first().map(Vec::len).filter(|width| *width != layer.len()) {
                return Err(PatternError::Ragged { line: row + 1, found: layer.len(), expected });
            }
            gates.push(layer);
        }
        let config: Value =
            serde_json::from_str(config).map_err(|error| PatternError::Config(error.to_string()))?;
        let size = |key: &str| {
            let value = config.get(key).ok_or_else(|| PatternError::Config(format!("{key} is missing")))?;
            let size = value.as_u64().and_then(|size| u32::try_from(size).ok());
            size.ok_or_else(|| PatternError::Config(format!("{key} is {value}, not a number of positions")))
        };
        Self::new(gates, size("sink_size")?, size("recent_size")?)
    }

    /// Writes the two files to a folder, which is made when it is not there. `said` are more keys of `config.json`:
    /// how the values were found.
    pub fn write(&self, folder: &Path, said: &[(&str, Value)]) -> Result<(), PatternError> {
        let io = |file| move |source| PatternError::Io { file, source };
        std::fs::create_dir_all(folder).map_err(io(TSV))?;
        std::fs::write(folder.join(TSV), self.tsv()).map_err(io(TSV))?;
        let mut config = json!({ "sink_size": self.sink, "recent_size": self.recent });
        for (key, value) in said {
            config[*key] = value.clone();
        }
        let config =
            serde_json::to_string_pretty(&config).map_err(|e| PatternError::Config(e.to_string()))?;
        std::fs::write(folder.join(CONFIG), config + "\n").map_err(io(CONFIG))
    }

    /// As numpy writes it: `%.18e`, tabs between columns.
    pub fn tsv(&self) -> String {
        let mut text = String::new();
        for layer in &self.gates {
            for (column, gate) in layer.iter().enumerate() {
                let number = format!("{gate:.18e}");
                let (digits, exponent) = number.split_once('e').unwrap_or((&number, "0"));
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent),
                };
                let tab = if column == 0 { "" } else { "\t" };
                // Writing to a string does not fail.
                let _ = write!(text, "{tab}{digits}e{sign}{exponent:0>2}");
            }
            text.push('\n');
        }
        text
    }

    /// `[layer][KV head]`, 0 to 1.
    pub fn gates(&self) -> &[Vec<f64>] {
        &self.gates
    }

    pub fn window(&self) -> HeadClass {
        HeadClass::Window { sink: self.sink, recent: self.recent }
    }

    /// The head map with that share of windows: a head is Full when its value reaches the quantile `sparsity` of all
    /// values (numpy's linear one). Where values are equal, a fixed order decides that favours no layer, where the
    /// paper's code adds noise.
    pub fn map(&self, sparsity: f64) -> Result<HeadMap, PatternError> {
        if !(0.0..=1.0).contains(&sparsity) {
            return Err(PatternError::Sparsity(sparsity));
        }
        let mut order: Vec<(f64, u64, usize, usize)> = Vec::new();
        for (layer, gates) in self.gates.iter().enumerate() {
            for (head, gate) in gates.iter().enumerate() {
                order.push((*gate, shuffled((layer * MOST + head) as u64), layer, head));
            }
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        // Those below the quantile: it lies at this place in the sorted values.
        let windows = match sparsity {
            1.0 => order.len(),
            _ => (sparsity * (order.len() - 1) as f64).ceil() as usize,
        };
        let (classes, window) = match windows {
            0 => (vec![HeadClass::Full], 0),
            all if all == order.len() => (vec![self.window()], 0),
            _ => (vec![HeadClass::Full, self.window()], 1),
        };
        let mut class_of: Vec<Vec<u8>> = self.gates.iter().map(|layer| vec![0; layer.len()]).collect();
        for (_, _, layer, head) in &order[..windows] {
            class_of[*layer][*head] = window;
        }
        Ok(HeadMap { classes, class_of })
    }
}

/// The mixing step of SplitMix64 (Steele, Lea and Flood 2014).
fn shuffled(mut z: u64) -> u64 {
    z = z.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn read(folder: &Path, file: &'static str) -> Result<String, PatternError> {
    let path = folder.join(file);
    let io = |source| PatternError::Io { file, source };
    if std::fs::metadata(&path).map_err(io)?.len() > MOST_BYTES {
        return Err(PatternError::TooLarge { file, most: MOST_BYTES });
    }
    std::fs::read_to_string(path).map_err(io)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZES: &str = r#"{"sink_size": 128, "recent_size": 256, "threshold": 0.5, "sparsity": null}"#;

    fn full(map: &HeadMap) -> usize {
        let full = |class: &&u8| map.classes[usize::from(**class)] == HeadClass::Full;
        map.class_of.iter().flatten().filter(full).count()
    }

    #[test]
    fn a_folder_is_read() {
        // As published: some values lie a little outside of 0 to 1.
        let tsv = "9.980468750000000000e-01\t-2.288818359375000000e-03\n1.000976562500000000e+00\t1.25e-01\n";
        let pattern = Pattern::parse(tsv, SIZES).unwrap();
        assert_eq!(pattern.gates(), [[0.998046875, 0.0], [1.0, 0.125]]);
        assert_eq!(pattern.window(), HeadClass::Window { sink: 128, recent: 256 });
        let map = pattern.map(0.5).unwrap();
        assert_eq!(map.class_of, [[0, 1], [0, 1]]);
        let folder = tempfile::tempdir().unwrap();
        pattern.write(&folder.path().join("new"), &[("num_samples", json!(5))]).unwrap();
        assert_eq!(Pattern::open(&folder.path().join("new")).unwrap(), pattern);
        let error = Pattern::open(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("full_attention_heads.tsv: "), "{error}");
    }

    #[test]
    fn what_is_no_pattern_is_refused_by_its_place() {
        for (tsv, config, said) in [
            ("1\t2\n3\n", SIZES, "line 2 has 1 columns and line 1 has 2"),
            ("1\t2\n3\tx\n", SIZES, "line 2, column 2: \"x\" is not a finite number"),
            ("1\tnan\n", SIZES, "line 1, column 2"),
            ("1\tinf\n", SIZES, "line 1, column 2"),
            ("\n# nothing\n", SIZES, "no rows"),
            ("1\n", "{", "config.json: "),
            ("1\n", "[]", "sink_size is missing"),
            ("1\n", r#"{"sink_size": 4}"#, "recent_size is missing"),
            ("1\n", r#"{"sink_size": -4, "recent_size": 4}"#, "sink_size is -4, not a number of positions"),
            ("1\n", r#"{"sink_size": 4, "recent_size": 1e99}"#, "recent_size"),
            ("1\n", r#"{"sink_size": 4, "recent_size": 0}"#, "recent_size is 0"),
        ] {
            let error = Pattern::parse(tsv, config).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let wide = format!("{}\n", vec!["1"; MOST + 1].join("\t"));
        assert!(Pattern::parse(&wide, SIZES).unwrap_err().to_string().contains("at most 4096"));
        let pattern = Pattern::parse("1\n", SIZES).unwrap();
        for sparsity in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(pattern.map(sparsity), Err(PatternError::Sparsity(_))), "{sparsity}");
        }
    }

    #[test]
    fn a_class_without_heads_is_not_there() {
        let pattern = Pattern::parse("0.5\t0.5\n0.5\t0.5\n", SIZES).unwrap();
        assert_eq!(pattern.map(0.0).unwrap(), HeadMap::uniform(HeadClass::Full, 2, 2));
        assert_eq!(pattern.map(1.0).unwrap(), HeadMap::uniform(pattern.window(), 2, 2));
        // All are equal, and still it is so many.
        assert_eq!(full(&pattern.map(0.5).unwrap()), 2);
    }

    fn gates() -> impl Strategy<Value = Vec<Vec<f64>>> {
        (1usize..12, 1usize..9).prop_flat_map(|(layers, heads)| {
            let gate = prop_oneof![Just(0.0), Just(1.0), -0.1..1.1f64, -1e-300..1e-300f64];
            prop::collection::vec(prop::collection::vec(gate, heads), layers)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(gates in gates(), sink: u32, recent in 1u32..) {
            let pattern = Pattern::new(gates, sink, recent).unwrap();
            let config = json!({ "sink_size": sink, "recent_size": recent }).to_string();
            prop_assert_eq!(Pattern::parse(&pattern.tsv(), &config).unwrap(), pattern);
        }

        /// The definition: the quantile of all values together; more sparsity never makes a head Full.
        #[test]
        fn heads_above_the_quantile_are_full(gates in gates(), a in 0.0..1.0f64, b in 0.0..1.0f64) {
            let pattern = Pattern::new(gates, 1, 2).unwrap();
            let mut sorted: Vec<f64> = pattern.gates().concat();
            sorted.sort_by(f64::total_cmp);
            let at = a * (sorted.len() - 1) as f64;
            let low = sorted[at.floor() as usize];
            let quantile = low + (sorted[at.ceil() as usize] - low) * at.fract();
            let map = pattern.map(a).unwrap();
            prop_assert_eq!(full(&map), sorted.len() - at.ceil() as usize);
            for (gates, classes) in pattern.gates().iter().zip(&map.class_of) {
                for (gate, class) in gates.iter().zip(classes) {
                    let full = map.classes[usize::from(*class)] == HeadClass::Full;
                    // Equal values may be either.
                    prop_assert!(*gate == quantile || full == (*gate > quantile) || low == *gate);
                }
            }
            let more = pattern.map(a.max(b)).unwrap();
            let is_full = |map: &HeadMap, l: usize, h: usize| map.classes[map.class(l, h)] == HeadClass::Full;
            for (layer, heads) in map.class_of.iter().enumerate() {
                for head in 0..heads.len() {
                    prop_assert!(is_full(&map, layer, head) || !is_full(&more, layer, head));
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(tsv in "[0-9e.\\-\t\n #x]{0,60}", config in "\\PC{0,60}") {
            let _ = Pattern::parse(&tsv, &config);
            let _ = Pattern::parse(&tsv, SIZES).map(|pattern| pattern.map(0.5));
        }
    }
}
