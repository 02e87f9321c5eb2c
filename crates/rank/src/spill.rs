//! Where evicted pages go.

use std::path::PathBuf;
use std::time::Duration;

use daemon::config::{ByteSize, Check, Wrong, duration};
use serde::{Deserialize, Serialize};

/// A bounded file for pages that the prefix cache has no room for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spill {
    /// Of the file, which has no name and ends with the process. On a file system in memory it is a tier of host memory.
    pub folder: PathBuf,
    /// Most bytes of it.
    pub bytes: ByteSize,
    /// How long a sequence waits for its pages; what is not there by then is computed.
    #[serde(default = "within", with = "duration")]
    pub within: Duration,
}

const fn within() -> Duration {
    Duration::from_secs(2)
}

impl Check for Spill {
    fn check(&self) -> Result<(), Wrong> {
        if self.bytes < ByteSize::mib(1) {
            return Err(Wrong::new("bytes", "must be at least 1MiB"));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&self.within) {
            return Err(Wrong::new("within", "must be 1ms to 1m"));
        }
        Ok(())
    }
}
