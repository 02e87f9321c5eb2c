//! The two ways in. Each turns its words into `proto::Asked` and an answer's events into its own; what
//! happens between is `frontdoor`.

pub(crate) mod grpc;
pub(crate) mod health;
pub(crate) mod openai;
