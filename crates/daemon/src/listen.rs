//! Binding a port; where the rule "no TLS, then loopback only" stands.

use std::net::SocketAddr;

use tokio::net::TcpListener;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{what}: refusing to listen on {address} without TLS: pass --insecure or bind 127.0.0.1")]
    NotLoopback { what: &'static str, address: SocketAddr },
    #[error("{what}: cannot listen on {address}: {source}{}", advice(.source))]
    Bind { what: &'static str, address: SocketAddr, source: std::io::Error },
}

/// Listens on `address`; port 0 takes a free one (ask the listener which). `what` names the listener in
/// errors. Everyone who can reach the port can use it: so beyond loopback only when `insecure` says
/// that the network is trusted.
pub async fn bind(
    what: &'static str,
    address: SocketAddr,
    insecure: bool,
) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() && !insecure {
        return Err(ListenError::NotLoopback { what, address });
    }
    TcpListener::bind(address).await.map_err(|source| ListenError::Bind { what, address, source })
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; another process holds it: choose another port, or 0 for a free one"
        }
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose another port",
        std::io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_loopback_only_when_told() {
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let error = bind("grpc", open.parse().unwrap(), false).await.unwrap_err().to_string();
            assert_eq!(
                error,
                format!("grpc: refusing to listen on {open} without TLS: pass --insecure or bind 127.0.0.1")
            );
        }
        assert!(bind("grpc", "0.0.0.0:0".parse().unwrap(), true).await.is_ok());
    }

    #[tokio::test]
    async fn a_taken_port_says_so() {
        let first = bind("grpc", "127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let address = first.local_addr().unwrap();
        assert_ne!(address.port(), 0);
        let error = bind("grpc", address, false).await.unwrap_err().to_string();
        assert!(error.contains("another process holds it"), "{error}");
    }
}
