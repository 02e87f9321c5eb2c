//! Stop strings in a text that comes piece by piece.
//!
//! A string is looked for in the text, so it does not matter where tokens, messages or workers begin.
//! Of several, the one that ends first wins; of those that end at one place, the longest. That depends
//! on the text alone, never on how much of it comes at once.

/// The strings of one request with how far the text matches each (Knuth, Morris and Pratt, 1977, one
/// automaton a string: there are few).
#[derive(Clone, Debug, Default)]
pub(crate) struct StopStrings(Vec<Automaton>);

/// A stop string that the text completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) string: String,
    /// Bytes of the text just given up to the end of the match.
    pub(crate) end: usize,
}

#[derive(Clone, Debug)]
struct Automaton {
    string: String,
    /// Entry i: length of the longest proper prefix of the string that ends its first i + 1 bytes.
    borders: Vec<usize>,
    /// Bytes of the string that the text so far ends with; never all of them.
    matched: usize,
}

impl StopStrings {
    /// Empty strings are refused before (`question`); they would match nothing.
    pub(crate) fn new(strings: Vec<String>) -> Self {
        Self(strings.into_iter().map(Automaton::new).collect())
    }

    /// Goes on with text; stops at the first place where a string ends.
    pub(crate) fn push(&mut self, text: &str) -> Option<Match> {
        for (at, byte) in text.bytes().enumerate() {
            let mut longest: Option<&str> = None;
            for automaton in &mut self.0 {
                if automaton.step(byte) && longest.is_none_or(|l| l.len() < automaton.string.len()) {
                    longest = Some(&automaton.string);
                }
            }
            if let Some(string) = longest {
                return Some(Match { string: string.to_owned(), end: at + 1 });
            }
        }
        None
    }

    /// Bytes at the end of the text that may become a stop string, or the start of one.
    pub(crate) fn open(&self) -> usize {
        self.0.iter().map(|a| a.matched).max().unwrap_or(0)
    }
}

impl Automaton {
    fn new(string: String) -> Self {
        let bytes = string.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            let mut border = borders[i - 1];
            while border > 0 && bytes[border] != bytes[i] {
                border = borders[border - 1];
            }
            borders[i] = border + usize::from(bytes[border] == bytes[i]);
        }
        Self { string, borders, matched: 0 }
    }

    /// Whether this byte completes the string.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.string.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        if bytes.get(self.matched) != Some(&byte) {
            return false;
        }
        self.matched += 1;
        let complete = self.matched == bytes.len();
        if complete {
            // The text may go on: a match can be one that is not wanted yet (min_tokens).
            self.matched = self.borders[self.matched - 1];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What wins, by looking at every place: the earliest end, then the longest.
    fn naive(strings: &[String], text: &str) -> Option<Match> {
        let found = (1..=text.len()).find_map(|end| {
            let ended = strings.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes()));
            ended.max_by_key(|s| s.len()).map(|s| (s.clone(), end))
        });
        found.map(|(string, end)| Match { string, end })
    }

    #[test]
    fn which_string_wins() {
        for (strings, text, expected) in [
            (&["stop"][..], "no st op", None),
            (&["stop"], "do stop it", Some(("stop", 7))),
            (&["aab"], "aaab", Some(("aab", 4))),
            // The first to end, although the other began before it.
            (&["abcd", "c"], "abcd", Some(("c", 3))),
            // Both end here: the longest.
            (&["b", "ab"], "xab", Some(("ab", 3))),
            (&["\n\n", "\n"], "a\n\n", Some(("\n", 2))),
            (&["é", "界"], "世界", Some(("界", 6))),
        ] {
            let mut stop = StopStrings::new(strings.iter().map(ToString::to_string).collect());
            let found = stop.push(text);
            let found = found.as_ref().map(|m| (m.string.as_str(), m.end));
            assert_eq!(found, expected, "{strings:?} in {text:?}");
        }
    }

    #[test]
    fn what_may_become_a_string_is_open() {
        let mut stop = StopStrings::new(vec!["</s>".into(), "\nUser:".into()]);
        for (text, open) in [("a<", 1), ("/", 2), ("/", 0), ("\nUse", 4), ("</s", 3), ("\n", 1)] {
            assert_eq!((stop.push(text), stop.open()), (None, open), "{text:?}");
        }
        assert_eq!(StopStrings::default().open(), 0);
    }

    #[test]
    fn after_a_match_that_does_not_count_the_text_goes_on() {
        let mut stop = StopStrings::new(vec!["aa".into()]);
        assert_eq!(stop.push("aaa").map(|m| m.end), Some(2));
        // The second of the two may be the first of another two.
        assert_eq!((stop.open(), stop.push("a").map(|m| m.end)), (1, Some(1)));
    }

    proptest! {
        /// Few letters, so that borders and overlaps are common; of two bytes, so that characters are cut.
        #[test]
        fn as_by_looking_however_it_comes(
            strings in prop::collection::vec("[abé]{1,5}", 1..4),
            text in "[abé]{0,40}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|c| text.floor_char_boundary(c.index(text.len() + 1))).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stop = StopStrings::new(strings.clone());
            let mut found = None;
            for cut in cuts.windows(2) {
                if let Some(m) = stop.push(&text[cut[0]..cut[1]]) {
                    found = Some(Match { end: cut[0] + m.end, ..m });
                    break;
                }
                // Open is exactly the longest end of the text that starts a string.
                let longest = (0..=cut[1]).rev().find(|&n| {
                    strings.iter().any(|s| n < s.len() && text.as_bytes()[..cut[1]].ends_with(&s.as_bytes()[..n]))
                });
                prop_assert_eq!(Some(stop.open()), longest);
            }
            prop_assert_eq!(found, naive(&strings, &text));
        }
    }
}
