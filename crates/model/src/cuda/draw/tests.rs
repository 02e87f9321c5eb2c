use request::{Sampling, SamplingParams, TokenId};
use sampling::{Change, Draw, Mask, NoiseKey};

use super::encode::Place;
use super::*;
use crate::cuda::testing::{self, Random};

#[test]
fn a_row_is_cut_into_blocks_of_8192() {
    assert_eq!(shape(1), Shape { blocks: 1, groups: 256 });
    assert_eq!(shape(8192), Shape { blocks: 1, groups: 256 });
    assert_eq!(shape(8193), Shape { blocks: 2, groups: 512 });
    assert_eq!(shape(WIDEST), Shape { blocks: 32, groups: 8192 });
}

#[test]
fn outcomes_are_read_as_written() {
    let of = |token, status| Outcome::of([token, status]);
    assert_eq!(
        [of(7, 1), of(-1, 0), of(-1, 2), of(-1, 3), of(-1, 4), of(-1, 1)],
        [
            Outcome::Token(7),
            Outcome::Host,
            Outcome::NotFinite,
            Outcome::Nothing,
            Outcome::Unfinished,
            Outcome::Unfinished
        ]
    );
}

fn fresh() -> Random {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = now.as_nanos() as u64;
    println!("seed {seed}");
    Random::new(seed)
}

/// Logits of many kinds: bell curves, a few favourites, ties, impossible ones, all equal, broken ones.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let mut row: Vec<f32> = match random.below(6) {
        0 => vec![random.normal(); vocab],
        1 => (0..vocab).map(|_| random.below(9) as f32 - 4.0).collect(),
        kind => {
            let spread = [0.3, 1.0, 2.5, 6.0][kind as usize - 2];
            let mut row = random.normals(vocab);
            row.iter_mut().for_each(|l| *l *= spread);
            row
        }
    };
    if random.below(2) == 0 {
        for _ in 0..random.below(30) {
            row[random.below(vocab as u32) as usize] += random.below(1000) as f32 * 0.02;
        }
    }
    if random.below(4) == 0 {
        let keep = random.below(3) + 1;
        row.iter_mut().for_each(|l| *l = if random.below(4) < keep { *l } else { f32::NEG_INFINITY });
    }
    if random.below(50) == 0 {
        let broken = [f32::NAN, f32::INFINITY][random.below(2) as usize];
        row[random.below(vocab as u32) as usize] = broken;
    }
    if random.below(8) == 0 {
        row[random.below(vocab as u32) as usize] = -0.0;
        row[random.below(vocab as u32) as usize] = 0.0;
    }
    row
}

fn params(random: &mut Random, vocab: usize) -> SamplingParams {
    if random.below(8) == 0 {
        return SamplingParams::GREEDY;
    }
    let mut params = SamplingParams::at([0.01, 0.3, 0.7, 1.0, 2.0][random.below(5) as usize]);
    if random.below(3) == 0 {
        params.top_k = [1, 2, 20, 50, vocab as u32 / 2, vocab as u32][random.below(6) as usize];
    }
    if random.below(3) == 0 {
        params.top_p = [1e-4, 0.3, 0.5, 0.8, 0.95, 0.999, 0.999_999_9][random.below(7) as usize];
    }
    if random.below(3) == 0 {
        params.min_p = [1e-6, 0.01, 0.1, 1.0][random.below(4) as usize];
    }
    params
}

fn draw(random: &mut Random, vocab: usize) -> Draw {
    let sampling = Sampling { params: params(random, vocab), seed: random.bits(), choice: random.below(3) };
    let mut draw = Draw::new(sampling);
    let tokens = |random: &mut Random, most: u32| {
        let count = random.below(most);
        let mut tokens: Vec<TokenId> = (0..count).map(|_| TokenId(random.below(vocab as u32 + 5))).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    if random.below(3) == 0 {
        let changed = tokens(random, 60);
        draw.edit.changes = changed
            .into_iter()
            .map(|token| Change {
                token,
                bias: match random.below(120) {
                    0 => f32::MAX,
                    n => [0.0, 5.0, -3.0][n as usize % 3],
                },
                repetition: [1.0, 1.3][random.below(2) as usize],
                penalty: random.below(3) as f32 * 0.7,
            })
            .collect();
        draw.edit.banned = tokens(random, 10);
    }
    if random.below(3) == 0 {
        let dense = random.below(2) == 0;
        let words = (0..vocab.div_ceil(32)).map(|_| {
            let bits = random.bits();
            if dense { bits as u32 } else { bits as u32 & (bits >> 32) as u32 & random.bits() as u32 }
        });
        draw.edit.mask = Some(Mask::from_words(words.collect()));
    }
    draw
}

/// How far the mass before the first token that only one side counts among the survivors is from top-p.
fn gap(row: &[f32], draw: &Draw, position: u32, tokens: [u32; 2]) -> f64 {
    let mut shown = row.to_vec();
    draw.edit.apply(&mut shown);
    let (params, key) = (draw.sampling.params, NoiseKey::new(&draw.sampling, position));
    let scaled = |t: u32| f64::from(shown[t as usize]) / f64::from(params.temperature);
    let score = |t: u32| scaled(t) - libm::log(key.token(t));
    // The winner was left out by one side.
    let disputed = if score(tokens[0]) > score(tokens[1]) { tokens[0] } else { tokens[1] };
    let mut order: Vec<u32> =
        (0..row.len() as u32).filter(|t| shown[*t as usize] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| shown[*b as usize].total_cmp(&shown[*a as usize]).then(a.cmp(b)));
    if params.top_k != 0 {
        order.truncate(params.top_k as usize);
    }
    let weight = |t: &u32| libm::exp(scaled(*t) - scaled(order[0]));
    let total: f64 = order.iter().map(weight).sum();
    let before: f64 = order.iter().take_while(|t| **t != disputed).map(weight).sum();
    (before / total - f64::from(params.top_p)).abs().min((score(tokens[0]) - score(tokens[1])).abs())
}

/// Draws `batches` batches of random rows on both sides; returns rows and differences, each of which must be a
/// near-tie.
fn compare(
    device: &Device,
    random: &mut Random,
    vocab: usize,
    stride: usize,
    rows: usize,
    batches: usize,
) -> (usize, usize) {
    let bounds = Bounds { rows: rows + 1, entries: rows * 80, masks: rows, vocab };
    let mut drawer = Drawer::new(device, bounds).unwrap();
    let (mut all, mut different) = (0, 0);
    for _ in 0..batches {
        let table: Vec<(Vec<f32>, Draw, u32)> =
            (0..rows).map(|_| (logits(random, vocab), draw(random, vocab), random.below(100_000))).collect();
        // What lies between the rows must not matter.
        let mut flat = vec![f32::NAN; rows * stride];
        for (to, (from, ..)) in flat.chunks_exact_mut(stride).zip(&table) {
            to[..vocab].copy_from_slice(from);
        }
        let buffer = Buffer::of(device, "logits", &flat).unwrap();
        let draws: Vec<Draw> = table.iter().map(|t| t.1.clone()).collect();
        let positions: Vec<u32> = table.iter().map(|t| t.2).collect();
        let encoded = encode(&draws, &positions, bounds).unwrap();
        assert!(encoded.places.iter().all(|p| *p == Place::Device));
        drawer.write(device, &encoded).unwrap();
        let poison = vec![0x5a5a_5a5au32; 2 * bounds.rows];
        drawer.results.write(device, 0, &poison).unwrap();
        drawer.near_results.write(0, &poison);
        let at = Logits { address: buffer.at(0), elements: flat.len(), stride };
        drawer.launch(device, at, rows, true).unwrap();
        let found = drawer.read(bounds.rows).unwrap();
        let beyond: Vec<u32> = drawer.results.read(device, 8 * rows, 2).unwrap();
        assert_eq!(beyond, poison[..2], "a row that was not asked for is not written");
        assert_eq!(found[rows], Outcome::Unfinished, "a row that was not asked for is not given");
        for ((row, draw, position), found) in table.iter().zip(&found) {
            all += 1;
            match (sampling::draw(row, draw, *position), found) {
                (None, Outcome::NotFinite | Outcome::Nothing) => {}
                (Some(one), Outcome::Token(two)) if one.token.0 == *two => {}
                (Some(one), Outcome::Token(two)) => {
                    let gap = gap(row, draw, *position, [one.token.0, *two]);
                    println!("near-tie? gap {gap:e}: {} and {two}, {:?}", one.token.0, draw.sampling);
                    assert!(gap < 1e-10, "not a near-tie");
                    different += 1;
                }
                (one, two) => panic!("{one:?} and {two:?} of {:?}, {vocab} logits", draw.sampling),
            }
        }
    }
    (all, different)
}

#[test]
fn tokens_are_those_of_the_host() {
    let Some(device) = testing::device() else { return };
    let mut random = fresh();
    let (mut all, mut different) = (0, 0);
    for (vocab, stride, rows, batches) in [
        (1, 4, 7, 10),
        (31, 32, 64, 10),
        (33, 36, 64, 20),
        (1000, 1000, 128, 120),
        (4099, 4100, 128, 60),
        (8192, 8192, 16, 8),
        (8193, 8200, 16, 8),
    ] {
        let (rows, differences) = compare(&device, &mut random, vocab, stride, rows, batches);
        (all, different) = (all + rows, different + differences);
    }
    println!("{different} of {all} rows differ");
    assert!(all > 20_000 && different as f64 <= 1e-5 * all as f64);
}

#[test]
fn wide_rows_are_those_of_the_host() {
    let Some(device) = testing::device() else { return };
    let mut random = fresh();
    let (mut all, mut different) = (0, 0);
    for (vocab, stride, rows) in [(151_936, 152_064, 64), (128_256, 128_256, 64), (262_144, 262_144, 16)] {
        let (rows, differences) = compare(&device, &mut random, vocab, stride, rows, 2);
        (all, different) = (all + rows, different + differences);
    }
    println!("{different} of {all} wide rows differ");
    assert_eq!(different, 0);
}

/// Chi-square of many draws of one row against its law; a law 20 % hotter must be told apart.
#[test]
fn draws_follow_the_law() {
    let Some(device) = testing::device() else { return };
    let seed = fresh().bits();
    let logits: Vec<f32> = (0..40).map(|t| ((t * 7) % 13) as f32 * 0.35).collect();
    let (rows, batches) = (512, 80);
    let bounds = Bounds { rows, entries: 1, masks: 1, vocab: logits.len() };
    let mut drawer = Drawer::new(&device, bounds).unwrap();
    let buffer = Buffer::of(&device, "logits", &logits.repeat(rows)).unwrap();
    let at = Logits { address: buffer.at(0), elements: 40 * rows, stride: 40 };
    for params in [
        SamplingParams::at(1.0),
        SamplingParams { top_k: 12, ..SamplingParams::at(0.9) },
        SamplingParams { top_p: 0.8, ..SamplingParams::at(1.0) },
        SamplingParams { min_p: 0.2, ..SamplingParams::at(1.3) },
    ] {
        let draws = vec![Draw::new(Sampling { params, seed, choice: 0 }); rows];
        let mut seen = vec![0u32; logits.len()];
        for batch in 0..batches {
            let positions: Vec<u32> = (0..rows as u32).map(|row| batch * rows as u32 + row).collect();
            drawer.write(&device, &encode(&draws, &positions, bounds).unwrap()).unwrap();
            drawer.launch(&device, at, rows, true).unwrap();
            for outcome in drawer.read(rows).unwrap() {
                let Outcome::Token(token) = outcome else { panic!("{outcome:?}") };
                seen[token as usize] += 1;
            }
        }
        let excess = |params: SamplingParams| {
            let law = sampling::probabilities(&logits, &params);
            let total = f64::from(seen.iter().sum::<u32>());
            let (mut chi, mut cells) = (0.0, 0.0f64);
            for (n, p) in seen.iter().zip(&law) {
                match *p == 0.0 {
                    true if *n > 0 => return f64::INFINITY,
                    true => {}
                    false => {
                        chi += (f64::from(*n) - p * total).powi(2) / (p * total);
                        cells += 1.0;
                    }
                }
            }
            // Standard deviations above the mean of the chi-square law.
            (chi - (cells - 1.0)) / (2.0 * (cells - 1.0)).sqrt()
        };
        let (fair, biased) =
            (excess(params), excess(SamplingParams { temperature: params.temperature * 1.2, ..params }));
        println!("{params:?}: {fair:.2} standard deviations; biased twin {biased:.1}");
        // A chi-square of 11 degrees of freedom is so far out once in a million times.
        assert!(fair < 8.0 && biased > 8.0);
    }
}

/// Host rows are left alone, rows with filters say so when launched without, and a row does not depend on others.
#[test]
fn rows_stand_alone() {
    let Some(device) = testing::device() else { return };
    let mut random = fresh();
    let vocab = 5000;
    let bounds = Bounds { rows: 4, entries: 8, masks: 1, vocab };
    let mut drawer = Drawer::new(&device, bounds).unwrap();
    let values = random.normals(4 * vocab);
    let buffer = Buffer::of(&device, "logits", &values).unwrap();
    let at = Logits { address: buffer.at(0), elements: values.len(), stride: vocab };
    let plain = Draw::new(Sampling { params: SamplingParams::at(1.0), seed: 3, choice: 0 });
    let mut filtered = plain.clone();
    filtered.sampling.params.top_k = 5;
    let mut host = plain.clone();
    host.logprobs = Some(1);
    host.edit.banned = vec![TokenId(0)];
    let draws = [plain.clone(), filtered, host, plain];
    drawer.write(&device, &encode(&draws, &[5; 4], bounds).unwrap()).unwrap();
    drawer.launch(&device, at, 4, false).unwrap();
    let found = drawer.read(4).unwrap();
    let expected = |row: usize| {
        let logits = &values[row * vocab..(row + 1) * vocab];
        Outcome::Token(sampling::draw(logits, &draws[row], 5).unwrap().token.0)
    };
    assert_eq!(found, [expected(0), Outcome::Unfinished, Outcome::Host, expected(3)]);
    assert_eq!(buffer.read::<f32>(&device, 0, values.len()).unwrap(), values);
    // Fewer rows than the geometry has.
    drawer.write(&device, &encode(&draws[..2], &[5; 2], bounds).unwrap()).unwrap();
    drawer.launch(&device, at, 4, true).unwrap();
    assert_eq!(drawer.read(2).unwrap(), [expected(0), expected(1)]);
}
