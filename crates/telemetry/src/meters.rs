//! The numbers of this process: one set of instruments, told as Prometheus text and by OTLP.

use std::ops::Deref;
use std::sync::OnceLock;

use opentelemetry::InstrumentationScope;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use crate::Instruments;

/// The media type of [`Meters::render`].
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of a process; `meters.FIELD.add(..)` for the fields of [`Instruments`].
#[derive(Debug)]
pub struct Meters {
    instruments: Instruments,
    registry: Registry,
    provider: SdkMeterProvider,
}

static METERS: OnceLock<Meters> = OnceLock::new();

/// The meters of this process. Before [`crate::init`], or without it (a command, a test), they are kept
/// and rendered but not exported.
pub fn meters() -> &'static Meters {
    METERS.get_or_init(|| Meters::new(Resource::builder_empty().build(), None))
}

impl Meters {
    /// Meters of their own, for a test that counts.
    pub fn alone() -> Self {
        Self::new(Resource::builder_empty().build(), None)
    }

    /// With one more reader beside Prometheus.
    pub(crate) fn new(resource: Resource, reader: Option<PeriodicReader<MetricExporter>>) -> Self {
        let registry = Registry::new();
        let prometheus = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build();
        let mut builder = SdkMeterProvider::builder().with_resource(resource);
        match prometheus {
            Ok(prometheus) => builder = builder.with_reader(prometheus),
            // Only a registry that has this collector already refuses it; ours is new.
            Err(error) => tracing::error!(%error, "/metrics stays empty"),
        }
        if let Some(reader) = reader {
            builder = builder.with_reader(reader);
        }
        let provider = builder.build();
        let instruments = Instruments::new(&provider.meter_with_scope(scope()));
        Self { instruments, registry, provider }
    }

    /// Makes these the process's meters; `None` when it has some already.
    pub(crate) fn install(self) -> Option<&'static Self> {
        METERS.set(self).ok()?;
        METERS.get()
    }

    pub(crate) fn provider(&self) -> &SdkMeterProvider {
        &self.provider
    }

    /// All metrics that were recorded at least once, and their media type.
    ///
    /// # Errors
    /// The text that could not be encoded.
    pub fn render(&self) -> Result<(&'static str, String), prometheus::Error> {
        Ok((TEXT, TextEncoder::new().encode_to_string(&self.registry.gather())?))
    }
}

impl Deref for Meters {
    type Target = Instruments;

    fn deref(&self) -> &Instruments {
        &self.instruments
    }
}

/// Who records, and by which release of the conventions.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("paceline").with_version(env!("CARGO_PKG_VERSION")).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{CATALOGUE, Kind, Label};

    /// Sample names on `/metrics`, without what histograms append.
    fn names(text: &str) -> BTreeSet<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.filter_map(|rest| Some(rest.split_once(' ')?.0.to_owned())).collect()
    }

    #[test]
    fn prometheus_has_the_names_of_the_catalogue() {
        let meters = Meters::alone();
        let meter = meters.provider.meter("again");
        for metric in CATALOGUE {
            // Instruments of one name and kind are one.
            match metric.kind {
                Kind::Counter => {
                    meter
                        .u64_counter(metric.name)
                        .with_unit(metric.unit)
                        .with_description(metric.help)
                        .build()
                        .add(1, &[]);
                }
                Kind::UpDownCounter => {
                    let counter = meter.i64_up_down_counter(metric.name).with_unit(metric.unit);
                    counter.with_description(metric.help).build().add(1, &[]);
                }
                Kind::Gauge => {
                    meter
                        .f64_gauge(metric.name)
                        .with_unit(metric.unit)
                        .with_description(metric.help)
                        .build()
                        .record(1.0, &[]);
                }
                Kind::Histogram => {
                    meter
                        .f64_histogram(metric.name)
                        .with_unit(metric.unit)
                        .with_description(metric.help)
                        .build()
                        .record(1.0, &[]);
                }
            }
        }
        let (media, text) = meters.render().unwrap();
        assert!(media.starts_with("text/plain; version=0.0.4"));
        let expected: BTreeSet<String> = CATALOGUE.iter().map(crate::Metric::prometheus).collect();
        assert_eq!(names(&text), expected, "{text}");
    }

    #[test]
    fn measurements_are_rendered_with_their_labels_and_buckets() {
        let meters = Meters::alone();
        assert_eq!(meters.render().unwrap().1, "");
        let model = [Label::model("coder")];
        meters.prompt_tokens.add(7, &model);
        meters.prompt_tokens.add(5, &model);
        meters.num_requests_running.record(2.0, &[Label::model("coder"), Label::role("worker")]);
        meters.inter_token_latency.record(0.004, &model);
        meters.spec_decode_num_accepted_tokens_per_pos.add(1, &[Label::model("coder"), Label::position(900)]);
        let text = meters.render().unwrap().1;
        for line in [
            "paceline_prompt_tokens_total{model=\"coder\"} 12",
            "paceline_num_requests_running{model=\"coder\",role=\"worker\"} 2",
            "paceline_inter_token_latency_seconds_bucket{model=\"coder\",le=\"0.003\"} 0",
            "paceline_inter_token_latency_seconds_bucket{model=\"coder\",le=\"0.005\"} 1",
            "paceline_inter_token_latency_seconds_count{model=\"coder\"} 1",
            "paceline_spec_decode_num_accepted_tokens_per_pos_total{model=\"coder\",position=\"63\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "are not all among")]
    fn a_label_that_the_catalogue_does_not_name_is_a_mistake() {
        Meters::alone().prompt_tokens.add(1, &[Label::reason("why")]);
    }
}
