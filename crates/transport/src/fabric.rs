use std::net::SocketAddr;
use std::time::Duration;

use crate::{Damage, Head};

/// Opens and accepts links. One fabric is one rank's end of the data plane.
pub trait Fabric: Send + Sync + std::fmt::Debug {
    /// Where others reach it: what they pass to [`Fabric::connect`].
    fn address(&self) -> String;

    fn connect(&self, address: &str, within: Duration) -> Result<Box<dyn Link>, FabricError>;

    /// The next link that another rank opens. One thread accepts.
    fn accept(&self, within: Duration) -> Result<Box<dyn Link>, FabricError>;
}

/// A way to one other rank and back. It belongs to one thread.
///
/// Messages arrive in the order they were sent, whole, or as an error. After an error other than
/// [`FabricError::Deadline`], [`FabricError::TooLarge`] or [`Damage::Payload`] nothing more comes: the
/// link is dropped, and what it was for is done otherwise.
pub trait Link: Send + std::fmt::Debug {
    /// Sends one message; returns when it is under way, which for a large one is when the other side
    /// takes it. So of two ranks that both have a large one, one receives first.
    fn send(&mut self, head: Head, payload: &[u8], within: Duration) -> Result<(), FabricError>;

    /// Receives the next message; what `payload` held is gone, its room is used again.
    fn recv(&mut self, payload: &mut Vec<u8>, within: Duration) -> Result<Head, FabricError>;

    /// The other rank, for messages to people.
    fn peer(&self) -> &str;

    /// What closes the link from another thread: a call that waits on it then ends with [`FabricError::Closed`].
    fn closer(&self) -> Result<Closer, FabricError>;
}

/// Closes a link that another thread has.
pub type Closer = Box<dyn Fn() + Send>;

/// Why bytes did not go or come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// A message that was awaited, and of which nothing came, may be awaited again.
    #[error("{what} took longer than {within:?}")]
    Deadline { what: &'static str, within: Duration },
    #[error("the other rank closed the link")]
    Closed,
    #[error("a damaged frame arrived: {0}")]
    Damaged(Damage),
    #[error("frame {found} arrived where frame {expected} was due")]
    OutOfOrder { expected: u64, found: u64 },
    #[error("a message of {bytes} bytes is over the bound of {most}")]
    TooLarge { bytes: usize, most: usize },
    #[error("no rank answers at {address}: {why}")]
    Unreachable { address: String, why: String },
    #[error("refusing to use {address} for bulk data without TLS: pass --insecure or use 127.0.0.1")]
    NotLoopback { address: SocketAddr },
    /// An earlier call failed half way.
    #[error("the link is broken")]
    Broken,
    #[error("{what}: {why}")]
    Io { what: &'static str, why: String },
}
