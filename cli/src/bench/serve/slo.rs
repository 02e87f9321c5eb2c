//! What a good answer is.

use std::str::FromStr;
use std::time::Duration;

use super::record::{PER_REQUEST, Record};

/// A limit on one metric of a request, as `ttft:200ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo {
    /// Tag of the metric, one of [`PER_REQUEST`] in milliseconds.
    pub tag: &'static str,
    pub most: Duration,
}

/// Short names beside AIPerf's tags.
const SHORT: [(&str, &str); 5] = [
    ("ttft", "time_to_first_token"),
    ("itl", "inter_token_latency"),
    ("tpot", "time_per_output_token"),
    ("e2e", "request_latency"),
    ("gap", "max_inter_chunk_latency"),
];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SloError {
    #[error("{0:?} is no METRIC:LIMIT, as ttft:200ms is")]
    Shape(String),
    #[error("no metric is called {0:?}; use ttft, itl, tpot, e2e or gap")]
    Metric(String),
    #[error("{0:?} is no duration above zero, as 200ms or 1.5s is")]
    Limit(String),
}

impl Slo {
    /// A request of which the metric is not known does not meet the limit.
    pub fn met(&self, record: &Record) -> bool {
        let measure = PER_REQUEST.iter().find(|m| m.tag == self.tag);
        let value = measure.and_then(|m| (m.of)(record));
        value.is_some_and(|ms| ms <= self.most.as_secs_f64() * 1e3)
    }
}

impl FromStr for Slo {
    type Err = SloError;

    fn from_str(text: &str) -> Result<Self, SloError> {
        let (name, limit) = text.split_once(':').ok_or_else(|| SloError::Shape(text.into()))?;
        let name = name.trim();
        let full = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, tag)| tag);
        let tag = PER_REQUEST.iter().find(|m| m.tag == full && m.unit == "ms").map(|m| m.tag);
        let most = humantime::parse_duration(limit.trim()).ok().filter(|d| !d.is_zero());
        Ok(Self {
            tag: tag.ok_or_else(|| SloError::Metric(name.into()))?,
            most: most.ok_or_else(|| SloError::Limit(limit.into()))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_or_refused_by_name() {
        for (text, tag, millis) in [
            ("ttft:200ms", "time_to_first_token", 200),
            ("itl: 50ms", "inter_token_latency", 50),
            ("tpot:1s", "time_per_output_token", 1000),
            ("request_latency:2s", "request_latency", 2000),
            ("gap:1s", "max_inter_chunk_latency", 1000),
        ] {
            assert_eq!(text.parse(), Ok(Slo { tag, most: Duration::from_millis(millis) }), "{text}");
        }
        for (text, wanted) in [
            ("ttft", SloError::Shape("ttft".into())),
            ("speed:1s", SloError::Metric("speed".into())),
            ("output_sequence_length:1s", SloError::Metric("output_sequence_length".into())),
            ("ttft:fast", SloError::Limit("fast".into())),
            ("ttft:0s", SloError::Limit("0s".into())),
        ] {
            assert_eq!(text.parse::<Slo>(), Err(wanted), "{text}");
        }
    }
}
