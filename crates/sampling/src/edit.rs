//! What is done to logits before a token is drawn from them.

use request::{Adjustments, Penalties, TokenId};

use crate::Mask;

/// Changes to the logits of one row, computed by whoever knows the row's history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Tokens outside it cannot be drawn.
    pub mask: Option<Mask>,
    /// Tokens that cannot be drawn although the mask may allow them.
    pub banned: Vec<TokenId>,
    /// At most one entry a token.
    pub changes: Vec<Change>,
}

/// What happens to one token's logit: bias first, then penalties (vLLM's order).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub token: TokenId,
    /// Added first.
    pub bias: f32,
    /// Positive logits are divided by it, others multiplied; 1 is neutral.
    pub repetition: f32,
    /// Subtracted last: frequency and presence together.
    pub penalty: f32,
}

impl Edit {
    pub fn is_neutral(&self) -> bool {
        self.mask.is_none() && self.banned.is_empty() && self.changes.is_empty()
    }

    /// Applies itself. Tokens beyond the logits are ignored: the layer may be narrower than the vocabulary.
    pub fn apply(&self, logits: &mut [f32]) {
        for change in &self.changes {
            if let Some(logit) = logits.get_mut(change.token.0 as usize) {
                *logit += change.bias;
                if *logit > 0.0 {
                    *logit /= change.repetition;
                } else {
                    *logit *= change.repetition;
                }
                *logit -= change.penalty;
            }
        }
        if let Some(mask) = &self.mask {
            mask.apply(logits);
        }
        for token in &self.banned {
            if let Some(logit) = logits.get_mut(token.0 as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// How often tokens appeared in one sequence; gives the changes for its next row.
#[derive(Clone, Debug)]
pub struct History {
    penalties: Penalties,
    /// Sorted by token.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: TokenId,
    bias: f32,
    /// It stands in the prompt.
    prompted: bool,
    /// Occurrences in the output.
    output: u32,
}

impl History {
    /// `None` when the adjustments change nothing, so that nothing has to be counted.
    pub fn new(adjust: &Adjustments, prompt: &[TokenId], output: &[TokenId]) -> Option<Self> {
        if adjust.is_neutral() {
            return None;
        }
        let mut history = Self { penalties: adjust.penalties, entries: Vec::new() };
        for (token, bias) in &adjust.logit_bias {
            history.entry(*token).bias = *bias;
        }
        if adjust.penalties.repetition != 1.0 {
            // Sorted first: inserting a long prompt token by token would take quadratic time.
            let mut seen = prompt.to_vec();
            seen.sort_unstable();
            seen.dedup();
            let biased = std::mem::take(&mut history.entries);
            history.entries =
                seen.into_iter().map(|token| Entry { token, bias: 0.0, prompted: true, output: 0 }).collect();
            for entry in biased {
                history.entry(entry.token).bias = entry.bias;
            }
        }
        history.push(output);
        Some(history)
    }

    /// The output grew.
    pub fn push(&mut self, output: &[TokenId]) {
        if self.penalties.is_neutral() {
            return;
        }
        for token in output {
            self.entry(*token).output += 1;
        }
    }

    /// The last output tokens are taken back.
    pub fn pop(&mut self, output: &[TokenId]) {
        if self.penalties.is_neutral() {
            return;
        }
        for token in output {
            let entry = self.entry(*token);
            entry.output = entry.output.saturating_sub(1);
        }
    }

    pub fn changes(&self) -> Vec<Change> {
        let Penalties { repetition, presence, frequency } = self.penalties;
        let change = |e: &Entry| Change {
            token: e.token,
            bias: e.bias,
            repetition: if e.prompted || e.output > 0 { repetition } else { 1.0 },
            penalty: if e.output > 0 { presence + frequency * e.output as f32 } else { 0.0 },
        };
        let neutral = |c: &Change| c.bias == 0.0 && c.repetition == 1.0 && c.penalty == 0.0;
        self.entries.iter().map(change).filter(|c| !neutral(c)).collect()
    }

    fn entry(&mut self, token: TokenId) -> &mut Entry {
        let at = match self.entries.binary_search_by_key(&token, |e| e.token) {
            Ok(at) => at,
            Err(at) => {
                self.entries.insert(at, Entry { token, bias: 0.0, prompted: false, output: 0 });
                at
            }
        };
        &mut self.entries[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    /// One prompt 1 1 2 and output 2 3 3 against each kind of adjustment; logits are all 2, but the last.
    #[test]
    fn adjustments_follow_their_definitions() {
        let penalties = Penalties::default();
        for (name, adjust, expected) in [
            (
                "repetition looks at prompt and output",
                Adjustments {
                    penalties: Penalties { repetition: 2.0, ..penalties },
                    ..Adjustments::default()
                },
                [2.0, 1.0, 1.0, 1.0, -2.0],
            ),
            (
                "presence looks at the output",
                Adjustments { penalties: Penalties { presence: 0.5, ..penalties }, ..Adjustments::default() },
                [2.0, 2.0, 1.5, 1.5, -2.0],
            ),
            (
                "frequency counts the output",
                Adjustments {
                    penalties: Penalties { frequency: 0.5, ..penalties },
                    ..Adjustments::default()
                },
                [2.0, 2.0, 1.5, 1.0, -2.0],
            ),
            (
                "bias comes before repetition",
                Adjustments {
                    logit_bias: vec![(TokenId(1), -4.0), (TokenId(4), 1.0)],
                    penalties: Penalties { repetition: 2.0, ..penalties },
                },
                [2.0, -4.0, 1.0, 1.0, -1.0],
            ),
        ] {
            let history = History::new(&adjust, &ids(&[1, 1, 2]), &ids(&[2, 3, 3])).unwrap();
            let mut logits = [2.0, 2.0, 2.0, 2.0, -2.0];
            Edit { changes: history.changes(), ..Edit::default() }.apply(&mut logits);
            assert_eq!(logits, expected, "{name}");
        }
        assert!(History::new(&Adjustments::default(), &ids(&[1]), &[]).is_none());
    }

    #[test]
    fn what_is_taken_back_is_forgotten() {
        let penalties = Penalties { repetition: 1.5, presence: 0.25, frequency: 0.5 };
        let adjust = Adjustments { penalties, logit_bias: vec![(TokenId(9), 3.0)] };
        let mut history = History::new(&adjust, &ids(&[1, 2]), &ids(&[3])).unwrap();
        let before = history.changes();
        history.push(&ids(&[3, 1, 7, 9]));
        assert_ne!(history.changes(), before);
        history.pop(&ids(&[3, 1, 7, 9]));
        assert_eq!(history.changes(), before);
    }

    #[test]
    fn masks_and_bans_win_over_everything_and_foreign_tokens_are_ignored() {
        let mut mask = Mask::none(8);
        mask.allow(TokenId(1));
        mask.allow(TokenId(2));
        let edit = Edit {
            mask: Some(mask),
            banned: ids(&[2, 77]),
            changes: vec![Change { token: TokenId(0), bias: 100.0, repetition: 1.0, penalty: 0.0 }],
        };
        let mut logits = [0.0; 4];
        edit.apply(&mut logits);
        let gone = f32::NEG_INFINITY;
        assert_eq!(logits, [gone, 0.0, gone, gone]);
    }
}
