//! The model as its users see it: files in, logits and errors out.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod real;
mod steps;
