//! How far a streamed answer was delivered: the `id` of every event, and what `Last-Event-ID` says.
//!
//! A coordinator keeps no answers. A client whose connection broke sends the identical request with the
//! id of the last event it got, to any coordinator: the answer is generated again with the seed in the
//! id, what was delivered is skipped, and the rest follows. The seed decides the text among nodes of one
//! numerics fingerprint, so the id names that, too.

use axum::http::HeaderMap;
use request::{Rule, Speculation};
use sha2::{Digest, Sha256};

use crate::failure::{self, Failure, Reason, invalid, not_built};

const HEADER: &str = "last-event-id";
const FIELD: &str = "Last-Event-ID";

/// What an id says beside the places: the same in all of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Of the request's body.
    pub(super) request: u64,
    /// Of the numerics fingerprint.
    pub(super) fingerprint: u32,
    /// The answer went on with other numerics: it cannot be generated again.
    pub(super) crossed: bool,
    /// Unix seconds.
    pub(super) created: u64,
    /// As in the answer's objects, without its prefix.
    pub(super) id: String,
    pub(super) seed: u64,
}

/// How far one choice was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Its first event was sent.
    pub(super) opened: bool,
    /// Its last event was sent.
    pub(super) ended: bool,
    pub(super) tokens: u64,
    /// Of the answer's text, tool calls included.
    pub(super) bytes: u64,
}

/// A whole id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) answer: Answer,
    pub(super) places: Vec<Place>,
    /// The figures were sent.
    pub(super) figures: bool,
}

/// Names an id's form; another version is refused.
const VERSION: &str = "p1";

pub(super) fn digest(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

pub(super) fn of_fingerprint(fingerprint: &str) -> u32 {
    (digest(fingerprint.as_bytes()) >> 32) as u32
}

/// What the client has already of the answer to this request.
pub(super) fn resumed(
    headers: &HeaderMap,
    body: &[u8],
    stream: bool,
    seed: Option<u64>,
    choices: usize,
    speculation: &Speculation,
) -> Result<Option<Mark>, Failure> {
    let Some(id) = headers.get(HEADER) else { return Ok(None) };
    let wrong = |why: &str| invalid(FIELD, format!("{FIELD}: {why}"));
    if !stream {
        return Err(wrong("is for streamed answers; send stream true or leave the header out"));
    }
    let mark =
        id.to_str().ok().and_then(Mark::parse).ok_or_else(|| {
            wrong("is no id of an event of ours; send the id of the last event that arrived")
        })?;
    if mark.answer.request != digest(body)
        || mark.places.len() != choices
        || seed.is_some_and(|s| s != mark.answer.seed)
    {
        return Err(wrong("belongs to another request; send the body of the first attempt unchanged"));
    }
    if mark.answer.crossed {
        return Err(wrong(
            "names an answer that went on at a worker of other numerics and cannot be generated again; start over \
             without the header",
        ));
    }
    let undecided = match speculation {
        _ if speculation.strategy.rapid().is_some() => Some("speculation.strategy rapid"),
        _ if speculation.rule == Rule::Rejection => Some("speculation.rule rejection"),
        _ => None,
    };
    if let Some(undecided) = undecided {
        return Err(not_built(
            FIELD,
            format!(
                "{FIELD}: under {undecided} a seed does not decide the text, so the answer cannot be resumed; start \
                 over without the header"
            ),
        ));
    }
    Ok(Some(mark))
}

/// The workers of now must be of the numerics that began the answer.
pub(super) fn same_numerics(mark: Option<&Mark>, fingerprint: &str) -> Result<(), Failure> {
    match mark {
        Some(mark) if mark.answer.fingerprint != of_fingerprint(fingerprint) => Err(failure::new(
            Reason::NoWorker,
            format!(
                "{FIELD}: the answer was begun by a worker of other numerics than {fingerprint}, the only ones that \
                 take requests now; try again later or start over without the header"
            ),
        )),
        _ => Ok(()),
    }
}

impl Mark {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        if parts.next() != Some(VERSION) {
            return None;
        }
        let number = |text: &str| hex(text);
        let request = number(parts.next()?)?;
        let fingerprint = u32::try_from(number(parts.next()?)?).ok()?;
        let created = number(parts.next()?)?;
        let id =
            parts.next().filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))?.to_owned();
        let seed = number(parts.next()?)?;
        let flags = number(parts.next()?).filter(|flags| *flags < 4)?;
        let (crossed, figures) = (flags & 1 != 0, flags & 2 != 0);
        let places = parts.next()?.split('_').map(Place::parse).collect::<Option<Vec<_>>>()?;
        if parts.next().is_some() {
            return None;
        }
        let answer = Answer { request, fingerprint, crossed, created, id, seed };
        Some(Self { answer, places, figures })
    }
}

/// Visible ASCII without spaces: it stands in a line of an event stream and comes back in a header.
impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answer { request, fingerprint, crossed, created, id, seed } = &self.answer;
        let flags = u8::from(*crossed) | u8::from(self.figures) << 1;
        write!(f, "{VERSION}.{request:x}.{fingerprint:x}.{created:x}.{id}.{seed:x}.{flags:x}.")?;
        for (i, place) in self.places.iter().enumerate() {
            if i > 0 {
                f.write_str("_")?;
            }
            let stage = u8::from(place.opened) | u8::from(place.ended) << 1;
            write!(f, "{stage:x}-{:x}-{:x}", place.tokens, place.bytes)?;
        }
        Ok(())
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let stage = hex(parts.next()?).filter(|stage| *stage < 4)?;
        let (tokens, bytes) = (hex(parts.next()?)?, hex(parts.next()?)?);
        parts.next().is_none().then_some(Self {
            opened: stage & 1 != 0,
            ended: stage & 2 != 0,
            tokens,
            bytes,
        })
    }
}

/// As `{:x}` writes it, nothing else.
fn hex(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (format!("{number:x}") == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark() -> impl Strategy<Value = Mark> {
        let place = (any::<bool>(), any::<bool>(), any::<u64>(), any::<u64>());
        let places = prop::collection::vec(place, 1..5);
        let answer = (any::<u64>(), any::<u32>(), any::<bool>(), any::<u64>(), "[0-9a-f]{32}", any::<u64>());
        (answer, places, any::<bool>()).prop_map(|(answer, places, figures)| {
            let (request, fingerprint, crossed, created, id, seed) = answer;
            let places = places.into_iter().map(|(opened, ended, tokens, bytes)| Place {
                opened,
                ended,
                tokens,
                bytes,
            });
            let answer = Answer { request, fingerprint, crossed, created, id, seed };
            Mark { answer, places: places.collect(), figures }
        })
    }

    proptest! {
        #[test]
        fn marks_come_back(mark in mark()) {
            let text = mark.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(Mark::parse(&text), Some(mark));
        }

        /// What was not written by us is not read, and never breaks anything.
        #[test]
        fn other_texts_are_no_marks(mark in mark(), at in any::<prop::sample::Index>(), c in "[ -~]", text in "\\PC{0,80}") {
            prop_assert_eq!(Mark::parse(&text), None);
            let mut changed = mark.to_string();
            let at = at.index(changed.len());
            changed.replace_range(at..=at, &c);
            if let Some(read) = Mark::parse(&changed) {
                prop_assert_eq!(read.to_string(), changed);
            }
        }
    }

    #[test]
    fn requests_have_digests_of_their_own() {
        assert_eq!(digest(b"a"), digest(b"a"));
        assert_ne!(digest(b"a"), digest(b"a "));
    }
}
