//! Pages that the prefix cache had no room for: they spill to a bounded file and come back verified.
//!
//! [`FileTier`] is an [`engine::Tier`]. Which page is where is kept in memory on the engine's thread; bytes are written and
//! read by a thread of its own, in the order in which that was asked, through a bounded queue. A full queue takes nothing:
//! the page is lost, as it would be without a tier, and that is counted. Every page that is read must have the checksum
//! that it was written with.
//!
//! The file has no name and does not outlive its process. In a folder on a file system in memory (`/dev/shm`) it is a tier of
//! host memory, in one on a disk a tier of disk (docs/decisions/0020).
//!
//! Not here: which pages go and which are wanted back (`engine`), keys and values (`model`). Start at [`FileTier::new`].
#![forbid(unsafe_code)]

mod disk;
mod slots;

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::{Came, Fetch, Put, Tier};
use kvcache::{ClassId, PageHash};
use transport::checksum;

use disk::{Done, Job};
use slots::Slots;

/// Bytes that may wait for the disk, and pages at least and at most.
const UNDER_WAY: usize = 64 << 20;
const FEWEST: usize = 4;
const MOST: usize = 256;

/// Why there is no tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTier {
    #[error("folder {folder}: {why}")]
    Folder { folder: String, why: String },
    #[error("{bytes} bytes hold no page; this model's pages have {page} bytes")]
    TooSmall { bytes: u64, page: u64 },
    #[error("this back end cannot give pages out: {0}")]
    Unsupported(String),
    #[error("the operating system gives no thread: {0}")]
    Thread(String),
}

/// Whether the tier could be opened, known once the engine has told it how large pages are.
pub type Opened = Arc<OnceLock<Result<(), NoTier>>>;

/// Pages in a file.
#[derive(Debug)]
pub struct FileTier {
    file: Option<std::fs::File>,
    bytes: u64,
    within: Duration,
    opened: Opened,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    /// By class, bytes of each layer of a page.
    sizes: Vec<Vec<usize>>,
    /// By class, where its region of the file begins.
    starts: Vec<u64>,
    classes: Vec<Slots>,
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    /// Jobs whose end was not heard of yet, and most of them.
    pending: usize,
    depth: usize,
}

impl FileTier {
    /// A file without a name in `folder`, of at most `bytes`. A sequence waits at most `within` for its pages.
    ///
    /// # Errors
    /// The folder takes no file.
    pub fn new(folder: &Path, bytes: u64, within: Duration) -> Result<Self, NoTier> {
        let file = tempfile::tempfile_in(folder).map_err(|error| NoTier::Folder {
            folder: folder.display().to_string(),
            why: error.to_string(),
        })?;
        Ok(Self { file: Some(file), bytes, within, opened: Opened::default(), open: None })
    }

    /// Tells later whether it works.
    pub fn opened(&self) -> Opened {
        self.opened.clone()
    }

    fn start(&mut self, sizes: &[Vec<usize>]) -> Result<Open, NoTier> {
        let of = |class: &Vec<usize>| class.iter().sum::<usize>() as u64;
        let page: u64 = sizes.iter().map(of).sum();
        let slots = self.bytes.checked_div(page).unwrap_or(0);
        if slots == 0 {
            return Err(NoTier::TooSmall { bytes: self.bytes, page });
        }
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        let file = self.file.take().ok_or_else(|| NoTier::Thread("opened twice".to_owned()))?;
        let mut start = 0;
        let starts = sizes.iter().map(|class| {
            let here = start;
            start += of(class) * u64::from(slots);
            here
        });
        let starts = starts.collect();
        let largest = sizes.iter().map(of).max().unwrap_or(1).max(1) as usize;
        let depth = (UNDER_WAY / largest).clamp(FEWEST, MOST);
        let (jobs, asked) = sync_channel(depth);
        // Room for every job's end and no more: the disk's thread waits for an engine that is in a long step.
        let (tell, done) = sync_channel(depth);
        std::thread::Builder::new()
            .name("tier".into())
            .spawn(move || disk::serve(file, &asked, &tell))
            .map_err(|error| NoTier::Thread(error.to_string()))?;
        let classes = sizes.iter().map(|_| Slots::new(slots)).collect();
        Ok(Open { sizes: sizes.to_vec(), starts, classes, jobs, done, pending: 0, depth })
    }
}

impl Open {
    fn place(&self, class: usize, slot: u32) -> u64 {
        let size: usize = self.sizes[class].iter().sum();
        self.starts[class] + u64::from(slot) * size as u64
    }

    /// Whether the disk's thread has it now.
    fn ask(&mut self, job: Job) -> bool {
        let asked = self.pending < self.depth && self.jobs.try_send(job).is_ok();
        self.pending += usize::from(asked);
        asked
    }
}

impl Tier for FileTier {
    fn open(&mut self, sizes: Result<Vec<Vec<usize>>, String>) {
        let opened = sizes.map_err(NoTier::Unsupported).and_then(|sizes| self.start(&sizes));
        let told = opened.map(|open| self.open = Some(open));
        // Told once.
        let _ = self.opened.set(told);
    }

    fn has(&self, class: ClassId, hash: &PageHash) -> bool {
        let class = self.open.as_ref().and_then(|open| open.classes.get(usize::from(class.0)));
        class.is_some_and(|slots| slots.find(hash).is_some())
    }

    fn room(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.pending < open.depth)
    }

    fn put(&mut self, class: ClassId, hash: PageHash, layers: &[Vec<u8>]) -> Put {
        let at = usize::from(class.0);
        let Some(open) = &mut self.open else { return Put::Behind };
        let fits =
            open.sizes.get(at).is_some_and(|sizes| sizes.iter().copied().eq(layers.iter().map(Vec::len)));
        if !fits {
            return Put::Behind;
        }
        if open.classes[at].touch(&hash) {
            return Put::Taken { pushed_out: None };
        }
        let bytes = layers.concat();
        let checksum = checksum(&bytes);
        let (slot, pushed_out) = open.classes[at].next();
        let job = Job::Write { at: open.place(at, slot), bytes, class, hash };
        if !open.ask(job) {
            return Put::Behind;
        }
        open.classes[at].fill(slot, hash, checksum);
        Put::Taken { pushed_out }
    }

    fn fetch(&mut self, wanted: Fetch) -> bool {
        let at = usize::from(wanted.class.0);
        let Some(open) = &mut self.open else { return false };
        let Some((slot, checksum)) = open.classes.get_mut(at).and_then(|slots| slots.find(&wanted.hash))
        else {
            return false;
        };
        let len = open.sizes[at].iter().sum();
        let asked = open.ask(Job::Read { at: open.place(at, slot), len, checksum, wanted });
        if asked {
            open.classes[at].touch(&wanted.hash);
        }
        asked
    }

    fn poll(&mut self) -> Option<Came> {
        let open = self.open.as_mut()?;
        loop {
            let done = open.done.try_recv().ok()?;
            open.pending = open.pending.saturating_sub(1);
            match done {
                Done::Written => {}
                Done::NotWritten { class, hash } => {
                    open.classes[usize::from(class.0)].forget(&hash);
                    return Some(Came::Lost { class, hash });
                }
                Done::Read { wanted, bytes } => {
                    let mut rest = bytes.as_slice();
                    let layers = open.sizes[usize::from(wanted.class.0)].iter().map(|len| {
                        let (layer, later) = rest.split_at(*len);
                        rest = later;
                        layer.to_vec()
                    });
                    return Some(Came::Page { wanted, layers: layers.collect() });
                }
                Done::Damaged { wanted, why } => {
                    open.classes[usize::from(wanted.class.0)].forget(&wanted.hash);
                    return Some(Came::Damaged { wanted, why });
                }
            }
        }
    }

    fn within(&self) -> Duration {
        self.within
    }
}

#[cfg(test)]
mod tests;
