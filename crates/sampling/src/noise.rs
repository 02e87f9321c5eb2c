//! Counter-based exponential noise, drawn in groups.
//!
//! The Gumbel-max draw in its race form: every token gets E ~ Exp(1) and the largest
//! `logit - ln E` wins. Drawing E for 150k tokens would cost more than the rest of the pick, so the
//! noise of 32 tokens is described by two draws: their minimum, which is Exp(1)/32, and which token
//! owns it (uniform). By the memoryless property every other token of the group is the minimum plus
//! an Exp(1) of its own. The law of the 32 values is exactly that of independent draws, and a group
//! whose best possible score cannot win is never opened.

use crate::Sampling;

/// Tokens that share one minimum draw.
pub const GROUP: u32 = 32;

/// Which noise: the same key, position and token give the same draw on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    seed: [u32; 2],
    choice: u32,
    position: u32,
}

/// The two draws that describe a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNoise {
    /// Smallest Exp(1) value among the group's tokens.
    pub minimum: f64,
    /// The token that has it, as an offset in the group.
    pub owner: u32,
}

/// Last counter word: keeps the draws of one key apart.
#[derive(Clone, Copy)]
enum Domain {
    Group = 0,
    Token = 1,
    Coin = 2,
    Residual = 3,
}

impl NoiseKey {
    /// `position` is the absolute position of the token being drawn.
    pub fn new(sampling: &Sampling, position: u32) -> Self {
        Self { seed: [sampling.seed as u32, (sampling.seed >> 32) as u32], choice: sampling.choice, position }
    }

    pub fn group(&self, group: u32) -> GroupNoise {
        let words = self.draw(group, Domain::Group);
        GroupNoise { minimum: exponential(words) / f64::from(GROUP), owner: words[2] % GROUP }
    }

    /// E ~ Exp(1) of one token.
    pub fn token(&self, token: u32) -> f64 {
        self.member(token, self.group(token / GROUP))
    }

    /// E of `token`, whose group's noise is already known.
    pub fn member(&self, token: u32, group: GroupNoise) -> f64 {
        if token % GROUP == group.owner {
            group.minimum
        } else {
            group.minimum + exponential(self.draw(token, Domain::Token))
        }
    }

    /// Uniform strictly between 0 and 1: decides whether a draft stands (rejection rule).
    pub(crate) fn coin(&self) -> f64 {
        libm::exp(-exponential(self.draw(0, Domain::Coin)))
    }

    /// E ~ Exp(1) of one token for the draw after a rejection, independent of [`Self::token`].
    pub(crate) fn residual(&self, token: u32) -> f64 {
        exponential(self.draw(token, Domain::Residual))
    }

    fn draw(&self, index: u32, domain: Domain) -> [u32; 4] {
        philox([index, self.position, self.choice, domain as u32], self.seed)
    }
}

/// Exp(1) from 52 random bits: the uniform lies strictly between 0 and 1, so E is never 0 and never
/// infinite (with 53 bits the largest one would round to 1).
fn exponential(words: [u32; 4]) -> f64 {
    let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 12;
    let uniform = (bits as f64 + 0.5) * (1.0 / (1u64 << 52) as f64);
    -libm::log(uniform)
}

/// Philox 4x32 with 10 rounds (Salmon et al., SC 2011): a bijection of the counter under the key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use request::SamplingParams;

    fn key(seed: u64, position: u32) -> NoiseKey {
        NoiseKey::new(&Sampling { params: SamplingParams::at(1.0), seed, choice: 0 }, position)
    }

    /// Known answers published with the generator.
    #[test]
    fn philox_known_answers() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn the_extreme_draws_are_finite_and_above_zero() {
        for words in [[0; 4], [u32::MAX; 4]] {
            let e = exponential(words);
            assert!(e > 0.0 && e.is_finite(), "{words:?} gives {e}");
        }
    }

    /// Kolmogorov-Smirnov distance of all members' draws to Exp(1), and the correlation of two
    /// members of one group: the grouping must be invisible in the law.
    #[test]
    fn group_members_are_independent_unit_exponentials() {
        let groups = 4_000u32;
        let mut all: Vec<f64> = Vec::new();
        let (mut sum_x, mut sum_y, mut sum_xy) = (0.0, 0.0, 0.0);
        for g in 0..groups {
            let k = key(7, g);
            let draws: Vec<f64> = (0..GROUP).map(|t| k.token(t)).collect();
            let owner = k.group(0).owner as usize;
            assert!(draws.iter().all(|e| *e >= draws[owner]), "the owner has the minimum");
            // Through 1 - exp(-E) to uniform, so that the correlation has a known spread.
            let (x, y) = (1.0 - (-draws[3]).exp(), 1.0 - (-draws[20]).exp());
            sum_x += x;
            sum_y += y;
            sum_xy += x * y;
            all.extend(draws);
        }
        all.sort_by(f64::total_cmp);
        let n = all.len() as f64;
        let distance = all
            .iter()
            .enumerate()
            .map(|(i, e)| ((1.0 - (-e).exp()) - i as f64 / n).abs())
            .fold(0.0, f64::max);
        assert!(distance < 1.63 / n.sqrt(), "KS distance {distance} at n={n}");
        let g = f64::from(groups);
        let correlation = (sum_xy / g - sum_x / g * (sum_y / g)) * 12.0;
        assert!(correlation.abs() < 4.0 / g.sqrt(), "correlation {correlation}");
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = key(1, 5).token(9);
        assert_eq!(base, key(1, 5).token(9));
        let other_choice =
            NoiseKey::new(&Sampling { params: SamplingParams::at(1.0), seed: 1, choice: 1 }, 5);
        for other in [key(2, 5).token(9), key(1, 6).token(9), key(1, 5).token(10), other_choice.token(9)] {
            assert_ne!(base, other);
        }
        assert_ne!(key(1, 5).token(9), key(1 | 1 << 32, 5).token(9));
    }
}
