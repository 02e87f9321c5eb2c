use request::TokenId;

use crate::noise::{GROUP, NoiseKey};
use crate::warp::{filters, survivors};
use crate::{Sampling, dist};

/// Draws the token for `position` (its absolute place in the target's sequence).
///
/// A pure function of its arguments: same logits, parameters, seed and position, same token, on
/// every node and in every batch. `None` when the logits hold NaN, +inf or nothing but -inf: the
/// caller reports broken arithmetic instead of drawing from it.
pub fn pick(logits: &[f32], sampling: &Sampling, position: u32) -> Option<TokenId> {
    if dist::broken(logits) {
        return None;
    }
    if sampling.params.is_greedy() {
        return argmax(logits);
    }
    let key = NoiseKey::new(sampling, position);
    let best = if filters(&sampling.params, logits.len()) {
        survivors(logits, &sampling.params)
            .into_iter()
            .map(|s| (s.scaled - libm::log(key.token(s.token)), s.token))
            .reduce(better)
    } else {
        race(logits, f64::from(sampling.params.temperature), &key)
    };
    best.filter(|(score, _)| score.is_finite()).map(|(_, token)| TokenId(token))
}

/// The most likely token; ties fall to the lower id. `None` when nothing is above -inf.
pub fn argmax(logits: &[f32]) -> Option<TokenId> {
    // Two passes: the largest of lanes that do not wait for each other, then its first place.
    const LANES: usize = 32;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (rows, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for row in rows {
        for (lane, logit) in lanes.iter_mut().zip(row) {
            *lane = larger(*lane, *logit);
        }
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    let found = (largest > f32::NEG_INFINITY).then(|| logits.iter().position(|logit| *logit == largest));
    found.flatten().map(|token| TokenId(token as u32))
}

/// The race over all tokens, opening only groups that can still win.
fn race(logits: &[f32], temperature: f64, key: &NoiseKey) -> Option<(f64, u32)> {
    // Pass 1: each group's bound, and which bound is highest: opened first, it closes most others.
    let mut bounds = Vec::with_capacity(logits.len().div_ceil(GROUP as usize));
    let mut first = 0;
    for (g, group) in logits.chunks(GROUP as usize).enumerate() {
        let noise = key.group(g as u32);
        let peak = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let bound = f64::from(peak) / temperature - libm::log(noise.minimum);
        if bound > bounds.get(first).map_or(f64::NEG_INFINITY, |(b, _)| *b) {
            first = g;
        }
        bounds.push((bound, noise));
    }
    // Pass 2: open a group while its bound reaches the best score so far (equal too: the tie rule
    // is by token id, not by the order of opening).
    let mut best: Option<(f64, u32)> = None;
    let order = std::iter::once(first).chain((0..bounds.len()).filter(|g| *g != first));
    for g in order {
        let (bound, noise) = *bounds.get(g)?;
        if best.is_some_and(|(score, _)| bound < score) {
            continue;
        }
        let start = g * GROUP as usize;
        for (token, &logit) in logits.iter().enumerate().skip(start).take(GROUP as usize) {
            if logit == f32::NEG_INFINITY {
                continue;
            }
            let token = token as u32;
            let score = f64::from(logit) / temperature - libm::log(key.member(token, noise));
            best = Some(best.map_or((score, token), |b| better(b, (score, token))));
        }
    }
    best
}

/// The higher score; ties fall to the lower id.
fn better(a: (f64, u32), b: (f64, u32)) -> (f64, u32) {
    if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use request::SamplingParams;

    /// The definition, without groups being skipped.
    fn brute(logits: &[f32], sampling: &Sampling, position: u32) -> Option<TokenId> {
        let key = NoiseKey::new(sampling, position);
        survivors(logits, &sampling.params)
            .into_iter()
            .map(|s| (s.scaled - libm::log(key.token(s.token)), s.token))
            .reduce(better)
            .map(|(_, t)| TokenId(t))
    }

    proptest! {
        #[test]
        fn skipping_groups_changes_nothing(
            logits in prop::collection::vec(prop_oneof![4 => -20f32..20.0, 1 => Just(f32::NEG_INFINITY)], 1..300),
            seed: u64, position: u32, temperature in 0.05f32..2.0,
        ) {
            let sampling = Sampling { params: SamplingParams::at(temperature), seed, choice: 0 };
            prop_assert_eq!(pick(&logits, &sampling, position), brute(&logits, &sampling, position));
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(pick(&[1.0, 3.0, 3.0], &Sampling::GREEDY, 0), Some(TokenId(1)));
    }

    #[test]
    fn broken_logits_are_not_drawn_from() {
        let sampled = Sampling { params: SamplingParams::at(1.0), seed: 1, choice: 0 };
        for bad in [vec![0.0, f32::NAN], vec![f32::INFINITY, 0.0], vec![f32::NEG_INFINITY; 3], vec![]] {
            assert_eq!(pick(&bad, &Sampling::GREEDY, 0), None, "{bad:?}");
            assert_eq!(pick(&bad, &sampled, 0), None, "{bad:?}");
        }
    }

    /// Padding the vocabulary (Qwen pads 151936 / 152064) must not change a draw: the noise belongs
    /// to the token, not to the width.
    #[test]
    fn the_width_of_the_logits_does_not_change_the_noise() {
        let sampling = Sampling { params: SamplingParams::at(0.8), seed: 3, choice: 0 };
        for position in 0..200 {
            let narrow: Vec<f32> = (0..70).map(|t| ((t * 37 + position) % 11) as f32).collect();
            let mut wide = narrow.clone();
            wide.resize(129, f32::NEG_INFINITY);
            assert_eq!(pick(&narrow, &sampling, position), pick(&wide, &sampling, position));
        }
    }
}
