//! Output that the caller guesses (OpenAI's `prediction`) as a source of drafts.

use request::TokenId;

/// A guessed text and where in it the output is. It proposes; the target judges as it judges every
/// draft, so a wrong guess costs rows, never a wrong token.
#[derive(Clone, Debug)]
pub struct Prediction {
    ids: Vec<TokenId>,
    /// The next token it expects; `None` while the output is somewhere else.
    at: Option<usize>,
    /// Where it was last in step: the search for a way back begins there.
    last: usize,
}

/// Tokens in a row that must agree before the output counts as back in the guess.
const ANCHOR: usize = 3;

impl Prediction {
    /// `output`: what was delivered already. It is taken in one piece: looking for a way back after each
    /// of its tokens would take the time of both lengths multiplied.
    pub fn new(ids: Vec<TokenId>, output: &[TokenId]) -> Self {
        let mut prediction = Self { ids, at: Some(0), last: 0 };
        prediction.commit(output, output.len());
        prediction
    }

    /// At most `most` drafts for the places after the output.
    pub fn propose(&self, most: usize) -> &[TokenId] {
        let rest = self.at.and_then(|at| self.ids.get(at..)).unwrap_or_default();
        &rest[..rest.len().min(most)]
    }

    /// The output is `output` now, its last `fresh` tokens are new.
    pub fn commit(&mut self, output: &[TokenId], fresh: usize) {
        let new = &output[output.len().saturating_sub(fresh)..];
        for token in new {
            self.at = match self.at {
                Some(at) if self.ids.get(at) == Some(token) => Some(at + 1),
                _ => None,
            };
            if let Some(at) = self.at {
                self.last = at;
            }
        }
        if self.at.is_none() {
            self.at = self.find(output);
            self.last = self.at.unwrap_or(self.last);
        }
    }

    /// The place after the last [`ANCHOR`] tokens of the output: the next one after where it was, else
    /// the first one.
    fn find(&self, output: &[TokenId]) -> Option<usize> {
        let anchor = output.get(output.len().checked_sub(ANCHOR)?..)?;
        let start = self.last.saturating_sub(ANCHOR);
        let after = |from: usize| {
            let places = self.ids.get(from..)?;
            places.windows(ANCHOR).position(|w| w == anchor).map(|at| from + at + ANCHOR)
        };
        after(start).or_else(|| after(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    /// The guess is 1 to 9; outputs, and what is proposed after them.
    #[test]
    fn a_guess_follows_the_output_and_finds_its_way_back() {
        let guess = ids(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        for (output, proposed) in [
            (&[][..], &[1, 2, 3][..]),
            (&[1, 2], &[3, 4, 5]),
            // A token too many: out of step until three agree again.
            (&[1, 2, 77], &[]),
            (&[1, 2, 77, 3, 4], &[]),
            (&[1, 2, 77, 3, 4, 5], &[6, 7, 8]),
            // A part is left out.
            (&[1, 6, 7, 8], &[9]),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[]),
            (&[40, 41, 42, 43], &[]),
        ] {
            let prediction = Prediction::new(guess.clone(), &ids(output));
            assert_eq!(prediction.propose(3), ids(proposed), "after {output:?}");
            // Committed token by token, it ends at the same place.
            let mut slowly = Prediction::new(guess.clone(), &[]);
            (1..=output.len()).for_each(|end| slowly.commit(&ids(&output[..end]), 1));
            assert_eq!(slowly.propose(3), ids(proposed), "after {output:?} token by token");
        }
    }

    #[test]
    fn of_several_places_the_next_one_is_taken() {
        let guess = ids(&[1, 2, 3, 10, 1, 2, 3, 20, 1, 2, 3, 30]);
        let prediction = Prediction::new(guess, &ids(&[1, 2, 3, 10, 1, 2, 9, 1, 2, 3]));
        assert_eq!(prediction.propose(1), ids(&[20]));
    }
}
