use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use request::InvalidField;

/// Where a node listens: `http://host:port`, the host a DNS name, an IPv4 or a bracketed IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint(Arc<str>);

impl Endpoint {
    /// Refuses anything with a path, a user, another scheme, no port or an unspecified address: what
    /// stands here is dialled by other machines as it is.
    pub fn new(endpoint: &str) -> Result<Self, InvalidField> {
        match check(endpoint) {
            Ok(()) => Ok(Self(endpoint.into())),
            // At most a line of it goes into the error: it came from outside.
            Err(why) => Err(InvalidField::new(
                "endpoint",
                format!(
                    "{:?} {why}; expected http://host:port",
                    endpoint.chars().take(80).collect::<String>()
                ),
            )),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the scheme: `host:port`.
    pub fn authority(&self) -> &str {
        self.0.strip_prefix("http://").unwrap_or(&self.0)
    }
}

impl TryFrom<SocketAddr> for Endpoint {
    type Error = InvalidField;

    fn try_from(address: SocketAddr) -> Result<Self, InvalidField> {
        Self::new(&format!("http://{address}"))
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(endpoint: &str) -> Result<(), &'static str> {
    // 253 is the longest DNS name.
    if endpoint.len() > 253 + "http://:65535".len() {
        return Err("is too long");
    }
    let Some(authority) = endpoint.strip_prefix("http://") else {
        return Err(if endpoint.starts_with("https://") {
            "asks for TLS, which is not built yet"
        } else {
            "does not start with http://"
        });
    };
    let Some((host, port)) = authority.rsplit_once(':') else { return Err("has no port") };
    // `parse` alone would take "+80".
    if !port.bytes().all(|b| b.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|p| p > 0) {
        return Err("has a port that is not 1 to 65535");
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return match v6.parse::<Ipv6Addr>() {
            Ok(a) if a.is_unspecified() => Err("names no particular machine"),
            Ok(_) => Ok(()),
            Err(_) => Err("has brackets around what is not an IPv6 address"),
        };
    }
    if host.parse::<Ipv4Addr>().is_ok_and(|a| a.is_unspecified()) {
        return Err("names no particular machine");
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.is_empty() || !host.split('.').all(label) {
        return Err("has a host that is neither a DNS name nor an address");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_is_http_host_port() {
        for ok in ["http://127.0.0.1:80", "http://worker-0.workers.ns.svc:9001", "http://[::1]:65535"] {
            let endpoint = Endpoint::new(ok).unwrap();
            assert_eq!((endpoint.as_str(), endpoint.authority()), (ok, &ok[7..]));
        }
        for (bad, why) in [
            ("", "http://"),
            ("127.0.0.1:80", "http://"),
            ("https://a:1", "TLS"),
            ("http://a", "port"),
            ("http://a:0", "port"),
            ("http://a:+80", "port"),
            ("http://a:65536", "port"),
            ("http://a:80/x", "port"),
            ("http://:80", "host"),
            ("http://u@a:80", "host"),
            ("http://::1:80", "host"),
            ("http://[a]:80", "IPv6"),
            ("http://0.0.0.0:80", "particular"),
            ("http://[::]:80", "particular"),
            ("http://a b:80", "host"),
        ] {
            let error = Endpoint::new(bad).unwrap_err();
            assert_eq!(error.field, "endpoint");
            assert!(error.why.contains(why), "{bad:?}: {}", error.why);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in ".{0,300}", tail in "[a-z0-9.:/\\[\\]@-]{0,40}") {
            let _ = Endpoint::new(&text);
            if let Ok(e) = Endpoint::new(&format!("http://{tail}")) {
                prop_assert!(e.as_str().rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()));
            }
        }

        #[test]
        fn every_bound_address_is_an_endpoint(ip in any::<u32>(), port in 1u16..) {
            prop_assume!(ip != 0);
            prop_assert!(Endpoint::try_from(SocketAddr::from((Ipv4Addr::from(ip), port))).is_ok());
        }
    }
}
