//! Pages of a group, read and written as if one rank had them whole: each rank has its own heads of them.

use engine::ModelError;
use kvcache::{ClassId, PageId};
use scheduler::Step;
use transport::Head;

use super::{Group, IMPORT, PAGE, WANTED, nonsense};

/// What rank 0 asks of a follower.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Asked {
    Step(Step),
    /// Send what you have of a page.
    Export {
        class: ClassId,
        page: PageId,
    },
    /// Write your heads of a layer of a page.
    Import {
        class: ClassId,
        page: PageId,
        layer: u32,
        bytes: Vec<u8>,
    },
}

/// The page that was read last, as the followers have it. A page is asked for whole, as its layers are read one after
/// the other: a round trip a page.
#[derive(Debug)]
pub(super) struct Read {
    class: ClassId,
    page: PageId,
    /// Of the followers in order.
    parts: Vec<Vec<u8>>,
}

/// Messages about pages are counted from here on, behind the logits that rank 0 may have left unread.
const FIRST_PAGE: u64 = 3 << 30;

impl Group {
    /// Rank 0: what the followers have of a page, in order of their ranks, all layers one after the other.
    pub(in super::super) fn parts(&mut self, class: ClassId, page: PageId) -> Result<&[Vec<u8>], ModelError> {
        let there = self.read.take().filter(|read| (read.class, read.page) == (class, page));
        let read = match there {
            Some(read) => read,
            None => self.ask(class, page)?,
        };
        Ok(&self.read.insert(read).parts)
    }

    fn ask(&mut self, class: ClassId, page: PageId) -> Result<Read, ModelError> {
        let (item, within) = (self.next_page(), self.message());
        let head = Head { kind: WANTED, token: self.token, item };
        let words = words([u32::from(class.0), page.0, 0]);
        (1..=self.links.len()).try_for_each(|rank| self.send(rank, head, &words))?;
        let mut parts = Vec::with_capacity(self.links.len());
        for rank in 1..=self.links.len() {
            self.recv(rank, PAGE, item, within)?;
            parts.push(std::mem::take(&mut self.payload));
        }
        Ok(Read { class, page, parts })
    }

    /// Rank 0: gives a follower its heads of a layer of a page. Nobody answers: the next step comes behind it.
    pub(in super::super) fn give(
        &mut self,
        rank: usize,
        (class, page, layer): (ClassId, PageId, u32),
        bytes: &[u8],
    ) -> Result<(), ModelError> {
        self.read = None;
        let item = (self.step << 32) | FIRST_PAGE;
        let head = Head { kind: IMPORT, token: self.token, item };
        let mut payload = words([u32::from(class.0), page.0, layer]);
        payload.extend_from_slice(bytes);
        self.send(rank, head, &payload)
    }

    /// A follower: its part of the page that was asked for.
    pub(in super::super) fn answer(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        let head = Head { kind: PAGE, token: self.token, item: self.asked };
        self.send(0, head, bytes)
    }

    /// A follower: what a message about pages asks.
    pub(super) fn about_pages(&mut self, head: Head) -> Result<Asked, ModelError> {
        let (start, bytes) = self.payload.split_first_chunk::<12>().ok_or_else(|| nonsense(0))?;
        let word = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
        let class = ClassId(u8::try_from(word(0)).map_err(|_| nonsense(0))?);
        let (page, layer) = (PageId(word(4)), word(8));
        match head.kind {
            WANTED if bytes.is_empty() => {
                self.asked = head.item;
                Ok(Asked::Export { class, page })
            }
            IMPORT => Ok(Asked::Import { class, page, layer, bytes: bytes.to_vec() }),
            _ => Err(nonsense(0)),
        }
    }

    fn next_page(&mut self) -> u64 {
        self.asked = (self.asked + 1).max((self.step << 32) | FIRST_PAGE);
        self.asked
    }
}

fn words(words: [u32; 3]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
