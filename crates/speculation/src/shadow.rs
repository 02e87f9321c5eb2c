//! What sources would have proposed, laid beside the text that came.

use std::collections::VecDeque;

use request::{Source, TokenId};

use crate::{Beliefs, Sureness};

/// For each source the proposals that are being judged. One is added in each step, so the first place of a
/// chain is judged by each token that comes, and the later ones as often as they are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shadows([VecDeque<Shadow>; Source::ALL.len()]);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shadow {
    ids: Vec<TokenId>,
    sureness: Sureness,
    /// Drafts that came true.
    right: usize,
}

impl Shadows {
    /// Drafts of a proposal that are judged: what a step could take of it.
    pub const LONGEST: usize = 16;

    /// `source` would have the text go on with `ids`.
    pub fn cast(&mut self, source: Source, sureness: Sureness, ids: &[TokenId]) {
        let cast = &mut self.0[source as usize];
        if !ids.is_empty() && cast.len() < Self::LONGEST {
            let ids = ids[..ids.len().min(Self::LONGEST)].to_vec();
            cast.push_back(Shadow { ids, sureness, right: 0 });
        }
    }

    /// The text went on with `tokens`; each of `beliefs` hears how right everybody was.
    pub fn judge(&mut self, tokens: &[TokenId], beliefs: &mut [&mut Beliefs]) {
        for (source, cast) in Source::ALL.into_iter().zip(&mut self.0) {
            cast.retain_mut(|shadow| {
                for token in tokens {
                    let right = shadow.ids[shadow.right] == *token;
                    for beliefs in &mut *beliefs {
                        beliefs.record(source, shadow.sureness, shadow.right, right);
                    }
                    shadow.right += 1;
                    if !right || shadow.right == shadow.ids.len() {
                        return false;
                    }
                }
                true
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    /// However the text comes in pieces, a proposal is judged up to its first wrong draft or its end.
    #[test]
    fn proposals_are_judged_by_the_text_that_comes() {
        type Case<'a> = (&'a [&'a [u32]], &'a [bool], bool);
        let cases: &[Case<'_>] = &[
            (&[&[1], &[2], &[3]], &[true, true, true], true),
            (&[&[1, 2, 3, 4]], &[true, true, true], true),
            (&[&[1, 9]], &[true, false], true),
            (&[&[9, 2, 3]], &[false], true),
            (&[&[1], &[2]], &[true, true], false),
            (&[&[], &[1]], &[true], false),
        ];
        for (pieces, judged, over) in cases {
            let mut beliefs = Beliefs::of_a_sequence();
            let mut expected = beliefs.clone();
            let mut shadows = Shadows::default();
            shadows.cast(Source::Ngram, 2, &ids(&[1, 2, 3]));
            shadows.cast(Source::Suffix, 0, &[]);
            pieces.iter().for_each(|piece| shadows.judge(&ids(piece), &mut [&mut beliefs]));
            for (depth, right) in judged.iter().enumerate() {
                expected.record(Source::Ngram, 2, depth, *right);
            }
            assert_eq!(beliefs, expected, "{pieces:?}");
            assert_eq!(shadows == Shadows::default(), *over, "{pieces:?}");
        }
    }

    #[test]
    fn proposals_that_overlap_are_judged_side_by_side_and_stay_few() {
        let mut beliefs = Beliefs::of_a_sequence();
        let mut expected = beliefs.clone();
        let mut shadows = Shadows::default();
        for (at, token) in [1, 2, 3].into_iter().enumerate() {
            shadows.cast(Source::Drafter, 0, &ids(&[1, 2, 3, 4][at..]));
            shadows.judge(&ids(&[token]), &mut [&mut beliefs]);
            (0..=at).rev().for_each(|depth| expected.record(Source::Drafter, 0, depth, true));
        }
        assert_eq!(beliefs, expected);
        (0..100).for_each(|_| shadows.cast(Source::Drafter, 0, &ids(&[4; 40])));
        assert!(shadows.0[0].len() == Shadows::LONGEST && shadows.0[0][5].ids.len() == Shadows::LONGEST);
    }
}
