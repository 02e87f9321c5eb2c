use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cache::KV_DTYPE;
use crate::files::deciding;
use crate::{ARITHMETIC_VERSION, LoadError};

/// The numerics fingerprint: nodes with the same one give the same text for the same seed.
///
/// Weights, tokenizer and template (all in the file, or in files of the folder), kernel arithmetic, KV dtype and sampler.
/// Shown as `fp_` and 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the whole model once (about a second a gigabyte).
pub fn fingerprint(path: &Path) -> Result<Fingerprint, LoadError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for (name, path) in deciding(path)? {
        let io = |source| LoadError::Io { what: "reading the model for its fingerprint".to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        if !name.is_empty() {
            // Name and length first: what one file ends with is not what another begins with.
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(file.metadata().map_err(io)?.len().to_le_bytes());
        }
        loop {
            let read = file.read(&mut buffer).map_err(io)?;
            let Some(bytes) = buffer.get(..read).filter(|b| !b.is_empty()) else { break };
            hash.update(bytes);
        }
    }
    let numerics =
        format!("arithmetic {ARITHMETIC_VERSION}, kv {KV_DTYPE}, sampler {}", sampling::SAMPLER_VERSION);
    hash.update(numerics.as_bytes());
    let hex: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok(Fingerprint(format!("fp_{hex}")))
}
