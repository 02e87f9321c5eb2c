use std::collections::BTreeSet;

use proto::worker as wire;
use proto::worker::worker_client::WorkerClient;
use proto::worker::worker_server::{Worker, WorkerServer};
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;
use crate::registry::{self, Registry};

#[test]
fn windows_keep_streams_apart() {
    let ok = Config::default();
    assert_eq!(ok.check(), Ok(()));
    for (bad, key) in [
        (Config { max_connections: 0, ..ok.clone() }, "max_connections"),
        (Config { max_streams: 0, ..ok.clone() }, "max_streams"),
        (Config { stream_window: ByteSize::kib(1), ..ok.clone() }, "stream_window"),
        (Config { connection_window: ByteSize::mib(1), ..ok.clone() }, "connection_window"),
        (Config { connection_window: ByteSize::gib(3), ..ok.clone() }, "connection_window"),
        (Config { max_message: ByteSize(0), ..ok.clone() }, "max_message"),
        (Config { keep_alive: Duration::ZERO, ..ok.clone() }, "keep_alive"),
    ] {
        assert_eq!(bad.check().unwrap_err().key, key);
    }
}

#[tokio::test]
async fn health_follows_readiness_and_reflection_lists_services() {
    let (readiness, shutdown) = (Readiness::default(), Shutdown::default());
    let model = readiness.gate("model", "loading");
    let (registry, table) = Registry::new(&registry::Config::default(), &shutdown);
    let table = tokio::spawn(table);
    let server = Server::bind(&Config::default(), false).await.unwrap();
    let endpoint = cluster::Endpoint::try_from(server.address()).unwrap();
    let serving = tokio::spawn(server.add(registry.service()).serve(readiness, shutdown.clone()));
    let channel = dial(&endpoint, Duration::from_secs(2)).unwrap().connect().await.unwrap();

    let mut health = HealthClient::new(channel.clone());
    for service in ["", "paceline.cluster.v1.Cluster"] {
        let mut watch =
            health.watch(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        let mut next = async || watch.next().await.unwrap().unwrap().status();
        let first = next().await;
        assert_eq!(first.as_str_name(), "NOT_SERVING");
        model.open();
        assert_eq!(next().await.as_str_name(), "SERVING");
        model.close("again");
        assert_eq!(next().await.as_str_name(), "NOT_SERVING");
    }
    let unknown = health.check(HealthCheckRequest { service: "x".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);

    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(list))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.next().await.unwrap().unwrap().message_response
    else {
        panic!("no list")
    };
    let names: BTreeSet<String> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["paceline.cluster.v1.Cluster", "paceline.v1.Inference", "grpc.health.v1.Health"] {
        assert!(names.contains(name), "{names:?}");
    }

    // A health watch that nobody ends does not hold the stop up for long.
    let _watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap();
    shutdown.stop();
    tokio::time::timeout(GRACE * 2, serving).await.unwrap().unwrap().unwrap();
    table.await.unwrap().unwrap();
}

/// Answers every request with tokens without end.
struct Endless;

#[tonic::async_trait]
impl Worker for Endless {
    type GenerateStream = futures::stream::BoxStream<'static, Result<wire::GenerateResponse, tonic::Status>>;

    async fn generate(
        &self,
        _: tonic::Request<wire::GenerateRequest>,
    ) -> Result<tonic::Response<Self::GenerateStream>, tonic::Status> {
        let tokens = wire::Tokens { index: 0, ids: vec![1000; 4096], ..wire::Tokens::default() };
        let event = Some(wire::generate_response::Event::Tokens(tokens));
        let answer = wire::GenerateResponse { event };
        Ok(tonic::Response::new(Box::pin(futures::stream::repeat_with(move || Ok(answer.clone())))))
    }

    async fn status(
        &self,
        _: tonic::Request<wire::StatusRequest>,
    ) -> Result<tonic::Response<wire::StatusResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not part of this test"))
    }
}

/// Opens `stalled` streams on one channel and reads none of them; whether one more can then be read
/// for a MiB.
async fn flows_beside(stalled: usize, channel: tonic::transport::Channel, patience: Duration) -> bool {
    let mut client = WorkerClient::new(channel);
    let mut unread = Vec::new();
    for _ in 0..stalled {
        let answers = client.generate(wire::GenerateRequest::default()).await.unwrap().into_inner();
        unread.push(answers);
    }
    // Until their windows are full.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let read = async {
        let mut answers = client.generate(wire::GenerateRequest::default()).await.unwrap().into_inner();
        for _ in 0..128 {
            answers.message().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(patience, read).await.is_ok()
}

#[tokio::test]
async fn stalled_streams_do_not_stall_another() {
    let shutdown = Shutdown::default();
    let server = Server::bind(&Config::default(), false).await.unwrap();
    let endpoint = cluster::Endpoint::try_from(server.address()).unwrap();
    let server = server.add(WorkerServer::new(Endless));
    let serving = tokio::spawn(server.serve(Readiness::default(), shutdown.clone()));
    let dialled = dial(&endpoint, Duration::from_secs(2)).unwrap();

    let channel = dialled.clone().connect().await.unwrap();
    assert!(flows_beside(200, channel, Duration::from_secs(20)).await);
    // The test sees a stall when there is one: a connection window of three streams.
    let narrow = dialled.initial_connection_window_size(3 * 65_535).connect().await.unwrap();
    assert!(!flows_beside(4, narrow, Duration::from_secs(1)).await);
    shutdown.stop();
    tokio::time::timeout(GRACE * 5, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_more_than_the_most_waits_for_one_to_end() {
    let shutdown = Shutdown::default();
    let config = Config { max_connections: 2, ..Config::default() };
    let server = Server::bind(&config, false).await.unwrap();
    let endpoint = cluster::Endpoint::try_from(server.address()).unwrap();
    let serving = tokio::spawn(server.serve(Readiness::default(), shutdown.clone()));
    let dialled = dial(&endpoint, Duration::from_secs(2)).unwrap();
    let check = async |channel| {
        let asked = HealthCheckRequest { service: String::new() };
        HealthClient::new(channel).check(asked).await.map(|_| ())
    };

    let (first, second) = (dialled.connect().await.unwrap(), dialled.connect().await.unwrap());
    check(first.clone()).await.unwrap();
    check(second.clone()).await.unwrap();
    // The kernel takes it, the server does not.
    let third = dialled.connect_lazy();
    let mut waiting = std::pin::pin!(check(third));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    check(first.clone()).await.unwrap();
    drop(second);
    tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    shutdown.stop();
    tokio::time::timeout(GRACE * 2, serving).await.unwrap().unwrap().unwrap();
}
