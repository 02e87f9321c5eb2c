use std::fmt;
use std::panic::AssertUnwindSafe;

use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::panic_utils::catch_unwind;
use request::TokenId;
use sampling::Mask;

use crate::compile::brief;

/// A compiled constraint at one place in one answer.
pub(crate) struct Matcher {
    parser: TokenParser,
    /// What the answer may hold at all.
    takes: Mask,
    /// The stop tokens: allowed wherever the grammar may end.
    end: Mask,
    /// Tokens taken: committed ones, and drafts while masks are computed.
    taken: usize,
    /// Why the parser can no longer be asked. Once set it stays: the parser's state is not known then.
    broken: Option<String>,
}

impl Matcher {
    /// `takes` is as wide as the vocabulary.
    pub(crate) fn new(mut parser: TokenParser, takes: Mask, stop: &[TokenId]) -> Self {
        if parser.is_fresh() {
            parser.start_without_prompt();
        }
        let mut end = Mask::none(takes.words().len() * 32);
        stop.iter().for_each(|id| end.allow(*id));
        Self { parser, takes, end, taken: 0, broken: None }
    }

    /// Asks the parser; its errors and panics break this matcher for good.
    fn ask<T>(&mut self, question: impl FnOnce(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, String> {
        if let Some(reason) = &self.broken {
            return Err(reason.clone());
        }
        let parser = &mut self.parser;
        catch_unwind(AssertUnwindSafe(|| question(parser))).map_err(|error| {
            let reason = match self.parser.stop_reason() {
                StopReason::LexerTooComplex | StopReason::ParserTooComplex => format!(
                    "the constraint costs more at this point of the answer than it may: {}; simplify it",
                    brief(&error)
                ),
                StopReason::NoExtensionBias => {
                    "the constraint allows no token of the vocabulary at this point of the answer".to_owned()
                }
                _ => format!("the constraint failed: {}", brief(&error)),
            };
            self.broken = Some(reason.clone());
            reason
        })
    }

    /// Takes tokens up to the first that is not allowed; returns how many.
    fn take(&mut self, ids: &[TokenId]) -> Result<usize, String> {
        let before = self.taken;
        let text = ids.iter().take_while(|id| self.takes.allows(**id) && !self.end.allows(**id)).count();
        let ids = ids.get(..text).unwrap_or(ids);
        let taken = self.ask(|parser| {
            for (index, id) in ids.iter().enumerate() {
                if parser.stopped() || !parser.validate_token(id.0)? {
                    return Ok(index);
                }
                parser.consume_token(id.0)?;
                parser.check_stop()?;
                anyhow::ensure!(parser.num_tokens() == before + index + 1, "the parser took text back");
            }
            Ok(ids.len())
        })?;
        self.taken += taken;
        Ok(taken)
    }

    fn take_back(&mut self, tokens: usize) -> Result<(), String> {
        self.ask(|parser| parser.rollback(tokens))?;
        self.taken -= tokens;
        Ok(())
    }

    fn mask(&mut self) -> Result<Mask, String> {
        let allowed = self.ask(|parser| match parser.stopped() {
            true => Ok(None),
            false => Ok(Some((parser.compute_mask()?, parser.is_accepting()))),
        })?;
        let Some((allowed, may_end)) = allowed else { return Ok(self.end.clone()) };
        // llguidance's words are ours, with a spare one behind the vocabulary.
        let words = self.takes.words().iter().zip(self.end.words()).zip(allowed.as_slice());
        let words = words.map(|((takes, end), allowed)| allowed & takes | if may_end { *end } else { 0 });
        let mask = Mask::from_words(words.collect());
        if mask.is_empty() {
            return self
                .ask(|_| Err(anyhow::anyhow!("only control tokens could come here, and none is named")));
        }
        Ok(mask)
    }

    /// The masks along drafts, which stay taken; how many says `taken`.
    fn masks_along(&mut self, drafts: &[TokenId]) -> Result<Vec<Mask>, String> {
        let mut masks = Vec::with_capacity(drafts.len() + 1);
        masks.push(self.mask()?);
        for draft in drafts {
            if self.take(&[*draft])? == 0 {
                return Err(format!("draft {draft} is not allowed; only allowed drafts have masks"));
            }
            masks.push(self.mask()?);
        }
        Ok(masks)
    }
}

impl engine::Constraint for Matcher {
    fn commit(&mut self, ids: &[TokenId]) -> Result<(), TokenId> {
        let taken = self.take(ids).unwrap_or(0);
        match ids.get(taken) {
            None => Ok(()),
            Some(refused) => {
                // A failure is kept in `broken`, and every later call tells it.
                let _ = self.take_back(taken);
                Err(*refused)
            }
        }
    }

    fn rollback(&mut self, tokens: usize) {
        // More than was taken, or a failure: kept in `broken`, and told by the next `masks`.
        let _ = self.take_back(tokens);
    }

    fn allowed(&mut self, drafts: &[TokenId]) -> usize {
        let taken = self.take(drafts).unwrap_or(0);
        match self.take_back(taken) {
            Ok(()) => taken,
            Err(_) => 0,
        }
    }

    fn masks(&mut self, drafts: &[TokenId]) -> Result<Vec<Mask>, String> {
        let before = self.taken;
        let masks = self.masks_along(drafts);
        self.take_back(self.taken - before)?;
        masks
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher").field("taken", &self.taken).field("broken", &self.broken).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use engine::Constraint as _;
    use request::Constraint;

    use super::*;
    use crate::compile::Compiler;
    use crate::{Vocabulary, Word};

    #[test]
    fn a_failure_inside_is_told_and_stays() {
        let words = ["a", "b"].map(|word| Word::Text(word.into())).into_iter();
        let words = words.chain([Word::Control("<end>".to_owned())]).collect();
        let compiler = Compiler::new(&Vocabulary::new(words, vec![TokenId(2)]).unwrap()).unwrap();
        let mut matcher = compiler.matcher(&Constraint::Regex("[ab]+".to_owned())).unwrap();
        matcher.commit(&[TokenId(0), TokenId(1)]).unwrap();
        let error = matcher.ask(|parser| parser.parser.test_trigger_lexer_error()).unwrap_err();
        assert_eq!(error, "the constraint failed: panic: synthetic error");
        assert_eq!(matcher.masks(&[]), Err(error));
        assert_eq!((matcher.commit(&[TokenId(0)]), matcher.allowed(&[TokenId(0)])), (Err(TokenId(0)), 0));
    }
}
