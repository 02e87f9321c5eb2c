//! Rejection sampling: a draft that was drawn from a known law (arXiv 2211.17192, 2302.01318).

use request::{Sampling, SamplingParams, TokenId};

use crate::dist::probabilities;
use crate::noise::NoiseKey;

/// The law that a draft was drawn from: the drafter's most likely tokens, renormalised.
///
/// The weights are what both sides compute with: the drafter draws with exactly these numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Each token once, with a finite weight above 0.
    entries: Vec<(TokenId, f32)>,
}

/// A distribution that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotADistribution {
    #[error("has {0} entries; 1 to 64 are taken")]
    Size(usize),
    #[error("holds a probability that is not finite and above 0")]
    Weight,
    #[error("names a token twice")]
    Doubled,
}

impl Distribution {
    /// Most entries of a drafter's law.
    pub const MOST: usize = 64;

    /// From entries that came from outside.
    pub fn new(mut entries: Vec<(TokenId, f32)>) -> Result<Self, NotADistribution> {
        if !(1..=Self::MOST).contains(&entries.len()) {
            return Err(NotADistribution::Size(entries.len()));
        }
        if !entries.iter().all(|(_, w)| w.is_finite() && *w > 0.0) {
            return Err(NotADistribution::Weight);
        }
        entries.sort_unstable_by_key(|(token, _)| *token);
        if entries.windows(2).any(|w| w[0].0 == w[1].0) {
            return Err(NotADistribution::Doubled);
        }
        Ok(Self { entries })
    }

    pub fn entries(&self) -> &[(TokenId, f32)] {
        &self.entries
    }

    /// The most likely tokens that survive the filters. `None` when there is none.
    pub(crate) fn top(logits: &[f32], params: &SamplingParams) -> Option<Self> {
        let law = probabilities(logits, params);
        let mut ranked: Vec<(TokenId, f32)> = law
            .iter()
            .enumerate()
            .filter(|(_, p)| **p > 0.0)
            .map(|(token, p)| (TokenId(token as u32), *p as f32))
            // A probability below the smallest float would be no weight.
            .filter(|(_, w)| *w > 0.0)
            .collect();
        let by_weight = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if ranked.len() > Self::MOST {
            ranked.select_nth_unstable_by(Self::MOST - 1, by_weight);
            ranked.truncate(Self::MOST);
        }
        Self::new(ranked).ok()
    }

    /// Draws with the noise of `position`.
    pub(crate) fn draw(&self, sampling: &Sampling, position: u32) -> Option<TokenId> {
        let key = NoiseKey::new(sampling, position);
        race(self.entries.iter().map(|(token, w)| (*token, f64::from(*w))), |token| key.token(token))
    }

    /// q of every token below `vocab`.
    pub(crate) fn dense(&self, vocab: usize) -> Vec<f64> {
        let total: f64 = self.entries.iter().map(|(_, w)| f64::from(*w)).sum();
        let mut law = vec![0.0; vocab];
        for (token, w) in &self.entries {
            if let Some(q) = law.get_mut(token.0 as usize) {
                *q = f64::from(*w) / total;
            }
        }
        law
    }

    /// q of a token.
    fn of(&self, token: TokenId) -> f64 {
        let total: f64 = self.entries.iter().map(|(_, w)| f64::from(*w)).sum();
        let weight = self.entries.binary_search_by_key(&token, |(t, _)| *t).map(|at| self.entries[at].1);
        weight.map_or(0.0, |w| f64::from(w) / total)
    }
}

/// The draft with probability min(1, p/q), else a token of the residual max(p - q, 0). Coin and residual
/// have noise of their own: the draft was drawn with the position's.
pub(crate) fn judge(
    logits: &[f32],
    sampling: &Sampling,
    position: u32,
    draft: TokenId,
    q: &Distribution,
) -> Option<TokenId> {
    let mut p = probabilities(logits, &sampling.params);
    if p.iter().all(|p| *p == 0.0) {
        return None;
    }
    let key = NoiseKey::new(sampling, position);
    let of_draft = p.get(draft.0 as usize).copied().unwrap_or(0.0);
    // A draft outside its own law is a lie: q = 0 would accept it for certain.
    let claimed = q.of(draft);
    if claimed > 0.0 && key.coin() * claimed < of_draft {
        return Some(draft);
    }
    if claimed == 0.0 {
        // What was drawn otherwise than claimed is judged by nothing; the token is p's own.
        return race(tokens(&p), |token| key.residual(token));
    }
    for (token, _) in q.entries() {
        if let Some(p) = p.get_mut(token.0 as usize) {
            *p = (*p - q.of(*token)).max(0.0);
        }
    }
    // No residual is left when p = q up to rounding: then the rejection itself was rounding.
    race(tokens(&p), |token| key.residual(token)).or((of_draft > 0.0).then_some(draft))
}

pub(crate) fn tokens(law: &[f64]) -> impl Iterator<Item = (TokenId, f64)> {
    law.iter().enumerate().map(|(token, p)| (TokenId(token as u32), *p))
}

/// The token with the largest weight / E; ties fall to the first.
pub(crate) fn race(law: impl Iterator<Item = (TokenId, f64)>, noise: impl Fn(u32) -> f64) -> Option<TokenId> {
    let mut best: Option<(f64, TokenId)> = None;
    for (token, weight) in law.filter(|(_, weight)| *weight > 0.0) {
        let score = weight / noise(token.0);
        if best.is_none_or(|(b, _)| score > b) {
            best = Some((score, token));
        }
    }
    best.map(|(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draw, How, draw};

    const P: [f32; 6] = [1.0, 0.2, -0.5, 0.9, 0.0, -2.0];
    const Q: [f32; 6] = [0.1, 1.2, 0.4, -0.6, -1.0, 0.3];

    fn at(temperature: f32, seed: u64) -> Sampling {
        Sampling { params: SamplingParams::at(temperature), seed, choice: 0 }
    }

    /// Draft by the drafter's top, judge by the target, count what comes out.
    fn outputs(rounds: u32, lie: bool) -> (Vec<u32>, u32) {
        let (mut seen, mut accepted) = (vec![0; P.len()], 0);
        for position in 0..rounds {
            let sampling = at(1.0, 5);
            let drafted = draw(&Q, &Draw { how: How::Top, ..Draw::new(sampling) }, position).unwrap();
            let mut q = *drafted.q.unwrap();
            if lie {
                // A drafter that names its law flatter than it is.
                q = Distribution::new(q.entries().iter().map(|(t, w)| (*t, w.sqrt())).collect()).unwrap();
            }
            let judge = Draw { how: How::Judge { draft: drafted.token, q }, ..Draw::new(sampling) };
            let token = draw(&P, &judge, position).unwrap().token;
            accepted += u32::from(token == drafted.token);
            seen[token.0 as usize] += 1;
        }
        (seen, accepted)
    }

    fn chi_square(seen: &[u32]) -> f64 {
        let law = probabilities(&P, &SamplingParams::at(1.0));
        let n: u32 = seen.iter().sum();
        let term =
            |(seen, p): (&u32, &f64)| (f64::from(*seen) - p * f64::from(n)).powi(2) / (p * f64::from(n));
        seen.iter().zip(&law).map(term).sum()
    }

    /// The output follows p; acceptance is the overlap of p and q; a lie about q is seen in the law.
    #[test]
    fn judged_drafts_follow_the_targets_law() {
        let rounds = 60_000;
        let (seen, accepted) = outputs(rounds, false);
        assert!(chi_square(&seen) < 5.0 + 4.0 * 10f64.sqrt(), "{seen:?}");
        let (p, q) =
            (probabilities(&P, &SamplingParams::at(1.0)), probabilities(&Q, &SamplingParams::at(1.0)));
        let overlap: f64 = p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
        let share = f64::from(accepted) / f64::from(rounds);
        assert!((share - overlap).abs() < 0.01, "accepted {share}, the overlap is {overlap}");
        let (biased, _) = outputs(rounds, true);
        assert!(chi_square(&biased) > 60.0, "a false q went unnoticed: {biased:?}");
    }

    #[test]
    fn a_draft_outside_its_own_law_is_not_taken_for_certain() {
        let q = Distribution::new(vec![(TokenId(1), 1.0)]).unwrap();
        let mut seen = [0; 6];
        for position in 0..3000 {
            let judge = How::Judge { draft: TokenId(5), q: q.clone() };
            let drawn = draw(&P, &Draw { how: judge, ..Draw::new(at(1.0, 9)) }, position).unwrap();
            seen[drawn.token.0 as usize] += 1;
        }
        assert!(chi_square(&seen) < 5.0 + 4.0 * 10f64.sqrt(), "{seen:?}");
    }

    #[test]
    fn greedy_targets_take_the_draft_only_when_it_is_theirs() {
        let q = Distribution::new(vec![(TokenId(0), 0.5), (TokenId(3), 0.5)]).unwrap();
        for (draft, expected) in [(0, 0), (3, 0)] {
            let judge = How::Judge { draft: TokenId(draft), q: q.clone() };
            let drawn = draw(&P, &Draw { how: judge, ..Draw::new(Sampling::GREEDY) }, 4).unwrap();
            assert_eq!(drawn.token, TokenId(expected));
        }
    }

    #[test]
    fn laws_from_outside_are_checked() {
        let many: Vec<_> = (0..65).map(|i| (TokenId(i), 1.0)).collect();
        for (bad, why) in [
            (Vec::new(), NotADistribution::Size(0)),
            (many, NotADistribution::Size(65)),
            (vec![(TokenId(1), f32::NAN)], NotADistribution::Weight),
            (vec![(TokenId(1), 0.0)], NotADistribution::Weight),
            (vec![(TokenId(1), 0.5), (TokenId(1), 0.5)], NotADistribution::Doubled),
        ] {
            assert_eq!(Distribution::new(bad), Err(why));
        }
    }
}
