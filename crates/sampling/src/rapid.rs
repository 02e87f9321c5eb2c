//! RAPID (arXiv 2502.20330): a target pulled towards a drafter that read the retrieved text only.
//!
//! Not exact, on purpose: only for `quality=approximate`. Two forms: *coupled*, where the token is drawn from the
//! pulled law with the noise of its place, and the paper's own, where the draft is tested and replaced.

use request::{Sampling, SamplingParams, TokenId};

use crate::dist::probabilities;
use crate::judge::{Distribution, judge, race, tokens};
use crate::noise::NoiseKey;
use crate::pick;

/// How far the target is pulled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rapid {
    /// 0 leaves the target as it is: ordinary speculative sampling. Used: 5 to 50.
    pub eta: f64,
    /// A token counts only if the drafter finds it at least this share as likely as its likeliest one. Used: 0.1.
    pub plausible: f64,
}

impl Rapid {
    /// The target's law pulled towards the drafter's: on plausible tokens `z + eta (q - p)`, one gradient step of a
    /// distillation with the drafter as the teacher. `p` and `q`: what both draw from, by token.
    pub fn augmented(&self, p: &[f64], q: &[f64]) -> Vec<f64> {
        debug_assert_eq!(p.len(), q.len());
        let pulls = self.pulls(p, q);
        let most = pulls.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // exp(ln p + pull): what the target never draws stays so.
        normalised(p.iter().zip(&pulls).map(|(p, pull)| p * libm::exp(pull - most)).collect(), p)
    }

    /// What is added to the logarithm of each token's chance.
    fn pulls(&self, p: &[f64], q: &[f64]) -> Vec<f64> {
        let least = self.plausible * q.iter().copied().fold(0.0, f64::max);
        let pull = |(p, q): (&f64, &f64)| if *q >= least { self.eta * (q - p) } else { 0.0 };
        p.iter().zip(q).map(pull).collect()
    }

    /// Chance that a token that the drafter drew from `q` stands.
    pub fn accepts(augmented: f64, q: f64) -> f64 {
        if q > 0.0 { (augmented / q).min(1.0) } else { 0.0 }
    }

    /// What a rejected draft is replaced from: the target's own law where either the drafter or the pull drew too
    /// little of it. Where nothing is left, the target's law.
    pub fn residual(p: &[f64], q: &[f64], augmented: &[f64]) -> Vec<f64> {
        let left = |((p, q), a): ((&f64, &f64), &f64)| (p - q).max(p - a).max(0.0);
        normalised(p.iter().zip(q).zip(augmented).map(left).collect(), p)
    }

    /// The law of what comes out, by token: neither the target's nor the augmented one.
    pub fn output(&self, p: &[f64], q: &[f64]) -> Vec<f64> {
        let augmented = self.augmented(p, q);
        let residual = Self::residual(p, q, &augmented);
        let stands: Vec<f64> = q.iter().zip(&augmented).map(|(q, a)| q.min(*a)).collect();
        let rejected = 1.0 - stands.iter().sum::<f64>();
        stands.iter().zip(&residual).map(|(stands, r)| stands + rejected * r).collect()
    }
}

/// The token for `position` of a target that is pulled towards `q`. With a draft the paper's rule: the draft stands
/// by chance min(1, pulled / q), else the residual is drawn from. Without one, and at temperature 0 (there p and q are
/// those of temperature 1), it is drawn from the pulled law with the noise of its place.
pub(crate) fn draw(
    logits: &[f32],
    sampling: &Sampling,
    position: u32,
    q: &Distribution,
    rapid: Rapid,
    draft: Option<TokenId>,
) -> Option<TokenId> {
    let greedy = sampling.params.is_greedy();
    let draft = draft.filter(|_| !greedy);
    if rapid.eta == 0.0 {
        return match draft {
            Some(draft) => judge(logits, sampling, position, draft, q),
            None => pick(logits, sampling, position),
        };
    }
    let law = if greedy { SamplingParams::at(1.0) } else { sampling.params };
    let p = probabilities(logits, &law);
    if p.iter().all(|p| *p == 0.0) {
        return None;
    }
    let claimed = q.dense(p.len());
    let Some(draft) = draft else {
        let scale = f64::from(law.temperature);
        let pulled = |((logit, p), pull): ((&f32, &f64), f64)| match *p > 0.0 {
            true => (f64::from(*logit) + scale * pull) as f32,
            // What the target's filters left out stays out.
            false => f32::NEG_INFINITY,
        };
        let pulled: Vec<f32> = logits.iter().zip(&p).zip(rapid.pulls(&p, &claimed)).map(pulled).collect();
        let temperature = sampling.params.temperature;
        let params = if greedy { SamplingParams::GREEDY } else { SamplingParams::at(temperature) };
        return pick(&pulled, &Sampling { params, ..*sampling }, position);
    };
    let augmented = rapid.augmented(&p, &claimed);
    let key = NoiseKey::new(sampling, position);
    let at = draft.0 as usize;
    let (a, of_draft) = (augmented.get(at).copied().unwrap_or(0.0), claimed.get(at).copied().unwrap_or(0.0));
    if of_draft > 0.0 && key.coin() < Rapid::accepts(a, of_draft) {
        return Some(draft);
    }
    // A draft outside its own law is judged by nothing; the token is the target's own.
    let left = if of_draft > 0.0 { Rapid::residual(&p, &claimed, &augmented) } else { p };
    race(tokens(&left), |token| key.residual(token))
}

/// Scaled to a sum of 1; `otherwise` when there is nothing to scale.
fn normalised(mut law: Vec<f64>, otherwise: &[f64]) -> Vec<f64> {
    let sum: f64 = law.iter().sum();
    if sum <= 0.0 {
        return otherwise.to_vec();
    }
    law.iter_mut().for_each(|p| *p /= sum);
    law
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Draw, How};

    const LAWS: [([f64; 5], [f64; 5]); 3] = [
        ([0.4, 0.3, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.35, 0.05]),
        ([0.9, 0.05, 0.03, 0.01, 0.01], [0.01, 0.9, 0.05, 0.02, 0.02]),
        ([0.2; 5], [0.6, 0.1, 0.1, 0.1, 0.1]),
    ];

    struct Dice(u64);

    impl Dice {
        fn unit(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn draw(&mut self, law: &[f64]) -> usize {
            let mut left = self.unit();
            let inside = |p: &f64| {
                left -= p;
                left < 0.0
            };
            law.iter().position(inside).unwrap_or(0)
        }
    }

    fn chi_square(seen: &[u32], law: &[f64], draws: u32) -> f64 {
        let cells = seen.iter().zip(law).filter(|(_, p)| **p > 0.0);
        cells.map(|(n, p)| (f64::from(*n) - p * f64::from(draws)).powi(2) / (p * f64::from(draws))).sum()
    }

    /// Drafting, testing and replacing as a target does it gives the law of [`Rapid::output`], and neither the
    /// target's nor the augmented one (chi-square, four degrees of freedom).
    #[test]
    fn what_comes_out_follows_the_law() {
        let rapid = Rapid { eta: 10.0, plausible: 0.1 };
        for (p, q) in LAWS {
            let (mut dice, draws, mut seen) = (Dice(5), 200_000, [0u32; 5]);
            let augmented = rapid.augmented(&p, &q);
            for _ in 0..draws {
                let draft = dice.draw(&q);
                let stands = dice.unit() < Rapid::accepts(augmented[draft], q[draft]);
                let residual = || Rapid::residual(&p, &q, &augmented);
                seen[if stands { draft } else { dice.draw(&residual()) }] += 1;
            }
            let chi = chi_square(&seen, &rapid.output(&p, &q), draws);
            assert!(chi < 23.5, "{p:?} {q:?}: {chi}, one in ten thousand is above");
            for other in [&p[..], &augmented] {
                assert!(chi_square(&seen, other, draws) > 100.0, "{p:?} {q:?} looks like {other:?}");
            }
        }
    }

    fn law() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.0..1.0f64, 6).prop_map(|law| normalised(law, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    }

    proptest! {
        /// Without a pull it is speculative sampling, and what comes out is the target's law exactly.
        #[test]
        fn without_a_pull_the_law_is_the_targets(p in law(), q in law()) {
            let none = Rapid { eta: 0.0, plausible: 0.1 };
            for (out, p) in none.output(&p, &q).iter().zip(&p) {
                prop_assert!((out - p).abs() < 1e-12, "{} {}", out, p);
            }
        }

        /// Whatever the pull: a law, nothing that the target never draws, and a drafter that agrees changes nothing.
        #[test]
        fn every_pull_gives_a_law(p in law(), q in law(), eta in 0.0..60.0f64, plausible in 0.0..1.0f64) {
            let rapid = Rapid { eta, plausible };
            let augmented = rapid.augmented(&p, &q);
            prop_assert!((augmented.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(augmented.iter().zip(&p).all(|(a, p)| *a >= 0.0 && (*p > 0.0 || *a == 0.0)));
            prop_assert!((rapid.output(&p, &q).iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let same = rapid.augmented(&p, &p);
            prop_assert!(same.iter().zip(&p).all(|(a, p)| (a - p).abs() < 1e-9));
            prop_assert!(p.iter().all(|p| Rapid::accepts(*p, *p) == f64::from(u8::from(*p > 0.0))));
        }
    }

    const LOGITS: [f32; 6] = [1.0, 0.2, -0.5, 0.9, 0.0, -2.0];
    const DRAFTER: [f32; 6] = [0.1, 1.2, 0.4, -0.6, -1.0, 0.3];

    fn at(params: SamplingParams, seed: u64) -> Sampling {
        Sampling { params, seed, choice: 0 }
    }

    /// Both forms through [`crate::draw`], over laws that filters cut: the coupled one gives the pulled law, the paper's
    /// gives [`Rapid::output`]; the plain law is told apart from either.
    #[test]
    fn draws_follow_their_laws() {
        let rapid = Rapid { eta: 6.0, plausible: 0.1 };
        for params in [SamplingParams::at(1.0), SamplingParams { top_k: 4, ..SamplingParams::at(0.8) }] {
            let (p, rounds) = (probabilities(&LOGITS, &params), 60_000);
            let q = probabilities(&DRAFTER, &params);
            for paper in [false, true] {
                let mut seen = [0u32; 6];
                let mut accepted = 0;
                for position in 0..rounds {
                    let sampling = at(params, 5);
                    let how = if paper { How::Top } else { How::Told { law: params } };
                    let drafted =
                        crate::draw(&DRAFTER, &Draw { how, ..Draw::new(sampling) }, position).unwrap();
                    let draft = paper.then_some(drafted.token);
                    let how = How::Pulled { q: *drafted.q.unwrap(), rapid, draft };
                    let token =
                        crate::draw(&LOGITS, &Draw { how, ..Draw::new(sampling) }, position).unwrap().token;
                    accepted += u32::from(token == drafted.token);
                    seen[token.0 as usize] += 1;
                }
                let law = if paper { rapid.output(&p, &q) } else { rapid.augmented(&p, &q) };
                let chi = chi_square(&seen, &law, rounds);
                assert!(chi < 26.0, "{params:?} paper {paper}: {chi}, {seen:?}");
                assert!(chi_square(&seen, &p, rounds) > 100.0, "{params:?} paper {paper} looks plain");
                assert!(accepted > rounds / 4 && accepted < rounds, "{accepted}");
            }
        }
    }

    /// Without a pull every token is the one of ordinary speculation; a pull that is hardly one changes no token
    /// either, so both ways through the draw use the same noise.
    #[test]
    fn without_a_pull_each_token_is_that_of_ordinary_speculation() {
        let q = Distribution::new(vec![(TokenId(1), 0.5), (TokenId(2), 0.3), (TokenId(4), 0.2)]).unwrap();
        for params in [
            SamplingParams::GREEDY,
            SamplingParams::at(0.9),
            SamplingParams { top_p: 0.8, ..SamplingParams::at(1.0) },
        ] {
            for position in 0..500 {
                let token = |how| {
                    crate::draw(&LOGITS, &Draw { how, ..Draw::new(at(params, 3)) }, position).unwrap().token
                };
                for eta in [0.0, 1e-12] {
                    let rapid = Rapid { eta, plausible: 0.1 };
                    let pulled = |draft| token(How::Pulled { q: q.clone(), rapid, draft });
                    assert_eq!(pulled(None), token(How::Pick));
                    let draft = TokenId([1, 2, 4][position as usize % 3]);
                    if !params.is_greedy() {
                        assert_eq!(pulled(Some(draft)), token(How::Judge { draft, q: q.clone() }));
                    }
                }
            }
        }
    }

    /// At temperature 0 it is the largest of `z + eta (q - p)`.
    #[test]
    fn greedy_takes_the_largest_pulled_logit() {
        let law = SamplingParams::at(1.0);
        let drafted =
            crate::draw(&DRAFTER, &Draw { how: How::Told { law }, ..Draw::new(Sampling::GREEDY) }, 1)
                .unwrap();
        assert_eq!(drafted.token, TokenId(1), "the drafter's own argmax");
        let q = *drafted.q.unwrap();
        for (eta, expected) in [(0.1, TokenId(0)), (20.0, TokenId(1))] {
            let rapid = Rapid { eta, plausible: 0.1 };
            let how = How::Pulled { q: q.clone(), rapid, draft: Some(TokenId(3)) };
            let drawn = crate::draw(&LOGITS, &Draw { how, ..Draw::new(Sampling::GREEDY) }, 1).unwrap();
            assert_eq!(drawn.token, expected);
        }
    }
}
