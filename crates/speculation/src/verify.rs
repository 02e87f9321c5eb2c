use request::TokenId;

/// What a verification step decided for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Drafts accepted, from the first on.
    pub accepted: usize,
    /// Tokens to commit: the accepted drafts, then the target's own next token.
    pub tokens: Vec<TokenId>,
}

/// Judges a chain of drafts. `picks[i]` is what the target drew for the place of `drafts[i]`, and the
/// last one is for the place after all of them, so there is one more pick than drafts.
///
/// A draft stands when the target drew the same token. What a rule means is in the draws: under
/// *coupled*, *strict* and *greedy* the picks are the target's own samples whatever was drafted; under
/// *rejection* the draw gives the draft back with probability min(1, p/q) and a token of the residual
/// otherwise (`sampling::How::Judge`). So the output's law is the target's under each of them
/// (algorithms.md 14.1).
pub fn verify(drafts: &[TokenId], picks: &[TokenId]) -> Verdict {
    debug_assert_eq!(picks.len(), drafts.len() + 1, "one pick after each draft and one before");
    let accepted = drafts.iter().zip(picks).take_while(|(draft, pick)| draft == pick).count();
    let tokens = picks.iter().copied().take(accepted + 1).collect();
    Verdict { accepted, tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn drafts_stand_up_to_the_first_that_the_target_did_not_draw() {
        for (drafts, picks, accepted, committed) in [
            (&[][..], &[7][..], 0, &[7][..]),
            (&[5, 6], &[5, 6, 7], 2, &[5, 6, 7]),
            (&[5, 6], &[5, 9, 7], 1, &[5, 9]),
            (&[5, 6], &[4, 6, 7], 0, &[4]),
        ] {
            let verdict = verify(&ids(drafts), &ids(picks));
            assert_eq!(verdict, Verdict { accepted, tokens: ids(committed) });
        }
    }
}
