use std::sync::Arc;

use crate::InvalidField;

/// A request's name, chosen by the client or the coordinator: 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

impl RequestId {
    pub fn new(id: &str) -> Result<Self, InvalidField> {
        if id.is_empty() || id.len() > 128 || !id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidField::new(
                "request_id",
                "must be 1 to 128 visible ASCII characters without spaces",
            ));
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_visible_ascii() {
        assert!(RequestId::new("chatcmpl-1").is_ok());
        for bad in ["", "a b", "ü", "line\n", &"x".repeat(129)] {
            assert_eq!(RequestId::new(bad).unwrap_err().field, "request_id", "{bad:?}");
        }
    }
}
