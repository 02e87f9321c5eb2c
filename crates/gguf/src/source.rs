use std::fmt::Display;
use std::io::{ErrorKind, Read};

use crate::Error;

/// Most bytes reserved before they have been read: a claim costs at most this.
const CHUNK: u64 = 64 * 1024;

/// The bytes of a header, read once from front to back, every length held against what remains.
#[derive(Debug)]
pub(crate) struct Source<R> {
    input: R,
    at: u64,
    len: u64,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(input: R, len: u64) -> Self {
        Self { input, at: 0, len }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        let truncated = || Error::Truncated { what: what.to_string(), at: self.at };
        if self.len.saturating_sub(self.at) < N as u64 {
            return Err(truncated());
        }
        self.input.read_exact(&mut bytes).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => truncated(),
            _ => Error::Io { at: self.at, source },
        })?;
        self.at += N as u64;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self, what: &dyn Display) -> Result<u8, Error> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &dyn Display) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &dyn Display) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    pub(crate) fn count(&mut self, what: &dyn Display, unit: &'static str, least: u64) -> Result<u64, Error> {
        let claimed = self.u64(what)?;
        self.admit(what, claimed, unit, least)?;
        Ok(claimed)
    }

    /// A string: its length as u64, then UTF-8 bytes.
    pub(crate) fn string(&mut self, what: &dyn Display) -> Result<String, Error> {
        let len = self.count(what, "bytes", 1)?;
        let at = self.at;
        String::from_utf8(self.bytes(what, len)?).map_err(|_| Error::BadString { what: what.to_string(), at })
    }

    /// `count` numbers of `N` bytes.
    pub(crate) fn numbers<T, const N: usize>(
        &mut self,
        what: &dyn Display,
        count: u64,
        from: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        self.admit(what, count, "numbers", N as u64)?;
        let mut numbers = Vec::with_capacity(reserve(count, N));
        for _ in 0..count {
            numbers.push(from(self.array(what)?));
        }
        Ok(numbers)
    }

    fn admit(&self, what: &dyn Display, claimed: u64, unit: &'static str, least: u64) -> Result<(), Error> {
        let remaining = self.len.saturating_sub(self.at);
        if claimed > remaining / least {
            return Err(Error::TooLong { what: what.to_string(), claimed, unit, at: self.at, remaining });
        }
        Ok(())
    }

    fn bytes(&mut self, what: &dyn Display, len: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(reserve(len, 1));
        let read = self
            .input
            .by_ref()
            .take(len)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Io { at: self.at, source })?;
        self.at += read as u64;
        if (read as u64) < len {
            return Err(Error::Truncated { what: what.to_string(), at: self.at });
        }
        Ok(bytes)
    }
}

/// Items of `size` bytes to reserve for a claimed count; the rest grows as it is read.
pub(crate) fn reserve(count: u64, size: usize) -> usize {
    count.min(CHUNK / size as u64) as usize
}
