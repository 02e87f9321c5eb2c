//! Hugging Face folders: the logits that `transformers` gives, the bits that a GGUF file of the same
//! weights gives, and what is refused.

mod golden;
mod refused;
mod twin;

use std::path::Path;

use model::{CpuModel, LoadError, Options, PageBudget};

/// Loads a folder: 4 slots of 1,024 positions.
fn load(folder: &Path, threads: usize, context: Option<u32>) -> Result<CpuModel, LoadError> {
    let options =
        Options { context, vocab: None, slots: 4, pages: PageBudget::Pages(4 * 64), threads, heads: None };
    CpuModel::load(folder, &options)
}
