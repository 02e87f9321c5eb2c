use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What a proxy does to the bytes that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Flows,
    /// Nothing passes, connections stay open.
    Paused,
    /// Each piece is held for this long.
    Delayed(Duration),
    /// Open connections are closed and new ones are closed at once.
    Cut,
}

/// A TCP proxy on loopback in front of one address.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    link: watch::Sender<Link>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Binds first: the node behind it may be started later, and advertise this address.
    pub(crate) async fn bind() -> (Self, impl FnOnce(SocketAddr)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
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
                    for side in [&client, &server] {
                        side.set_nodelay(true).unwrap();
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
        (proxy, move |to| {
            tell.send_replace(Some(to));
        })
    }

    pub(crate) fn set(&self, link: Link) {
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
    mut link: watch::Receiver<Link>,
) {
    let mut piece = vec![0; 64 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut piece).await else { return };
        let now = *link.borrow();
        if let Link::Delayed(time) = now {
            tokio::time::sleep(time).await;
        }
        if link.wait_for(|link| *link != Link::Paused).await.is_err() {
            return;
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
