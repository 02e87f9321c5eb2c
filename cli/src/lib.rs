//! The command line: what a person types, turned into the processes' configuration and calls.
//!
//! This is the process edge: flags, environment and files are read here (and in `daemon::config`),
//! nowhere below. It is not a place for serving logic: the processes are `coordinator`, `worker`
//! and `drafter`. Start at [`args::Cli`]; each subcommand is a file of its name.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to its terminal")]

pub mod args;
pub mod backend;
pub mod bench;
pub mod chat;
pub mod client;
pub mod coordinator;
pub mod demo;
pub mod drafter;
pub mod generate;
pub mod group;
pub mod heads;
pub mod models;
pub mod rank;
mod site;
pub mod status;
pub mod up;
pub mod worker;
