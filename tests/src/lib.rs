//! The proof: everything together. The tests are in `tests/main.rs`, one binary.
//!
//! `arch` keeps the shape of the workspace. Nothing is exported from here.
#![forbid(unsafe_code)]
