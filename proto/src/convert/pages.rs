//! `paceline.pages.v1`: a prompt that one worker computes for another.

use std::time::Duration;

use cluster::Incarnation;
use request::{RequestId, TokenId, Tokens as _};

use super::{incarnation, tokens};
use crate::bounds::{MAX_KNOWN_TOKENS, MAX_SALT_BYTES, MAX_UNITS};
use crate::error::{WireError, at_most};
use crate::pages as wire;
use crate::pages::prefill_response::Event;

/// `pages::PrefillRequest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefillAsked {
    pub request: RequestId,
    /// Never 0.
    pub transfer: u64,
    pub incarnation: Incarnation,
    pub fingerprint: String,
    pub tokens: Vec<TokenId>,
    pub cache_salt: String,
    pub priority: i32,
}

/// `pages::PrefillResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefillSaid {
    Opened {
        generation: u64,
        fabric: String,
        /// How long the link is waited for.
        lease: Duration,
    },
    Sealed(Vec<UnitSealed>),
    Working,
    Done {
        pages: u32,
    },
}

/// A unit that follows on the link: 16 positions of one layer of one head class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSealed {
    /// Of the first unit of its page.
    pub hash: Option<[u8; 32]>,
    pub page: u32,
    pub layer: u32,
    pub class: u32,
    pub bytes: u64,
    pub checksum: u64,
}

impl From<PrefillAsked> for wire::PrefillRequest {
    fn from(asked: PrefillAsked) -> Self {
        Self {
            request_id: asked.request.as_str().to_owned(),
            transfer: asked.transfer,
            incarnation: asked.incarnation.0,
            fingerprint: asked.fingerprint,
            tokens: asked.tokens.to_ids(),
            cache_salt: asked.cache_salt,
            priority: asked.priority,
        }
    }
}

impl TryFrom<wire::PrefillRequest> for PrefillAsked {
    type Error = WireError;

    fn try_from(from: wire::PrefillRequest) -> Result<Self, WireError> {
        if from.transfer == 0 {
            return Err(WireError::missing("transfer"));
        }
        at_most("fingerprint", from.fingerprint.len(), 128)?;
        at_most("cache_salt", from.cache_salt.len(), MAX_SALT_BYTES)?;
        Ok(Self {
            request: RequestId::new(&from.request_id)?,
            transfer: from.transfer,
            incarnation: incarnation("incarnation", from.incarnation)?,
            fingerprint: from.fingerprint,
            tokens: tokens("tokens", from.tokens, MAX_KNOWN_TOKENS)?,
            cache_salt: from.cache_salt,
            priority: from.priority,
        })
    }
}

impl From<PrefillSaid> for wire::PrefillResponse {
    fn from(said: PrefillSaid) -> Self {
        let event = match said {
            PrefillSaid::Opened { generation, fabric, lease } => Event::Opened(wire::PrefillOpened {
                generation,
                fabric,
                lease_ttl_ms: lease.as_millis().try_into().unwrap_or(u32::MAX),
            }),
            PrefillSaid::Sealed(units) => {
                Event::Sealed(wire::PrefillSealed { units: units.into_iter().map(Into::into).collect() })
            }
            PrefillSaid::Working => Event::Working(wire::PrefillWorking {}),
            PrefillSaid::Done { pages } => Event::Done(wire::PrefillDone { pages }),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<wire::PrefillResponse> for PrefillSaid {
    type Error = WireError;

    fn try_from(from: wire::PrefillResponse) -> Result<Self, WireError> {
        Ok(match from.event.ok_or(WireError::missing("event"))? {
            Event::Opened(opened) => {
                at_most("opened.fabric", opened.fabric.len(), 256)?;
                let lease = Duration::from_millis(opened.lease_ttl_ms.into());
                Self::Opened { generation: opened.generation, fabric: opened.fabric, lease }
            }
            Event::Sealed(sealed) => {
                at_most("sealed.units", sealed.units.len(), MAX_UNITS)?;
                let units = sealed.units.into_iter().map(UnitSealed::try_from);
                Self::Sealed(units.collect::<Result<_, _>>()?)
            }
            Event::Working(wire::PrefillWorking {}) => Self::Working,
            Event::Done(done) => Self::Done { pages: done.pages },
        })
    }
}

impl From<UnitSealed> for wire::PageDescriptor {
    fn from(unit: UnitSealed) -> Self {
        Self {
            page_hash: unit.hash.map(Vec::from).unwrap_or_default(),
            page_index: unit.page,
            layer: unit.layer,
            head_class: unit.class,
            size_bytes: unit.bytes,
            checksum: unit.checksum,
        }
    }
}

impl TryFrom<wire::PageDescriptor> for UnitSealed {
    type Error = WireError;

    fn try_from(from: wire::PageDescriptor) -> Result<Self, WireError> {
        let hash = match from.page_hash.len() {
            0 => None,
            length => Some(from.page_hash.try_into().map_err(|_| {
                WireError::invalid("sealed.units.page_hash", format!("has {length} bytes; a SHA-256 has 32"))
            })?),
        };
        Ok(Self {
            hash,
            page: from.page_index,
            layer: from.layer,
            class: from.head_class,
            bytes: from.size_bytes,
            checksum: from.checksum,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said() -> impl Strategy<Value = PrefillSaid> {
        let unit = (any::<Option<[u8; 32]>>(), any::<[u32; 3]>(), any::<u64>(), any::<u64>()).prop_map(
            |(hash, [page, layer, class], bytes, checksum)| UnitSealed {
                hash,
                page,
                layer,
                class,
                bytes,
                checksum,
            },
        );
        prop_oneof![
            (any::<u64>(), "[!-~]{0,64}", any::<u32>()).prop_map(|(generation, fabric, ms)| {
                PrefillSaid::Opened { generation, fabric, lease: Duration::from_millis(ms.into()) }
            }),
            prop::collection::vec(unit, 0..20).prop_map(PrefillSaid::Sealed),
            Just(PrefillSaid::Working),
            any::<u32>().prop_map(|pages| PrefillSaid::Done { pages }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_read(said in said()) {
            prop_assert_eq!(PrefillSaid::try_from(wire::PrefillResponse::from(said.clone())).unwrap(), said);
        }

        #[test]
        fn what_is_asked_is_read(transfer in 1u64.., incarnation in 1u64.., ids in prop::collection::vec(any::<u32>(), 0..50), priority: i32) {
            let asked = PrefillAsked {
                request: RequestId::new("r").unwrap(),
                transfer,
                incarnation: Incarnation(incarnation),
                fingerprint: "fp_1".into(),
                tokens: ids.into_iter().map(TokenId).collect(),
                cache_salt: "salt".into(),
                priority,
            };
            prop_assert_eq!(PrefillAsked::try_from(wire::PrefillRequest::from(asked.clone())).unwrap(), asked);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = wire::PrefillRequest {
            request_id: "r".into(),
            transfer: 1,
            incarnation: 1,
            ..Default::default()
        };
        assert!(PrefillAsked::try_from(good.clone()).is_ok());
        for (bad, field) in [
            (wire::PrefillRequest { transfer: 0, ..good.clone() }, "transfer"),
            (wire::PrefillRequest { incarnation: 0, ..good.clone() }, "incarnation"),
            (wire::PrefillRequest { request_id: String::new(), ..good.clone() }, "request_id"),
            (wire::PrefillRequest { cache_salt: "x".repeat(257), ..good.clone() }, "cache_salt"),
        ] {
            let error = PrefillAsked::try_from(bad).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let unit = wire::PageDescriptor { page_hash: vec![1; 31], ..Default::default() };
        assert!(UnitSealed::try_from(unit.clone()).unwrap_err().to_string().contains("page_hash"));
        let many = wire::PrefillSealed { units: vec![wire::PageDescriptor::default(); MAX_UNITS + 1] };
        let many = wire::PrefillResponse { event: Some(Event::Sealed(many)) };
        assert!(PrefillSaid::try_from(many).unwrap_err().to_string().contains("sealed.units"));
        assert!(PrefillSaid::try_from(wire::PrefillResponse { event: None }).is_err());
    }
}
