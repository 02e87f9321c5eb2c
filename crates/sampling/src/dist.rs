use request::SamplingParams;

use crate::warp::{filters, survivors};

/// The law that [`crate::pick`] draws from, as probabilities by token. At temperature 0: one-hot.
pub fn probabilities(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut law = vec![0.0; logits.len()];
    if params.is_greedy() {
        if let Some(token) = crate::argmax(logits) {
            law[token.0 as usize] = 1.0;
        }
        return law;
    }
    if !filters(params, logits.len()) {
        // Nobody is left out, so nothing is sorted: that would take ten times as long for 150k tokens.
        let temperature = f64::from(params.temperature);
        let best = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)) / temperature;
        if best == f64::NEG_INFINITY {
            return law;
        }
        for (p, logit) in law.iter_mut().zip(logits) {
            *p = libm::exp(f64::from(*logit) / temperature - best);
        }
        let total: f64 = law.iter().sum();
        law.iter_mut().for_each(|p| *p /= total);
        return law;
    }
    let kept = survivors(logits, params);
    let Some(best) = kept.first().map(|s| s.scaled) else { return law };
    let total: f64 = kept.iter().map(|s| libm::exp(s.scaled - best)).sum();
    for s in kept {
        law[s.token as usize] = libm::exp(s.scaled - best) / total;
    }
    law
}

/// NaN or +inf somewhere.
pub(crate) fn broken(logits: &[f32]) -> bool {
    // A fold instead of `any`: no early exit, so it vectorises.
    !logits.iter().fold(true, |fine, &l| fine & (l < f32::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampling, pick};

    /// Chi-square over many positions: the draw follows the law, and a law that is off by a little
    /// is told apart (the test can fail).
    #[test]
    fn draws_follow_the_law() {
        let logits: Vec<f32> = (0..40).map(|t| ((t * 7) % 13) as f32 * 0.35).collect();
        for params in [
            SamplingParams::at(1.0),
            SamplingParams::at(0.6),
            SamplingParams { top_k: 12, ..SamplingParams::at(0.9) },
            SamplingParams { top_p: 0.8, ..SamplingParams::at(1.0) },
            SamplingParams { min_p: 0.2, ..SamplingParams::at(1.3) },
            SamplingParams { typical_p: 0.7, ..SamplingParams::at(0.9) },
        ] {
            let law = probabilities(&logits, &params);
            assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let draws = 40_000u32;
            let mut seen = vec![0u32; logits.len()];
            let sampling = Sampling { params, seed: 11, choice: 0 };
            for position in 0..draws {
                seen[pick(&logits, &sampling, position).unwrap().0 as usize] += 1;
            }
            let (chi, free) = chi_square(&seen, &law, draws);
            assert!(chi < bound(free), "{params:?}: chi-square {chi} with {free} degrees of freedom");
            let biased =
                probabilities(&logits, &SamplingParams { temperature: params.temperature * 1.2, ..params });
            let (chi, free) = chi_square(&seen, &biased, draws);
            assert!(chi > bound(free), "{params:?}: a law 20 % hotter went unnoticed ({chi})");
        }
    }

    #[test]
    fn without_filters_the_law_is_that_of_all_tokens() {
        let mut logits: Vec<f32> = (0..300).map(|t| ((t * 7) % 13) as f32 * 0.35 - 3.0).collect();
        logits[40] = f32::NEG_INFINITY;
        let all = SamplingParams::at(0.7);
        // A filter that keeps everything takes the other way.
        let filtered = probabilities(&logits, &SamplingParams { min_p: 1e-9, ..all });
        let plain = probabilities(&logits, &all);
        assert!(plain.iter().zip(&filtered).all(|(a, b)| (a - b).abs() < 1e-12));
        assert_eq!(plain[40], 0.0);
        assert_eq!(probabilities(&[f32::NEG_INFINITY; 3], &all), [0.0; 3]);
    }

    fn chi_square(seen: &[u32], law: &[f64], draws: u32) -> (f64, f64) {
        let (mut chi, mut cells) = (0.0, 0.0);
        for (n, p) in seen.iter().zip(law) {
            if *p == 0.0 {
                if *n > 0 {
                    return (f64::INFINITY, 1.0);
                }
                continue;
            }
            let expected = p * f64::from(draws);
            chi += (f64::from(*n) - expected).powi(2) / expected;
            cells += 1.0;
        }
        (chi, cells - 1.0)
    }

    /// Mean plus four standard deviations of the chi-square law.
    fn bound(free: f64) -> f64 {
        free + 4.0 * (2.0 * free).sqrt()
    }
}
