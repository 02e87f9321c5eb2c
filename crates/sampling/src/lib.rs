//! Logits to a token on the host: the reference that every back end must equal.
//!
//! [`pick`] is the whole job: filter the logits (*warp*), add counter-based noise (*noise*), take
//! the largest. It is a pure function of (logits, [`Sampling`], position), so a drafter and a target
//! that share a seed draw with the same noise: that is what makes coupled verification possible
//! (arXiv 2408.07978) and what makes the text of a seed repeatable.
//!
//! [`draw`] is all that a step asks of a row: edits before the pick (bias, penalties, mask), the test of a
//! draft under the rejection rule, the pull towards a drafter (lossy, [`Rapid`]), log-probabilities.
//!
//! Not here: what a grammar allows (`grammar`), which drafts are judged (`speculation`). Start at
//! [`pick`], then [`noise`](NoiseKey), then [`draw`].
#![forbid(unsafe_code)]

mod dist;
mod draw;
mod edit;
mod judge;
mod mask;
mod noise;
mod pick;
mod rapid;
mod warp;

pub use dist::probabilities;
pub use draw::{Draw, Drawn, How, draw};
pub use edit::{Change, Edit, History};
pub use judge::{Distribution, NotADistribution};
pub use mask::Mask;
pub use noise::{GROUP, GroupNoise, NoiseKey};
pub use pick::{argmax, pick};
pub use rapid::Rapid;
pub use request::Sampling;

/// Part of the numerics fingerprint: changes whenever the same logits could give another token.
pub const SAMPLER_VERSION: u32 = 1;
