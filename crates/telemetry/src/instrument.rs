//! Counters, gauges and histograms with the labels that the catalogue allows them.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

/// One label of a measurement. The constructors are the list of all labels that exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Label(KeyValue);

/// Labels that are the same for many measurements, made once.
pub type Labels = Vec<Label>;

impl Label {
    /// Name under which a model is served; as many as are configured.
    pub fn model(name: &str) -> Self {
        Self(KeyValue::new("model", Arc::<str>::from(name)))
    }

    /// `coordinator`, `worker` or `drafter`.
    pub fn role(role: &'static str) -> Self {
        Self(KeyValue::new("role", role))
    }

    /// What happened; each metric says what there is.
    pub fn event(event: &'static str) -> Self {
        Self(KeyValue::new("event_type", event))
    }

    /// Why; each metric says which there are.
    pub fn reason(reason: &'static str) -> Self {
        Self(KeyValue::new("reason", reason))
    }

    /// How near a drafter is: `colocated`, `same-node` or `remote`; `unknown` while it is not linked.
    pub fn placement(placement: &'static str) -> Self {
        Self(KeyValue::new("placement", placement))
    }

    /// What a drafter on the target's GPU does during a step: `turns` or `ahead`.
    pub fn way(way: &'static str) -> Self {
        Self(KeyValue::new("way", way))
    }

    /// State of a member.
    pub fn state(state: &'static str) -> Self {
        Self(KeyValue::new("state", state))
    }

    /// Place of a draft token within its step, from 0; at most 63.
    pub fn position(position: usize) -> Self {
        Self(KeyValue::new("position", i64::try_from(position.min(63)).unwrap_or(63)))
    }

    /// `gen_ai.operation.name`: `chat` or `text_completion`.
    pub fn operation(operation: &'static str) -> Self {
        Self(KeyValue::new("gen_ai.operation.name", operation))
    }

    /// `gen_ai.request.model`, and with it `gen_ai.provider.name`.
    pub fn request_model(name: &str) -> [Self; 2] {
        [
            Self(KeyValue::new("gen_ai.request.model", Arc::<str>::from(name))),
            Self(KeyValue::new("gen_ai.provider.name", "paceline")),
        ]
    }

    /// `error.type`: a reason of `proto::reason`.
    pub fn error(reason: &'static str) -> Self {
        Self(KeyValue::new("error.type", reason))
    }
}

/// An instrument's measurements go to the same name with another kind of number.
macro_rules! instrument {
    ($(#[$doc:meta])* $name:ident($inner:ident<$value:ty>).$record:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            inner: opentelemetry::metrics::$inner<$value>,
            labels: &'static [&'static str],
        }

        impl $name {
            /// Never waits and never fails. The labels must be among those of the catalogue.
            pub fn $record(&self, value: $value, labels: &[Label]) {
                debug_assert!(
                    labels.iter().all(|l| self.labels.contains(&l.0.key.as_str())),
                    "{labels:?} are not all among {:?}",
                    self.labels
                );
                with_pairs(labels, |pairs| self.inner.$record(value, pairs));
            }
        }
    };
}

instrument! {
    /// Only grows.
    Counter(Counter<u64>).add
}
instrument! {
    /// A number of things that come and go: add 1, add -1.
    UpDownCounter(UpDownCounter<i64>).add
}
instrument! {
    /// The latest value counts.
    Gauge(Gauge<f64>).record
}
instrument! {
    /// How values are distributed, in fixed buckets.
    Histogram(Histogram<f64>).record
}

/// Most labels of one measurement.
const MOST: usize = 4;

/// Lends the labels as the SDK wants them, without a heap allocation for the slice.
fn with_pairs(labels: &[Label], record: impl FnOnce(&[KeyValue])) {
    match labels {
        [] => record(&[]),
        [a] => record(std::slice::from_ref(&a.0)),
        [a, b] => record(&[a.0.clone(), b.0.clone()]),
        [a, b, c] => record(&[a.0.clone(), b.0.clone(), c.0.clone()]),
        [a, b, c, d, ..] => {
            debug_assert!(labels.len() <= MOST, "more labels than any metric has");
            record(&[a.0.clone(), b.0.clone(), c.0.clone(), d.0.clone()]);
        }
    }
}

/// What the catalogue says about one metric, as the SDK takes it.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) help: &'static str,
    pub(crate) buckets: &'static [f64],
    pub(crate) labels: &'static [&'static str],
}

pub(crate) trait Instrument {
    fn new(meter: &Meter, spec: Spec) -> Self;
}

impl Instrument for Counter {
    fn new(meter: &Meter, Spec { name, unit, help, labels, .. }: Spec) -> Self {
        Self { inner: meter.u64_counter(name).with_unit(unit).with_description(help).build(), labels }
    }
}

impl Instrument for UpDownCounter {
    fn new(meter: &Meter, Spec { name, unit, help, labels, .. }: Spec) -> Self {
        Self { inner: meter.i64_up_down_counter(name).with_unit(unit).with_description(help).build(), labels }
    }
}

impl Instrument for Gauge {
    fn new(meter: &Meter, Spec { name, unit, help, labels, .. }: Spec) -> Self {
        Self { inner: meter.f64_gauge(name).with_unit(unit).with_description(help).build(), labels }
    }
}

impl Instrument for Histogram {
    fn new(meter: &Meter, Spec { name, unit, help, buckets, labels }: Spec) -> Self {
        let histogram = meter.f64_histogram(name).with_unit(unit).with_description(help);
        Self { inner: histogram.with_boundaries(buckets.to_vec()).build(), labels }
    }
}
