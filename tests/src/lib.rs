//! The proof: everything together.
