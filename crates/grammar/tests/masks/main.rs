//! Grammars over a toy vocabulary, and over real ones.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; figures and skips are said aloud"
)]

mod hostile;
mod json;
mod lark;
mod real;
mod regex;
mod rollback;
mod tools;
mod toy;
