use request::{Rule, TokenId};

/// What a verification step decided for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Drafts accepted, from the first on.
    pub accepted: usize,
    /// Tokens to commit: the accepted drafts, then the target's own next token.
    pub tokens: Vec<TokenId>,
}

/// A rule that this version does not judge by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBuilt(pub Rule);

/// Judges a chain of drafts. `picks[i]` is the target's own token for the place of `drafts[i]`, and
/// the last one is for the place after all of them, so there is one more pick than drafts.
///
/// Coupled, strict and greedy decide alike: a draft stands when the target picked the same token.
/// They differ in what the *drafter* does (its noise). The picks are the target's samples whatever
/// was drafted, so the output's law is the target's (algorithms.md 14.1).
pub fn verify(rule: Rule, drafts: &[TokenId], picks: &[TokenId]) -> Result<Verdict, NotBuilt> {
    match rule {
        Rule::Coupled | Rule::Strict | Rule::Greedy => {}
        Rule::Rejection => return Err(NotBuilt(rule)),
    }
    debug_assert_eq!(picks.len(), drafts.len() + 1, "one pick after each draft and one before");
    let accepted = drafts.iter().zip(picks).take_while(|(draft, pick)| draft == pick).count();
    let tokens = picks.iter().copied().take(accepted + 1).collect();
    Ok(Verdict { accepted, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn drafts_stand_up_to_the_first_that_the_target_did_not_pick() {
        for (drafts, picks, accepted, committed) in [
            (&[][..], &[7][..], 0, &[7][..]),
            (&[5, 6], &[5, 6, 7], 2, &[5, 6, 7]),
            (&[5, 6], &[5, 9, 7], 1, &[5, 9]),
            (&[5, 6], &[4, 6, 7], 0, &[4]),
        ] {
            for rule in [Rule::Coupled, Rule::Strict, Rule::Greedy] {
                let verdict = verify(rule, &ids(drafts), &ids(picks)).unwrap();
                assert_eq!(verdict, Verdict { accepted, tokens: ids(committed) });
            }
        }
        assert_eq!(verify(Rule::Rejection, &[], &ids(&[1])), Err(NotBuilt(Rule::Rejection)));
    }
}
