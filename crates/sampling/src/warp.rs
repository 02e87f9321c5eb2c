//! Which tokens survive top-k, top-p, min-p and typical-p, and their scaled logits.

use request::SamplingParams;

/// A token that may be drawn, with its logit divided by the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Survivor {
    pub(crate) token: u32,
    pub(crate) scaled: f64,
}

/// Whether any filter is on; without one, all tokens survive and no list is made.
pub(crate) fn filters(params: &SamplingParams, vocab: usize) -> bool {
    (params.top_k != 0 && (params.top_k as usize) < vocab)
        || params.top_p < 1.0
        || params.min_p > 0.0
        || params.typical_p < 1.0
}

/// Survivors in order of falling logit (ties: lower id first). Temperature first, then top-k,
/// top-p over what is left, min-p, then typical-p.
pub(crate) fn survivors(logits: &[f32], params: &SamplingParams) -> Vec<Survivor> {
    let mut order: Vec<u32> =
        (0..logits.len() as u32).filter(|&t| logits[t as usize] > f32::NEG_INFINITY).collect();
    let Some(best) = order.iter().map(|&t| logits[t as usize]).reduce(f32::max) else { return Vec::new() };
    let by_rank =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    if params.top_k != 0 && (params.top_k as usize) < order.len() {
        order.select_nth_unstable_by(params.top_k as usize - 1, by_rank);
        order.truncate(params.top_k as usize);
        // Sums below must not depend on how the selection left them.
        order.sort_unstable();
    }
    let temperature = f64::from(params.temperature);
    let scaled = |token: u32| f64::from(logits[token as usize]) / temperature;
    let best = f64::from(best) / temperature;
    let floor = if params.min_p > 0.0 { libm::log(f64::from(params.min_p)) } else { f64::NEG_INFINITY };
    if params.top_p < 1.0 {
        let weight = |token: u32| libm::exp(scaled(token) - best);
        let total: f64 = order.iter().map(|&t| weight(t)).sum();
        keep_mass(&mut order, by_rank, weight, f64::from(params.top_p) * total);
    } else {
        // Before the sort: of 150k tokens a handful is mostly left.
        order.retain(|t| scaled(*t) - best >= floor);
        order.sort_unstable_by(by_rank);
    }
    let mut kept: Vec<Survivor> = order
        .into_iter()
        .map(|token| Survivor { token, scaled: scaled(token) })
        .take_while(|s| s.scaled - best >= floor)
        .collect();
    if params.typical_p < 1.0 {
        keep_typical(&mut kept, best, f64::from(params.typical_p));
    }
    kept
}

/// Keeps the tokens whose surprise is nearest to the entropy until their probability reaches `enough`
/// (arXiv 2202.00666), in the order they had.
fn keep_typical(kept: &mut Vec<Survivor>, best: f64, enough: f64) {
    let total: f64 = kept.iter().map(|s| libm::exp(s.scaled - best)).sum();
    let shift = best + libm::log(total);
    let entropy: f64 = kept.iter().map(|s| libm::exp(s.scaled - shift) * (shift - s.scaled)).sum();
    let distance = |s: &Survivor| libm::fabs(shift - s.scaled - entropy);
    let mut nearest: Vec<usize> = (0..kept.len()).collect();
    // Stable: equals stay in rank order.
    nearest.sort_by(|a, b| distance(&kept[*a]).total_cmp(&distance(&kept[*b])));
    let (mut mass, mut typical) = (0.0, vec![false; kept.len()]);
    for at in nearest {
        typical[at] = true;
        mass += libm::exp(kept[at].scaled - shift);
        if mass >= enough {
            break;
        }
    }
    let mut typical = typical.into_iter();
    kept.retain(|_| typical.next().unwrap_or(false));
}

/// Keeps the smallest set of first-ranked tokens whose weight reaches `enough`, in rank order. Mostly
/// a few dozen of 150k tokens do, so the rest is never sorted.
fn keep_mass(
    order: &mut Vec<u32>,
    by_rank: impl Fn(&u32, &u32) -> std::cmp::Ordering + Copy,
    weight: impl Fn(u32) -> f64,
    enough: f64,
) {
    let (mut sorted, mut mass) = (0, 0.0);
    while sorted < order.len() {
        let end = (sorted.max(64) * 4).min(order.len());
        if end < order.len() {
            order[sorted..].select_nth_unstable_by(end - sorted, by_rank);
        }
        order[sorted..end].sort_unstable_by(by_rank);
        for at in sorted..end {
            mass += weight(order[at]);
            if mass >= enough {
                order.truncate(at + 1);
                return;
            }
        }
        sorted = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(logits: &[f32], params: SamplingParams) -> Vec<u32> {
        survivors(logits, &params).iter().map(|s| s.token).collect()
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities at temperature 1: 0.4, 0.1, 0.2, 0.3.
        let logits: Vec<f32> = [0.4f32, 0.1, 0.2, 0.3].iter().map(|p| p.ln()).collect();
        let all = SamplingParams::at(1.0);
        assert_eq!(tokens(&logits, all), [0, 3, 2, 1]);
        assert_eq!(tokens(&logits, SamplingParams { top_k: 2, ..all }), [0, 3]);
        assert_eq!(tokens(&logits, SamplingParams { top_p: 0.65, ..all }), [0, 3]);
        assert_eq!(tokens(&logits, SamplingParams { top_p: 0.05, ..all }), [0]);
        assert_eq!(tokens(&logits, SamplingParams { min_p: 0.45, ..all }), [0, 3, 2]);
        // top-p counts within what top-k left: 0.4/0.7 = 0.57.
        assert_eq!(tokens(&logits, SamplingParams { top_k: 2, top_p: 0.5, ..all }), [0]);
    }

    proptest! {
        /// The same tokens in the same order as when the floor comes after the sort.
        #[test]
        fn min_p_keeps_what_is_above_its_floor(
            raw in prop::collection::vec(-40i32..40, 1..300), min_p in 0.001f32..1.0,
        ) {
            let logits: Vec<f32> = raw.iter().map(|l| *l as f32 * 0.13).collect();
            let all = survivors(&logits, &SamplingParams::at(0.8));
            let floor = libm::log(f64::from(min_p));
            let above: Vec<u32> =
                all.iter().filter(|s| s.scaled - all[0].scaled >= floor).map(|s| s.token).collect();
            prop_assert_eq!(tokens(&logits, SamplingParams { min_p, ..SamplingParams::at(0.8) }), above);
        }

        /// The same set as the definition over a full sort.
        #[test]
        fn top_p_sorts_no_more_than_it_must(
            raw in prop::collection::vec(-9i32..9, 1..3000), top_p in 0.01f32..1.0, top_k in 0u32..3000,
        ) {
            let logits: Vec<f32> = raw.iter().map(|l| *l as f32 * 0.7).collect();
            let params = SamplingParams { top_p, top_k, ..SamplingParams::at(0.8) };
            let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
            ranked.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            if top_k != 0 {
                ranked.truncate(top_k as usize);
            }
            let weight = |t: u32| (f64::from(logits[t as usize]) / 0.8f32 as f64).exp();
            let total: f64 = ranked.iter().map(|t| weight(*t)).sum();
            let kept = tokens(&logits, params);
            prop_assert_eq!(&kept[..], &ranked[..kept.len()]);
            let mass = |tokens: &[u32]| tokens.iter().map(|t| weight(*t)).sum::<f64>() / total;
            prop_assert!(mass(&kept) >= f64::from(top_p) - 1e-9);
            prop_assert!(mass(&kept[..kept.len() - 1]) < f64::from(top_p) + 1e-9);
        }
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125: the entropy is 1.75 bits, so the second (2 bits) is the most
    /// typical, then the first (1 bit), then the rest (3 bits).
    #[test]
    fn typical_p_keeps_what_surprises_as_expected() {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let typical = |typical_p| tokens(&logits, SamplingParams { typical_p, ..SamplingParams::at(1.0) });
        assert_eq!(typical(0.2), [1]);
        assert_eq!(typical(0.6), [0, 1]);
        assert_eq!(typical(0.8), [0, 1, 2]);
        assert_eq!(typical(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn ties_fall_to_the_lower_id_and_masked_tokens_never_survive() {
        assert_eq!(tokens(&[1.0, 1.0, 1.0], SamplingParams { top_k: 2, ..SamplingParams::at(1.0) }), [0, 1]);
        assert_eq!(tokens(&[f32::NEG_INFINITY, 0.0], SamplingParams::at(1.0)), [1]);
    }
}
