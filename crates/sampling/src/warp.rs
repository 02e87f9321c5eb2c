//! Which tokens survive top-k, top-p and min-p, and their scaled logits.

use request::SamplingParams;

/// A token that may be drawn, with its logit divided by the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Survivor {
    pub(crate) token: u32,
    pub(crate) scaled: f64,
}

/// Whether any filter is on; without one, all tokens survive and no list is made.
pub(crate) fn filters(params: &SamplingParams, vocab: usize) -> bool {
    (params.top_k != 0 && (params.top_k as usize) < vocab) || params.top_p < 1.0 || params.min_p > 0.0
}

/// Survivors in order of falling logit (ties: lower id first). Temperature first, then top-k,
/// top-p over what is left, min-p last.
pub(crate) fn survivors(logits: &[f32], params: &SamplingParams) -> Vec<Survivor> {
    let mut order: Vec<u32> =
        (0..logits.len() as u32).filter(|&t| logits[t as usize] > f32::NEG_INFINITY).collect();
    let by_rank =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    if params.top_k != 0 && (params.top_k as usize) < order.len() {
        order.select_nth_unstable_by(params.top_k as usize - 1, by_rank);
        order.truncate(params.top_k as usize);
    }
    order.sort_unstable_by(by_rank);
    let temperature = f64::from(params.temperature);
    let mut kept: Vec<Survivor> = order
        .into_iter()
        .map(|token| Survivor { token, scaled: f64::from(logits[token as usize]) / temperature })
        .collect();
    let Some(best) = kept.first().map(|s| s.scaled) else { return kept };
    if params.top_p < 1.0 {
        let weights: Vec<f64> = kept.iter().map(|s| libm::exp(s.scaled - best)).collect();
        let enough = f64::from(params.top_p) * weights.iter().sum::<f64>();
        let mut mass = 0.0;
        let keep = weights
            .iter()
            .position(|w| {
                mass += w;
                mass >= enough
            })
            .map_or(kept.len(), |last| last + 1);
        kept.truncate(keep);
    }
    if params.min_p > 0.0 {
        let floor = libm::log(f64::from(params.min_p));
        kept.retain(|s| s.scaled - best >= floor);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn ties_fall_to_the_lower_id_and_masked_tokens_never_survive() {
        assert_eq!(tokens(&[1.0, 1.0, 1.0], SamplingParams { top_k: 2, ..SamplingParams::at(1.0) }), [0, 1]);
        assert_eq!(tokens(&[f32::NEG_INFINITY, 0.0], SamplingParams::at(1.0)), [1]);
    }
}
