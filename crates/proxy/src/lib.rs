//! A TCP proxy on loopback that makes the way between two nodes longer, stops it or cuts it.
//!
//! For tests, and for measurements on one machine of what a network between worker and drafter costs
//! (`paceline bench compare --round-trip`). It narrows nothing: a link's bandwidth is not what it is about. Start at [`Proxy`].

#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// What a proxy does to the bytes that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Flows,
    /// Nothing passes, connections stay open.
    Paused,
    /// Each piece arrives this much later, and up to `jitter` more, in order: a longer way, not a narrower one.
    Delayed {
        one_way: Duration,
        jitter: Duration,
    },
    /// Open connections are closed and new ones are closed at once.
    Cut,
}

/// A TCP proxy on loopback in front of one address.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    link: watch::Sender<Link>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Binds first: the node behind it may be started later, and advertise this address. The other half is told
    /// where that node listens; connections wait for it.
    ///
    /// # Errors
    /// No free port on loopback.
    pub async fn bind() -> io::Result<(Self, impl FnOnce(SocketAddr))> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (link, follow) = watch::channel(Link::Flows);
        let (tell, mut upstream) = watch::channel(None);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let mut follow = follow.clone();
                let Ok(to) = upstream.wait_for(Option::is_some).await.map(|to| *to) else { return };
                connections.spawn(async move {
                    let Some(to) = to else { return };
                    let Ok(server) = TcpStream::connect(to).await else { return };
                    // As the nodes have it: small frames must not wait for an acknowledgement.
                    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
                        return;
                    }
                    let (mut client_in, mut client_out) = client.into_split();
                    let (mut server_in, mut server_out) = server.into_split();
                    let (up, down) = (follow.clone(), follow.clone());
                    tokio::select! {
                        () = pass(&mut client_in, &mut server_out, up) => (),
                        () = pass(&mut server_in, &mut client_out, down) => (),
                        _ = follow.wait_for(|link| *link == Link::Cut) => (),
                    }
                });
            }
        });
        let proxy = Self { address, link, accepting };
        Ok((proxy, move |to| {
            tell.send_replace(Some(to));
        }))
    }

    /// From now on, on open connections as well.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    link: watch::Receiver<Link>,
) {
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let mut follow = link.clone();
    let read = async move {
        let (mut piece, mut dice) = (vec![0; 64 << 10], 1);
        while let Ok(read @ 1..) = from.read(&mut piece).await {
            let later = match *link.borrow() {
                Link::Delayed { one_way, jitter } => one_way + jitter.mul_f64(share(&mut dice)),
                _ => Duration::ZERO,
            };
            if under_way.send((Instant::now() + later, piece[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            if follow.wait_for(|link| *link != Link::Paused).await.is_err()
                || to.write_all(&piece).await.is_err()
            {
                return;
            }
        }
    };
    tokio::pin!(write);
    tokio::select! {
        // What is under way still arrives.
        () = read => write.await,
        () = &mut write => (),
    }
}

/// From 0 to 1, another one each time.
fn share(dice: &mut u64) -> f64 {
    *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*dice >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A longer way delays what passes by its length and its jitter, and no piece waits for another.
    #[tokio::test]
    async fn a_delayed_link_is_longer_and_not_narrower() {
        const ONE_WAY: Duration = Duration::from_millis(40);
        const JITTER: Duration = Duration::from_millis(5);
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (proxy, forward) = Proxy::bind().await.unwrap();
        forward(echo.local_addr().unwrap());
        let echoing = tokio::spawn(async move {
            let (server, _) = echo.accept().await.unwrap();
            server.set_nodelay(true).unwrap();
            let (mut from, mut to) = server.into_split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        });
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        client.set_nodelay(true).unwrap();
        let mut trips = Vec::new();
        for link in [Link::Flows, Link::Delayed { one_way: ONE_WAY, jitter: JITTER }] {
            proxy.set(link);
            let start = Instant::now();
            // Twenty pieces, five milliseconds apart, are under way together.
            let (mut from, mut to) = client.split();
            let send = async {
                for i in 0..20u8 {
                    to.write_all(&[i]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let mut answer = [0; 20];
            let ((), read) = tokio::join!(send, from.read_exact(&mut answer));
            read.unwrap();
            assert_eq!(answer, std::array::from_fn(|i| i as u8), "in order");
            trips.push(start.elapsed());
        }
        let longer = trips[1].saturating_sub(trips[0]);
        // The last of them is sent after 95 ms in either case.
        assert!(trips[1] >= 2 * ONE_WAY + Duration::from_millis(95), "{trips:?}");
        assert!(longer < 4 * ONE_WAY, "one after the other would be {:?}: {trips:?}", 40 * ONE_WAY);
        drop(client);
        echoing.abort();
    }
}
