//! One binary for all proofs, so that the workspace is linked once.

mod arch;
