//! Setting up, once a process, and flushing at its end.

use std::io::IsTerminal;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::meters::scope;
use crate::{Config, Log, Meters, trace};

/// Finished spans that wait to be exported; full, further ones are dropped.
const SPANS: usize = 2048;
/// For what is recorded to be sent when the process ends.
const FLUSH: Duration = Duration::from_secs(5);

/// Who this process is, as its resource says.
#[derive(Clone, Debug)]
pub struct Service {
    /// `coordinator`, `worker` or `drafter`.
    pub role: &'static str,
    /// Tells processes of one role apart: a node's id.
    pub instance: String,
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(
        "log.filter: {filter:?} is not a filter ({why}); write for example \"info\" or \"info,daemon=debug\""
    )]
    Filter { filter: String, why: String },
    #[error("telemetry.{0}")]
    Config(#[from] crate::Invalid),
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("telemetry was set up before in this process")]
    Twice,
}

/// Held until the process ends; dropped, it sends what is left, for at most five seconds.
#[derive(Debug)]
#[must_use = "dropping it ends telemetry"]
pub struct Guard {
    tracer: Option<SdkTracerProvider>,
    meters: Option<&'static Meters>,
}

/// Sends this process's log lines to standard error from now on. With a service, also its spans and
/// metrics to where `config` says; then it must be called within the runtime that will carry them.
///
/// # Errors
/// A filter, an endpoint or another setting that cannot be used; a second call in one process.
pub fn init(log: &Log, service: Option<(&Service, &Config)>) -> Result<Guard, InitError> {
    let colour = std::io::stderr().is_terminal();
    let lines = crate::log::layer(log, std::io::stderr, colour)?;
    let Some((service, config)) = service else {
        tracing_subscriber::registry().with(lines).try_init().map_err(|_| InitError::Twice)?;
        return Ok(Guard { tracer: None, meters: None });
    };
    config.check()?;
    let resource = resource(service, config);
    let tracer = tracer(config, resource.clone())?;
    let reader = match &config.otlp_endpoint {
        Some(endpoint) => {
            let exporter = MetricExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(config.export_timeout)
                .build()?;
            Some(PeriodicReader::builder(exporter).with_interval(config.metrics_interval).build())
        }
        None => None,
    };
    let spans = trace::layer(tracer.tracer_with_scope(scope()));
    tracing_subscriber::registry().with(lines).with(spans).try_init().map_err(|_| InitError::Twice)?;
    let meters = Meters::new(resource, reader).install().ok_or(InitError::Twice)?;
    Ok(Guard { tracer: Some(tracer), meters: Some(meters) })
}

/// Spans exist without an endpoint, too: so that a caller's trace goes through this process to the next
/// one, and log lines name it.
pub(crate) fn tracer(config: &Config, resource: Resource) -> Result<SdkTracerProvider, InitError> {
    let mut builder = SdkTracerProvider::builder().with_resource(resource);
    let root = match &config.otlp_endpoint {
        None => Sampler::AlwaysOff,
        Some(endpoint) => {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(config.export_timeout)
                .build()?;
            let batch = BatchConfigBuilder::default()
                .with_max_queue_size(SPANS)
                .with_scheduled_delay(config.spans_interval)
                .build();
            builder = builder
                .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build());
            Sampler::TraceIdRatioBased(config.trace_ratio)
        }
    };
    Ok(builder.with_sampler(Sampler::ParentBased(Box::new(root))).build())
}

pub(crate) fn resource(service: &Service, config: &Config) -> Resource {
    let name = config.service_name.clone().unwrap_or_else(|| format!("paceline-{}", service.role));
    let more = config.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty()
        .with_attributes(more)
        .with_attributes([
            KeyValue::new("service.namespace", "paceline"),
            KeyValue::new("service.name", name),
            KeyValue::new("service.instance.id", service.instance.clone()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build()
}

impl Drop for Guard {
    /// On a thread of its own: a collector that does not answer must not hold up the end of the process.
    fn drop(&mut self) {
        let (tracer, meters) = (self.tracer.take(), self.meters.take());
        if tracer.is_none() && meters.is_none() {
            return;
        }
        let (done, flushed) = sync_channel(1);
        let flush = move || {
            if let Some(Err(error)) = tracer.map(|tracer| tracer.shutdown_with_timeout(FLUSH)) {
                tracing::debug!(%error, "the last spans");
            }
            if let Some(Err(error)) = meters.map(|meters| meters.provider().shutdown_with_timeout(FLUSH)) {
                tracing::debug!(%error, "the last metrics");
            }
            // Nobody waits any more when it took too long.
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("flush".into()).spawn(flush).is_err()
            || flushed.recv_timeout(FLUSH).is_err()
        {
            tracing::warn!("the collector did not take the last spans and metrics in {FLUSH:?}");
        }
    }
}
