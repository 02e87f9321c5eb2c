//! A collector for tests: takes OTLP over gRPC on loopback and keeps what came.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::meters::scope;
use crate::{Config, InitError, start, trace};

/// Dropped, it is gone, as a collector that crashed.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    serving: JoinHandle<()>,
}

/// Sends spans of this process to the collector until it is dropped: for nodes that share a test's
/// process with others, where [`init`](crate::init) would be one too many. Once a process.
#[derive(Debug)]
pub struct Spans(SdkTracerProvider);

impl Spans {
    /// # Errors
    /// A second call in one process.
    pub fn to(collector: &Collector) -> Result<Self, InitError> {
        let config = Config {
            otlp_endpoint: Some(collector.endpoint()),
            spans_interval: Duration::from_millis(50),
            ..Config::default()
        };
        let service = crate::Service { role: "test", instance: "test".into() };
        let tracer = start::tracer(&config, start::resource(&service, &config))?;
        let spans = trace::layer(tracer.tracer_with_scope(scope()));
        tracing_subscriber::registry().with(spans).try_init().map_err(|_| InitError::Twice)?;
        Ok(Self(tracer))
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        // What is lost is the test's to notice.
        let _ = self.0.shutdown_with_timeout(Duration::from_secs(1));
    }
}

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of the process that sent it.
    pub service: String,
    pub name: String,
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub attributes: BTreeMap<String, String>,
    pub failed: bool,
    /// Nanoseconds since 1970.
    pub time: std::ops::Range<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Span>,
    /// Metric names by `service.name`.
    metrics: BTreeMap<String, Vec<String>>,
}

impl Collector {
    /// # Errors
    /// A port that cannot be bound.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let kept = Arc::<Mutex<Kept>>::default();
        let service = Service(Arc::clone(&kept));
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(service.clone()))
            .add_service(MetricsServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move {
            // A broken connection is the test's to notice: something does not come.
            let _ = server.await;
        });
        Ok(Self { address, kept, serving })
    }

    /// For `telemetry.otlp_endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).spans.clone()
    }

    /// Names of the metrics that a service sent so far.
    pub fn metrics(&self, service: &str) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.metrics.get(service).cloned().unwrap_or_default()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone, Debug)]
struct Service(Arc<Mutex<Kept>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let service = service_name(resource.resource.as_ref());
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.spans.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: span.attributes.iter().map(pair).collect(),
                    failed: span.status.is_some_and(|status| status.code == 2),
                    time: span.start_time_unix_nano..span.end_time_unix_nano,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_metrics {
            let names = kept.metrics.entry(service_name(resource.resource.as_ref())).or_default();
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                if !names.contains(&metric.name) {
                    names.push(metric.name);
                }
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn service_name(resource: Option<&Resource>) -> String {
    let attributes = resource.map(|resource| resource.attributes.as_slice()).unwrap_or_default();
    attributes
        .iter()
        .map(pair)
        .find(|(key, _)| key == "service.name")
        .map(|(_, name)| name)
        .unwrap_or_default()
}

fn pair(attribute: &KeyValue) -> (String, String) {
    use any_value::Value;
    let value = match attribute.value.as_ref().and_then(|any| any.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::DoubleValue(x)) => x.to_string(),
        Some(Value::BoolValue(b)) => b.to_string(),
        other => format!("{other:?}"),
    };
    (attribute.key.clone(), value)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
