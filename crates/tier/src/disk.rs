//! The thread that writes and reads the file.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::mpsc::{Receiver, SyncSender};

use engine::Fetch;
use kvcache::{ClassId, PageHash};
use transport::checksum;

#[derive(Debug)]
pub(crate) enum Job {
    Write { at: u64, bytes: Vec<u8>, class: ClassId, hash: PageHash },
    Read { at: u64, len: usize, checksum: u64, wanted: Fetch },
}

#[derive(Debug)]
pub(crate) enum Done {
    Written,
    NotWritten { class: ClassId, hash: PageHash },
    Read { wanted: Fetch, bytes: Vec<u8> },
    Damaged { wanted: Fetch, why: &'static str },
}

/// Until the tier is dropped.
pub(crate) fn serve(mut file: File, jobs: &Receiver<Job>, done: &SyncSender<Done>) {
    while let Ok(job) = jobs.recv() {
        let over = match job {
            Job::Write { at, bytes, class, hash } => match write(&mut file, at, &bytes) {
                Ok(()) => Done::Written,
                Err(error) => {
                    tracing::warn!(%error, "a page could not be spilled");
                    Done::NotWritten { class, hash }
                }
            },
            Job::Read { at, len, checksum: expected, wanted } => match read(&mut file, at, len) {
                Ok(bytes) if checksum(&bytes) == expected => Done::Read { wanted, bytes },
                Ok(_) => {
                    tracing::warn!(page = ?wanted.hash, "a spilled page came back damaged; it is computed again");
                    Done::Damaged { wanted, why: "checksum" }
                }
                Err(error) => {
                    tracing::warn!(%error, "a spilled page could not be read; it is computed again");
                    Done::Damaged { wanted, why: "io" }
                }
            },
        };
        if done.send(over).is_err() {
            return;
        }
    }
}

fn write(file: &mut File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

fn read(file: &mut File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
