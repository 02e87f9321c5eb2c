//! All that is asked of the logits of one row.

use request::{Sampling, SamplingParams, TokenId, TokenLogprobs};

use crate::judge::judge;
use crate::{Distribution, Edit, Rapid, dist, pick, rapid};

/// What to do with the logits of one picking row.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    pub sampling: Sampling,
    pub edit: Edit,
    pub how: How,
    /// The noise is that of a place so many positions further on: a drafter that does not have all of the target's
    /// prompt draws with the noise of the target's place.
    pub ahead: u32,
    /// Report the token's log-probability and those of this many alternatives.
    pub logprobs: Option<u8>,
}

/// How the token is chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum How {
    /// [`pick`]: the coupled, strict and greedy rules.
    #[default]
    Pick,
    /// A target under the rejection rule: the draft, if it survives its test, else a draw from the
    /// residual.
    Judge { draft: TokenId, q: Distribution },
    /// A drafter under the rejection rule: from its renormalised top, which is given back as q.
    Top,
    /// A drafter whose target is pulled towards it: as `Pick`, and the top of its law with these parameters is given
    /// back as q.
    Told { law: SamplingParams },
    /// A target pulled towards q (RAPID). With a draft by the paper's rule, without by the noise of the place.
    Pulled { q: Distribution, rapid: Rapid, draft: Option<TokenId> },
}

/// What a row gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub token: TokenId,
    pub logprobs: Option<Box<TokenLogprobs>>,
    /// The drafter's law, under [`How::Top`] and [`How::Told`].
    pub q: Option<Box<Distribution>>,
}

impl Draw {
    /// A plain pick.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, edit: Edit::default(), how: How::Pick, ahead: 0, logprobs: None }
    }
}

/// Draws the token for `position`. The reference for every back end: a pure function of its arguments.
///
/// `None` when the logits hold NaN or +inf, or when nothing can be drawn.
pub fn draw(logits: &[f32], draw: &Draw, position: u32) -> Option<Drawn> {
    if dist::broken(logits) {
        return None;
    }
    let mut edited = Vec::new();
    let shown = if draw.edit.is_neutral() {
        logits
    } else {
        edited.extend_from_slice(logits);
        draw.edit.apply(&mut edited);
        &edited
    };
    let position = position.saturating_add(draw.ahead);
    let (token, q) = match &draw.how {
        How::Pick => (pick(shown, &draw.sampling, position)?, None),
        How::Judge { draft, q } => (judge(shown, &draw.sampling, position, *draft, q)?, None),
        How::Top => {
            let q = Distribution::top(shown, &draw.sampling.params)?;
            (q.draw(&draw.sampling, position)?, Some(Box::new(q)))
        }
        How::Told { law } => {
            let token = pick(shown, &draw.sampling, position)?;
            (token, Distribution::top(shown, law).map(Box::new))
        }
        How::Pulled { q, rapid, draft } => {
            (rapid::draw(shown, &draw.sampling, position, q, *rapid, *draft)?, None)
        }
    };
    let logprobs = draw.logprobs.map(|top| Box::new(logprobs(logits, token, top)));
    Some(Drawn { token, logprobs, q })
}

/// Of the logits as the model gave them.
fn logprobs(logits: &[f32], token: TokenId, top: u8) -> TokenLogprobs {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|l| libm::exp(f64::from(*l) - peak)).sum();
    let shift = peak + libm::log(total);
    let of = |id: TokenId| (f64::from(logits[id.0 as usize]) - shift) as f32;
    let mut ranked: Vec<TokenId> = (0..logits.len() as u32).map(TokenId).collect();
    let by_rank =
        |a: &TokenId, b: &TokenId| logits[b.0 as usize].total_cmp(&logits[a.0 as usize]).then(a.cmp(b));
    let top = usize::from(top).min(ranked.len());
    if top > 0 && top < ranked.len() {
        ranked.select_nth_unstable_by(top - 1, by_rank);
    }
    ranked.truncate(top);
    ranked.sort_unstable_by(by_rank);
    TokenLogprobs { logprob: of(token), top: ranked.into_iter().map(|id| (id, of(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use request::SamplingParams;

    #[test]
    fn logprobs_are_of_the_raw_logits() {
        let logits = [1.0f32, 3.0, 2.0, 3.0];
        let mut asked = Draw::new(Sampling::GREEDY);
        asked.logprobs = Some(3);
        asked.edit.banned = vec![TokenId(1)];
        let drawn = draw(&logits, &asked, 0).unwrap();
        assert_eq!(drawn.token, TokenId(3));
        let logprobs = drawn.logprobs.unwrap();
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let expected = |id: usize| (f64::from(logits[id]) - total.ln()) as f32;
        assert!((logprobs.logprob - expected(3)).abs() < 1e-6);
        let ranked: Vec<u32> = logprobs.top.iter().map(|(id, _)| id.0).collect();
        assert_eq!(ranked, [1, 3, 2]);
        assert!(logprobs.top.iter().all(|(id, p)| (p - expected(id.0 as usize)).abs() < 1e-6));
    }

    #[test]
    fn nothing_is_drawn_from_broken_or_empty_rows() {
        let sampled = Sampling { params: SamplingParams::at(1.0), seed: 1, choice: 0 };
        assert_eq!(draw(&[0.0, f32::NAN], &Draw::new(sampled), 0), None);
        let mut nothing = Draw::new(sampled);
        nothing.edit.mask = Some(crate::Mask::none(2));
        assert_eq!(draw(&[0.0, 1.0], &nothing, 0), None);
        nothing.how = How::Top;
        assert_eq!(draw(&[0.0, 1.0], &nothing, 0), None);
    }
}
