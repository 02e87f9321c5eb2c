//! What sources would have proposed, laid beside the text that came.

use std::collections::VecDeque;

use request::{Source, TokenId};

use crate::{Beliefs, Proposal};

/// For each source the proposals that are being judged. One is added in each step, so the first place of a
/// chain is judged by each token that comes, and the later ones as often as they are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shadows([VecDeque<Shadow>; Source::ALL.len()]);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shadow {
    proposal: Proposal,
    /// The last draft that came true, and how many did.
    at: Option<u32>,
    right: usize,
}

impl Shadows {
    /// Drafts of a proposal that are judged: what a step could take of it.
    pub const LONGEST: usize = 16;

    /// `source` would have the text go on so.
    pub fn cast(&mut self, source: Source, proposal: &Proposal) {
        let cast = &mut self.0[source as usize];
        if !proposal.drafts.is_empty() && cast.len() < Self::LONGEST {
            cast.push_back(Shadow { proposal: proposal.first(Self::LONGEST), at: None, right: 0 });
        }
    }

    /// The text went on with `tokens`; each of `beliefs` hears how right everybody was.
    pub fn judge(&mut self, tokens: &[TokenId], beliefs: &mut [&mut Beliefs]) {
        for (source, cast) in Source::ALL.into_iter().zip(&mut self.0) {
            cast.retain_mut(|shadow| tokens.iter().all(|token| shadow.judge(source, *token, beliefs)));
        }
    }
}

impl Shadow {
    /// All drafts of the place are judged, siblings each for itself. Whether there is more to judge.
    fn judge(&mut self, source: Source, token: TokenId, beliefs: &mut [&mut Beliefs]) -> bool {
        let Proposal { drafts, sureness } = &self.proposal;
        let mut came = None;
        for draft in drafts.children(self.at) {
            let right = drafts.ids()[draft as usize] == token;
            for beliefs in &mut *beliefs {
                beliefs.record(source, sureness[draft as usize], self.right, right);
            }
            came = came.or(right.then_some(draft));
        }
        self.right += 1;
        self.at = came.or(self.at);
        came.is_some_and(|draft| drafts.children(Some(draft)).next().is_some())
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
            shadows.cast(Source::Ngram, &Proposal::chain(ids(&[1, 2, 3]), 2));
            shadows.cast(Source::Suffix, &Proposal::default());
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
            shadows.cast(Source::Drafter, &Proposal::chain(ids(&[1, 2, 3, 4][at..]), 0));
            shadows.judge(&ids(&[token]), &mut [&mut beliefs]);
            (0..=at).rev().for_each(|depth| expected.record(Source::Drafter, 0, depth, true));
        }
        assert_eq!(beliefs, expected);
        (0..100).for_each(|_| shadows.cast(Source::Drafter, &Proposal::chain(ids(&[4; 40]), 0)));
        assert!(
            shadows.0[0].len() == Shadows::LONGEST
                && shadows.0[0][5].proposal.drafts.len() == Shadows::LONGEST
        );
    }

    /// Of a tree every sibling is judged, and the walk goes on behind the one that came.
    #[test]
    fn siblings_are_judged_each_for_itself() {
        let drafts = crate::Tree::new(ids(&[1, 2, 3, 4]), vec![None, None, Some(1), Some(1)]).unwrap();
        let proposal = Proposal { drafts, sureness: vec![0, 1, 0, 1] };
        let (mut beliefs, mut expected) = (Beliefs::of_a_sequence(), Beliefs::of_a_sequence());
        let mut shadows = Shadows::default();
        shadows.cast(Source::Recycle, &proposal);
        shadows.judge(&ids(&[2, 3, 9]), &mut [&mut beliefs]);
        for (sureness, depth, right) in [(0, 0, false), (1, 0, true), (0, 1, true), (1, 1, false)] {
            expected.record(Source::Recycle, sureness, depth, right);
        }
        assert_eq!((beliefs, shadows), (expected, Shadows::default()));
    }
}
