use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn the_table_of_reasons() {
    let table: Vec<String> = Reason::ALL
        .iter()
        .map(|r| format!("{r} {:?} {} {} {}", r.grpc(), r.http(), r.openai_type(), r.openai_code()))
        .collect();
    assert_eq!(
        table,
        [
            "INVALID_FIELD InvalidArgument 400 invalid_request_error invalid_value",
            "NOT_BUILT InvalidArgument 400 invalid_request_error unsupported_parameter",
            "APPROXIMATE_ONLY FailedPrecondition 400 invalid_request_error approximate_only",
            "MODEL_NOT_FOUND NotFound 404 invalid_request_error model_not_found",
            "CONTEXT_LENGTH_EXCEEDED InvalidArgument 400 invalid_request_error context_length_exceeded",
            "TOO_LARGE InvalidArgument 413 invalid_request_error request_too_large",
            "UNAUTHENTICATED Unauthenticated 401 authentication_error invalid_api_key",
            "OVERLOADED ResourceExhausted 429 rate_limit_error rate_limit_exceeded",
            "NO_WORKER Unavailable 503 server_error no_worker",
            "DRAINING Unavailable 503 server_error draining",
            "SLOW_CLIENT ResourceExhausted 408 invalid_request_error slow_client",
            "DEADLINE DeadlineExceeded 504 server_error deadline_exceeded",
            "CANCELLED Cancelled 499 invalid_request_error cancelled",
            "VOCAB_MISMATCH FailedPrecondition 500 server_error vocab_mismatch",
            "PROTOCOL_MISMATCH FailedPrecondition 500 server_error protocol_mismatch",
            "STALE_INCARNATION FailedPrecondition 500 server_error stale_incarnation",
            "INTERNAL Internal 500 server_error internal_error",
        ]
    );
    let names: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
    let codes: HashSet<_> = Reason::ALL.iter().map(|r| r.openai_code()).collect();
    assert_eq!((names.len(), codes.len()), (Reason::ALL.len(), Reason::ALL.len()));
}

#[test]
fn a_status_without_our_details_gets_the_nearest_reason() {
    for (code, reason) in [
        (Code::Unavailable, Reason::NoWorker),
        (Code::ResourceExhausted, Reason::Overloaded),
        (Code::OutOfRange, Reason::TooLarge),
        (Code::Unimplemented, Reason::NotBuilt),
        // Somebody else's NOT_FOUND says nothing about a model.
        (Code::NotFound, Reason::Internal),
        (Code::Unknown, Reason::Internal),
    ] {
        let failure = parse(&Status::new(code, "m"));
        assert_eq!(failure, Failure { reason, message: "m".into(), field: None, retry_after: None });
    }
}

#[test]
fn another_domain_or_a_newer_reason_falls_back_to_the_code() {
    for (name, domain) in [("DRAINING", "elsewhere"), ("FROM_THE_FUTURE", DOMAIN)] {
        let details = ErrorDetails::with_error_info(name, domain, []);
        let status = Status::with_error_details(Code::ResourceExhausted, "m", details);
        assert_eq!(parse(&status).reason, Reason::Overloaded);
    }
}

#[test]
fn the_headers_of_a_status_stay_small() {
    let long = "\u{e9}".repeat(1 << 20);
    let headers = status(Reason::InvalidField, &long, Some(&long), Some(Duration::MAX))
        .into_http::<()>()
        .headers()
        .iter()
        .map(|(k, v)| k.as_str().len() + v.len())
        .sum::<usize>();
    assert!(headers < 8 << 10, "{headers} bytes");
}

proptest! {
    #[test]
    fn failures_survive_the_wire(
        reason in prop::sample::select(&Reason::ALL),
        message in "\\PC{0,200}",
        field in prop::option::of("[a-z_.]{1,40}"),
        retry_ms in prop::option::of(0u64..100_000_000),
    ) {
        let failure =
            Failure { reason, message, field, retry_after: retry_ms.map(Duration::from_millis) };
        // Through the headers, as a client sees it.
        let response = Status::from(failure.clone()).into_http::<()>();
        let status = Status::from_header_map(response.headers()).unwrap();
        prop_assert_eq!(status.code(), reason.grpc());
        prop_assert_eq!(parse(&status), failure);
    }

    #[test]
    fn nonsense_details_never_panic(code in 0i32..20, details in prop::collection::vec(any::<u8>(), 0..200)) {
        let status = Status::with_details(Code::from_i32(code), "m", details.into());
        prop_assert_eq!(parse(&status).message, "m");
    }
}
