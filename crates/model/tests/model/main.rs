//! The model as its users see it: files in, logits and errors out.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod allocations;
mod bad_files;
mod bad_steps;
mod bits;
mod files;
mod folders;
mod group;
mod heads;
mod real;
mod reference;
mod self_drafts;
mod steps;
mod tiny;
mod trees;
