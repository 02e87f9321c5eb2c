//! What the rows of a step ask for, as flat arrays for the device.

use sampling::{Change, Draw, How, Mask};

/// What fits the arrays of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) rows: usize,
    /// Changed and banned tokens of all rows together.
    pub(crate) entries: usize,
    /// Rows with a mask.
    pub(crate) masks: usize,
    /// Logits that are drawn from.
    pub(crate) vocab: usize,
}

/// Who draws a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Device,
    /// The row's logits are read back and go through [`sampling::draw`]; the reason is for whoever counts them.
    Host(&'static str),
}

/// Draws as the kernels read them (`Ask`, `Entry` in draw.cuh).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Encoded {
    /// A header of 16 words, the first of which is the number of rows, then 16 words a row.
    pub(crate) asks: Vec<u32>,
    /// Four words each.
    pub(crate) entries: Vec<u32>,
    /// [`Bounds::words`] each.
    pub(crate) masks: Vec<u32>,
    /// Of each draw.
    pub(crate) places: Vec<Place>,
}

/// Draws that do not go with the arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("{draws} draws do not fit the {bound} rows that the device draws at once")]
    TooMany { draws: usize, bound: usize },
    #[error("{draws} draws came with {positions} positions")]
    Positions { draws: usize, positions: usize },
}

/// Words of the header and of a row.
pub(crate) const WORDS: usize = 16;
/// Words of a changed token.
pub(crate) const ENTRY_WORDS: usize = 4;
/// An entry that makes its token impossible.
const BANNED: u32 = 1 << 31;

#[derive(Clone, Copy)]
enum Kind {
    Host = 0,
    Greedy = 1,
    Race = 2,
    Filter = 3,
}

impl Bounds {
    /// Words of a mask.
    pub(crate) fn words(self) -> usize {
        self.vocab.div_ceil(32)
    }
}

/// Encodes the draws of a step; `positions` are those of the tokens being drawn. Row i of the logits is draw i's.
///
/// What the kernels do not do, or what finds no room any more, is the host's, row by row ([`Place::Host`]).
pub(crate) fn encode(draws: &[Draw], positions: &[u32], bounds: Bounds) -> Result<Encoded, Misfit> {
    if draws.len() > bounds.rows {
        return Err(Misfit::TooMany { draws: draws.len(), bound: bounds.rows });
    }
    if draws.len() != positions.len() {
        return Err(Misfit::Positions { draws: draws.len(), positions: positions.len() });
    }
    let mut out = Encoded::default();
    out.asks.push(draws.len() as u32);
    out.asks.resize(WORDS, 0);
    for (draw, position) in draws.iter().zip(positions) {
        let place = match beyond(draw) {
            Some(why) => Place::Host(why),
            None => out.row(draw, position.saturating_add(draw.ahead), bounds),
        };
        if place != Place::Device {
            out.asks.push(Kind::Host as u32);
            out.asks.resize(out.asks.len().next_multiple_of(WORDS), 0);
        }
        out.places.push(place);
    }
    Ok(out)
}

/// Why the kernels cannot do this draw.
fn beyond(draw: &Draw) -> Option<&'static str> {
    match draw.how {
        How::Pick => {}
        How::Judge { .. } => return Some("the rejection rule"),
        How::Top | How::Told { .. } => return Some("a drafter's law"),
        How::Pulled { .. } => return Some("a target pulled towards its drafter"),
    }
    if draw.logprobs.is_some() {
        return Some("log-probabilities");
    }
    if draw.sampling.params.validate().is_err() {
        return Some("parameters out of range");
    }
    if !draw.sampling.params.is_greedy() && draw.sampling.params.typical_p < 1.0 {
        return Some("typical-p");
    }
    // Entries are applied side by side: one a token.
    let changes = &draw.edit.changes;
    if changes.windows(2).any(|two| two[0].token >= two[1].token) {
        return Some("changes that are not in the order of tokens");
    }
    None
}

impl Encoded {
    /// Whether a row has filters: they take kernels of their own.
    pub(crate) fn filters(&self) -> bool {
        self.asks.chunks(WORDS).skip(1).any(|ask| ask.first() == Some(&(Kind::Filter as u32)))
    }

    /// Appends a row; nothing when it has no room.
    fn row(&mut self, draw: &Draw, position: u32, bounds: Bounds) -> Place {
        let (first, slot) = (self.entries.len() / ENTRY_WORDS, self.masks.len() / bounds.words().max(1));
        if draw.edit.mask.is_some() && slot >= bounds.masks {
            return Place::Host("more masks than the device has room for");
        }
        let entries = entries(draw, bounds.vocab);
        if first + entries.len() > bounds.entries {
            return Place::Host("more changed tokens than the device has room for");
        }
        self.entries.extend(entries.iter().flatten());
        let mask = match &draw.edit.mask {
            None => -1,
            Some(mask) => {
                let end = self.masks.len() + bounds.words();
                self.masks.extend(mask.words().iter().take(bounds.words()));
                // Tokens beyond the mask are not allowed.
                self.masks.resize(end, 0);
                slot as i32
            }
        };
        let params = draw.sampling.params;
        let filters = (params.top_k != 0 && (params.top_k as usize) < bounds.vocab)
            || params.top_p < 1.0
            || params.min_p > 0.0;
        let kind = match (params.is_greedy(), filters) {
            (true, _) => Kind::Greedy,
            (false, false) => Kind::Race,
            (false, true) => Kind::Filter,
        };
        let floor = if params.min_p > 0.0 { libm::log(f64::from(params.min_p)) } else { f64::NEG_INFINITY };
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let [seed, more_seed] = halves(draw.sampling.seed);
        self.asks.extend([kind as u32, mask as u32, first as u32, entries.len() as u32]);
        self.asks.extend([seed, more_seed, draw.sampling.choice, position]);
        for real in [f64::from(params.temperature), f64::from(params.top_p), floor] {
            self.asks.extend(halves(real.to_bits()));
        }
        self.asks.extend([params.top_k, 0]);
        Place::Device
    }
}

/// The changed tokens of a row, each as it ends up: a token that is banned or masked is only made impossible.
fn entries(draw: &Draw, vocab: usize) -> Vec<[u32; ENTRY_WORDS]> {
    let edit = &draw.edit;
    let mut banned: Vec<u32> = edit.banned.iter().map(|t| t.0).filter(|t| (*t as usize) < vocab).collect();
    banned.sort_unstable();
    banned.dedup();
    let hidden = |change: &&Change| {
        let masked = edit.mask.as_ref().is_some_and(|mask: &Mask| !mask.allows(change.token));
        masked || banned.binary_search(&change.token.0).is_ok()
    };
    let within = edit.changes.iter().filter(|change| (change.token.0 as usize) < vocab);
    let changed = within.filter(|change| !hidden(change)).map(|change| {
        [change.token.0, change.bias.to_bits(), change.repetition.to_bits(), change.penalty.to_bits()]
    });
    changed.chain(banned.iter().map(|token| [token | BANNED, 0, 0, 0])).collect()
}

#[cfg(test)]
mod tests {
    use request::{Sampling, SamplingParams, TokenId};

    use super::*;

    const BOUNDS: Bounds = Bounds { rows: 4, entries: 3, masks: 1, vocab: 70 };

    fn at(temperature: f32) -> Draw {
        Draw::new(Sampling { params: SamplingParams::at(temperature), seed: 7 << 32 | 5, choice: 2 })
    }

    fn change(token: u32) -> Change {
        Change { token: TokenId(token), bias: 0.5, repetition: 1.5, penalty: 0.25 }
    }

    #[test]
    fn rows_are_laid_out_as_the_kernels_read_them() {
        let mut edited = at(0.5);
        edited.sampling.params.min_p = 0.5;
        edited.sampling.params.top_k = 9;
        edited.edit.changes = vec![change(3), change(64), change(70)];
        edited.edit.banned = vec![TokenId(64), TokenId(99), TokenId(5), TokenId(5)];
        edited.edit.mask = Some(Mask::from_words(vec![u32::MAX; 2]));
        let draws = [Draw::new(Sampling::GREEDY), at(1.0), edited];
        let encoded = encode(&draws, &[10, 11, 12], BOUNDS).unwrap();
        assert_eq!(encoded.places, [Place::Device; 3]);
        assert_eq!(encoded.asks.len(), 4 * WORDS);
        assert_eq!(encoded.asks[0], 3);
        let rows: Vec<&[u32]> = encoded.asks.chunks(WORDS).skip(1).collect();
        assert_eq!(rows[0][..4], [1, u32::MAX, 0, 0]);
        assert_eq!(rows[1][..8], [2, u32::MAX, 0, 0, 5, 7, 2, 11]);
        assert_eq!(rows[2][..8], [3, 0, 0, 3, 5, 7, 2, 12]);
        let real = |at: usize| f64::from_bits(u64::from(rows[2][at]) | u64::from(rows[2][at + 1]) << 32);
        assert_eq!((real(8), real(10), real(12), rows[2][14]), (0.5, 1.0, libm::log(0.5), 9));
        let bits = f32::to_bits;
        let expected = [[3, bits(0.5), bits(1.5), bits(0.25)], [5 | BANNED, 0, 0, 0], [64 | BANNED, 0, 0, 0]];
        assert_eq!(encoded.entries, expected.as_flattened());
        assert_eq!(encoded.masks, [u32::MAX, u32::MAX, 0]);
    }

    #[test]
    fn a_change_of_a_masked_token_is_a_ban() {
        let mut draw = at(1.0);
        let mut mask = Mask::none(70);
        mask.allow(TokenId(1));
        draw.edit.mask = Some(mask);
        draw.edit.changes = vec![change(1), change(2)];
        let encoded = encode(&[draw], &[0], BOUNDS).unwrap();
        let tokens: Vec<u32> = encoded.entries.chunks(ENTRY_WORDS).map(|e| e[0]).collect();
        assert_eq!(tokens, [1]);
    }

    #[test]
    fn what_the_kernels_do_not_do_is_the_hosts() {
        let host = |edit: &dyn Fn(&mut Draw)| {
            let mut draw = at(1.0);
            edit(&mut draw);
            let encoded = encode(&[draw, at(1.0)], &[1, 2], BOUNDS).unwrap();
            assert_eq!(encoded.asks.len(), 3 * WORDS);
            assert_eq!(encoded.asks[2 * WORDS], Kind::Race as u32, "the next row is where it belongs");
            assert!(encoded.entries.is_empty() && encoded.masks.is_empty());
            match encoded.places[0] {
                Place::Host(why) => {
                    assert_eq!(encoded.asks[WORDS], Kind::Host as u32);
                    why
                }
                Place::Device => "",
            }
        };
        assert_eq!(host(&|_| {}), "");
        assert_eq!(host(&|d| d.how = How::Top), "a drafter's law");
        assert_eq!(host(&|d| d.logprobs = Some(0)), "log-probabilities");
        assert_eq!(host(&|d| d.sampling.params.typical_p = 0.9), "typical-p");
        assert_eq!(host(&|d| d.sampling.params.temperature = f32::NAN), "parameters out of range");
        let unsorted = "changes that are not in the order of tokens";
        assert_eq!(host(&|d| d.edit.changes = vec![change(3), change(3)]), unsorted);
        let many = "more changed tokens than the device has room for";
        assert_eq!(host(&|d| d.edit.changes = (0..4).map(change).collect()), many);
    }

    #[test]
    fn masks_beyond_the_bound_go_to_the_host_and_rows_beyond_it_are_refused() {
        let mut masked = at(1.0);
        masked.edit.mask = Some(Mask::from_words(vec![1; 3]));
        let encoded = encode(&[masked.clone(), masked], &[0, 0], BOUNDS).unwrap();
        assert_eq!(encoded.places, [Place::Device, Place::Host("more masks than the device has room for")]);
        assert_eq!(encoded.masks.len(), 3);
        let draws = vec![at(1.0); 5];
        assert_eq!(encode(&draws, &[0; 5], BOUNDS), Err(Misfit::TooMany { draws: 5, bound: 4 }));
        assert_eq!(encode(&draws[..2], &[0], BOUNDS), Err(Misfit::Positions { draws: 2, positions: 1 }));
    }
}
