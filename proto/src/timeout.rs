use std::time::Duration;

use tonic::metadata::MetadataMap;

use crate::WireError;

const FIELD: &str = "grpc-timeout";

/// The caller's deadline from now on: `grpc-timeout`, at most 8 digits and a unit (gRPC over HTTP/2).
pub fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>, WireError> {
    let Some(value) = metadata.get(FIELD) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let n: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(n * 3600),
            "M" => Duration::from_secs(n * 60),
            "S" => Duration::from_secs(n),
            "m" => Duration::from_millis(n),
            "u" => Duration::from_micros(n),
            "n" => Duration::from_nanos(n),
            _ => return None,
        })
    });
    match parsed {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(WireError::invalid(FIELD, "is not 1 to 8 digits and one of H M S m u n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_of_callers() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(FIELD, text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(timeout(&MetadataMap::new()), Ok(None));
        assert_eq!(of("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(of("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        for bad in ["", "S", "1", "123456789S", "+1S", "1x", "1 S"] {
            assert_eq!(of(bad).unwrap_err().field, FIELD, "{bad:?}");
        }
    }
}
