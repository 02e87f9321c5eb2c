//! Ranks in different processes. Blocking sockets on the caller's thread: between two ranks of a group a
//! message costs two system calls and no hand-over between threads.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::frame::{HEADER, Header, header};
use crate::{Closer, Damage, Fabric, FabricError, Head, Link, MOST_BYTES};

/// Read ahead: a small message comes with its header in one call.
const AHEAD: usize = 64 << 10;
/// A payload's room grows by this much as its bytes arrive: a length alone takes no memory.
const GROWTH: usize = 1 << 20;

/// A listening rank.
#[derive(Debug)]
pub struct TcpFabric {
    listener: TcpListener,
    address: SocketAddr,
    insecure: bool,
}

impl TcpFabric {
    /// Listens; port 0 takes a free one. Whoever reaches the port can speak to this rank, and nothing is
    /// encrypted: so beyond loopback only when `insecure` says that the network is trusted.
    pub fn listen(address: SocketAddr, insecure: bool) -> Result<Self, FabricError> {
        trusted(address, insecure)?;
        let failed = |e: std::io::Error| FabricError::Io {
            what: "listening for bulk data",
            why: format!("{address}: {e}"),
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, insecure })
    }
}

fn trusted(address: SocketAddr, insecure: bool) -> Result<(), FabricError> {
    match address.ip().is_loopback() || insecure {
        true => Ok(()),
        false => Err(FabricError::NotLoopback { address }),
    }
}

impl Fabric for TcpFabric {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn connect(&self, address: &str, within: Duration) -> Result<Box<dyn Link>, FabricError> {
        let unreachable = |why: String| FabricError::Unreachable { address: address.into(), why };
        let started = Instant::now();
        let places = address.to_socket_addrs().map_err(|e| unreachable(e.to_string()))?;
        let mut why = "the name has no address".to_owned();
        for place in places {
            trusted(place, self.insecure)?;
            let left = within.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(FabricError::Deadline { what: "connecting", within });
            }
            match TcpStream::connect_timeout(&place, left) {
                Ok(stream) => return Ok(Box::new(TcpLink::new(stream, place)?)),
                Err(e) => why = e.to_string(),
            }
        }
        Err(unreachable(why))
    }

    fn accept(&self, within: Duration) -> Result<Box<dyn Link>, FabricError> {
        let what = "accepting a link";
        if within.is_zero() {
            return Err(FabricError::Deadline { what, within });
        }
        // On Linux a listener's read timeout is that of accept.
        let timed = SockRef::from(&self.listener).set_read_timeout(Some(within));
        match timed.and_then(|()| self.listener.accept()) {
            Ok((stream, peer)) => Ok(Box::new(TcpLink::new(stream, peer)?)),
            Err(e) => Err(failure(e, what, within)),
        }
    }
}

#[derive(Debug)]
struct TcpLink {
    stream: TcpStream,
    peer: String,
    sent: u64,
    received: u64,
    /// Bytes that were read ahead and not used yet: `ahead[from..to]`.
    ahead: Box<[u8]>,
    from: usize,
    to: usize,
    /// The sockets' timeouts as they are set: setting one is a system call.
    reading: Option<Duration>,
    writing: Option<Duration>,
    broken: bool,
}

impl TcpLink {
    fn new(stream: TcpStream, peer: SocketAddr) -> Result<Self, FabricError> {
        let failed = |e: std::io::Error| FabricError::Io { what: "setting up a link", why: e.to_string() };
        // Small messages go at once: a collective waits for each.
        stream.set_nodelay(true).map_err(failed)?;
        // An accepted socket may have its listener's timeout.
        stream.set_read_timeout(None).map_err(failed)?;
        Ok(Self {
            stream,
            peer: peer.to_string(),
            sent: 0,
            received: 0,
            ahead: vec![0; AHEAD].into(),
            from: 0,
            to: 0,
            reading: None,
            writing: None,
            broken: false,
        })
    }

    fn write(&mut self, header: &[u8], payload: &[u8], within: Duration) -> Result<(), FabricError> {
        let (started, mut left) = (Instant::now(), within);
        let (mut header, mut payload) = (header, payload);
        while header.len() + payload.len() > 0 {
            if left.is_zero() {
                return Err(FabricError::Deadline { what: "sending", within });
            }
            if self.writing != Some(left) {
                self.stream.set_write_timeout(Some(left)).map_err(|e| failure(e, "sending", within))?;
                self.writing = Some(left);
            }
            match self.stream.write_vectored(&[IoSlice::new(header), IoSlice::new(payload)]) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(written) => {
                    let of_header = written.min(header.len());
                    header = &header[of_header..];
                    payload = &payload[written - of_header..];
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(failure(e, "sending", within)),
            }
            if header.len() + payload.len() > 0 {
                left = within.saturating_sub(started.elapsed());
            }
        }
        Ok(())
    }

    /// Reads into `into` what was read ahead or what comes next; at least one byte.
    fn read(
        stream: &mut TcpStream,
        reading: &mut Option<Duration>,
        into: &mut [u8],
        (started, within): (Instant, Duration),
        fresh: &mut bool,
    ) -> Result<usize, FabricError> {
        loop {
            let left = if std::mem::take(fresh) { within } else { within.saturating_sub(started.elapsed()) };
            if left.is_zero() {
                return Err(FabricError::Deadline { what: "receiving", within });
            }
            if *reading != Some(left) {
                stream.set_read_timeout(Some(left)).map_err(|e| failure(e, "receiving", within))?;
                *reading = Some(left);
            }
            match stream.read(into) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(read) => return Ok(read),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(failure(e, "receiving", within)),
            }
        }
    }

    /// Has at least a header's bytes read ahead.
    fn header(&mut self, time: (Instant, Duration), fresh: &mut bool) -> Result<Header, FabricError> {
        if self.to - self.from < HEADER {
            self.ahead.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        while self.to - self.from < HEADER {
            let rest = &mut self.ahead[self.to..];
            match Self::read(&mut self.stream, &mut self.reading, rest, time, fresh) {
                Ok(read) => self.to += read,
                Err(FabricError::Closed) if self.to > self.from => {
                    return Err(FabricError::Damaged(Damage::Truncated));
                }
                Err(e) => return Err(e),
            }
        }
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(&self.ahead[self.from..self.from + HEADER]);
        let header = Header::parse(&bytes).map_err(FabricError::Damaged)?;
        if header.number != self.received {
            return Err(FabricError::OutOfOrder { expected: self.received, found: header.number });
        }
        self.from += HEADER;
        Ok(header)
    }

    fn payload(
        &mut self,
        header: &Header,
        payload: &mut Vec<u8>,
        time: (Instant, Duration),
        fresh: &mut bool,
    ) -> Result<(), FabricError> {
        let here = (self.to - self.from).min(header.length);
        payload.extend_from_slice(&self.ahead[self.from..self.from + here]);
        self.from += here;
        while payload.len() < header.length {
            let (at, room) = (payload.len(), (header.length - payload.len()).min(GROWTH));
            payload.resize(at + room, 0);
            let read = Self::read(&mut self.stream, &mut self.reading, &mut payload[at..], time, fresh);
            payload.truncate(at + read.as_ref().map_or(0, |read| *read));
            match read {
                Err(FabricError::Closed) => return Err(FabricError::Damaged(Damage::Truncated)),
                read => read?,
            };
        }
        Ok(())
    }

    fn take(&mut self, payload: &mut Vec<u8>, within: Duration) -> Result<Head, FabricError> {
        let time = (Instant::now(), within);
        let mut fresh = true;
        let header = match self.header(time, &mut fresh) {
            Ok(header) => header,
            // Nothing is lost: what came of a header stays read ahead.
            Err(e @ FabricError::Deadline { .. }) => return Err(e),
            Err(e) => {
                self.broken = true;
                return Err(e);
            }
        };
        if let Err(e) = self.payload(&header, payload, time, &mut fresh) {
            self.broken = true;
            return Err(e);
        }
        self.received += 1;
        header.check(payload).map_err(FabricError::Damaged)?;
        Ok(header.head)
    }
}

impl Link for TcpLink {
    fn send(&mut self, head: Head, payload: &[u8], within: Duration) -> Result<(), FabricError> {
        if self.broken {
            return Err(FabricError::Broken);
        }
        if payload.len() > MOST_BYTES {
            return Err(FabricError::TooLarge { bytes: payload.len(), most: MOST_BYTES });
        }
        let header = header(head, self.sent, payload);
        self.sent += 1;
        // Half a frame may be out: nothing may follow it.
        self.write(&header, payload, within).inspect_err(|_| self.broken = true)
    }

    fn recv(&mut self, payload: &mut Vec<u8>, within: Duration) -> Result<Head, FabricError> {
        payload.clear();
        if self.broken {
            return Err(FabricError::Broken);
        }
        self.take(payload, within).inspect_err(|_| payload.clear())
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn closer(&self) -> Result<Closer, FabricError> {
        let stream = self.stream.try_clone();
        let stream = stream.map_err(|e| FabricError::Io { what: "sharing a link", why: e.to_string() })?;
        Ok(Box::new(move || {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }))
    }
}

fn failure(error: std::io::Error, what: &'static str, within: Duration) -> FabricError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => FabricError::Deadline { what, within },
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => FabricError::Closed,
        _ => FabricError::Io { what, why: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
