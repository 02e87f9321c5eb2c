use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use request::TokenId;

use super::Conversation;
use crate::vocabulary::{TOKENS, TokenKind, invalid};
use crate::{EncodeError, Tokenizer, TokenizerError};

/// Keeps what people typed from becoming control tokens: a message that says `<|im_end|>` must not end
/// its turn and begin another in somebody else's name.
///
/// A gap, a character that no text of the conversation has, is put into every control token that a
/// text spells. The template runs on that; control tokens are found in the prompt while the gaps stand,
/// and the gaps are taken out before words are cut. So a text that spells no control token goes through
/// the template as it is, and its ids are those of encoding the whole prompt.
#[derive(Debug)]
pub(super) struct Fence {
    /// Control tokens, overlapping ones too.
    control: AhoCorasick,
    /// Starts of control tokens: template or another text could complete one at a text's end.
    starts: HashSet<String>,
    longest: usize,
    /// As the tokenizer finds them: control and user-defined tokens, at one place the longest.
    added: AhoCorasick,
    /// By pattern of `added`; `None`: user-defined.
    ids: Vec<Option<TokenId>>,
}

/// Unicode's noncharacters: never assigned, so that no text has a reason to use one.
const GAPS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

impl Fence {
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let broken = |e: aho_corasick::BuildError| invalid(TOKENS, e.to_string());
        let all = || tokenizer.vocabulary().iter();
        // One of a single character has no place for a gap; no model has such.
        let control: Vec<&str> = all()
            .filter(|(_, token, kind)| *kind == TokenKind::Control && token.chars().nth(1).is_some())
            .map(|(_, token, _)| token)
            .collect();
        let starts: HashSet<String> = control
            .iter()
            .flat_map(|token| token.char_indices().skip(1).map(|(end, _)| token[..end].to_owned()))
            .collect();
        let (patterns, ids): (Vec<&str>, Vec<_>) = all()
            .filter(|(_, token, kind)| {
                matches!(kind, TokenKind::Control | TokenKind::UserDefined) && !token.is_empty()
            })
            .map(|(id, token, kind)| (token, (kind == TokenKind::Control).then_some(id)))
            .unzip();
        Ok(Self {
            longest: starts.iter().map(String::len).max().unwrap_or(0),
            starts,
            control: AhoCorasick::new(control).map_err(broken)?,
            added: AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(patterns)
                .map_err(broken)?,
            ids,
        })
    }

    /// Puts the gaps in; `None`: every one of them stands in the texts already.
    pub(super) fn guard(&self, conversation: &mut Conversation) -> Option<char> {
        let mut used = HashSet::new();
        conversation.map_texts(&mut |text| used.extend(text.chars().filter(|c| GAPS.contains(c))));
        let gap = GAPS.into_iter().find(|c| !used.contains(c))?;
        conversation.map_texts(&mut |text| self.guard_text(text, gap));
        Some(gap)
    }

    fn guard_text(&self, text: &mut String, gap: char) {
        let after_first = |start: usize| text[start..].chars().next().map_or(start, |c| start + c.len_utf8());
        let mut gaps: Vec<usize> = self
            .control
            .find_overlapping_iter(text.as_str())
            .map(|found| after_first(found.start()))
            .collect();
        // Templates trim, so what comes before white space can be an end, too.
        gaps.extend(
            [text.as_str(), text.trim_end()].into_iter().filter(|t| self.ends_in_start(t)).map(str::len),
        );
        if gaps.is_empty() {
            return;
        }
        gaps.sort_unstable();
        gaps.dedup();
        let mut guarded = String::with_capacity(text.len() + gaps.len() * gap.len_utf8());
        let mut from = 0;
        for at in gaps {
            guarded.push_str(&text[from..at]);
            guarded.push(gap);
            from = at;
        }
        guarded.push_str(&text[from..]);
        *text = guarded;
    }

    fn ends_in_start(&self, text: &str) -> bool {
        let near = text.char_indices().rev().map(|(at, _)| &text[at..]);
        near.take_while(|end| end.len() <= self.longest).any(|end| self.starts.contains(end))
    }

    /// The ids of a prompt that was rendered from guarded texts.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        prompt: &str,
        gap: char,
    ) -> Result<Vec<TokenId>, EncodeError> {
        if !prompt.contains(gap) {
            return tokenizer.encode(prompt, true);
        }
        let mut ids = Vec::new();
        let mut from = 0;
        let plain = |from, to| tokenizer.encode(&prompt[from..to].replace(gap, ""), false);
        for found in self.added.find_iter(prompt) {
            // User-defined tokens are found with the plain text around them.
            let Some(Some(id)) = self.ids.get(found.pattern().as_usize()) else { continue };
            ids.extend(plain(from, found.start())?);
            ids.push(*id);
            from = found.end();
        }
        ids.extend(plain(from, prompt.len())?);
        Ok(ids)
    }
}
