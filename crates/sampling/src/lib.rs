//! Logits to a token on the host: the reference that every back end must equal.
//!
//! [`pick`] is the whole job: filter the logits (*warp*), add counter-based noise (*noise*), take
//! the largest. It is a pure function of (logits, [`Sampling`], position), so a drafter and a target
//! that share a seed draw with the same noise: that is what makes coupled verification possible
//! (arXiv 2408.07978) and what makes the text of a seed repeatable.
//!
//! Not here: penalties, grammar masks (issue 3 applies them to the logits before `pick`), drafts
//! (`speculation`). Start at [`pick`], then [`noise`](NoiseKey).
#![forbid(unsafe_code)]

mod dist;
mod noise;
mod pick;
mod warp;

pub use dist::probabilities;
pub use noise::{GROUP, GroupNoise, NoiseKey};
pub use pick::{argmax, pick};
pub use request::Sampling;

/// Part of the numerics fingerprint: changes whenever the same logits could give another token.
pub const SAMPLER_VERSION: u32 = 1;
