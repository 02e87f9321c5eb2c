//! Reading a payload out of a Python wheel (a zip file).

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

/// Why a wheel's payload could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WheelError {
    #[error("{path} is damaged ({why})")]
    Damaged { path: PathBuf, why: String },
    #[error("{path} does not hold {inside}: it is another package than the one this model was packed in")]
    NoPayload { path: PathBuf, inside: String },
    #[error("{path} unpacks to more than the {limit} bytes the model has left")]
    TooLong { path: PathBuf, limit: u64 },
    #[error("cannot read or write while unpacking {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Reads the payload to its end, which checks its CRC-32; nothing is kept.
pub(crate) fn verify(path: &Path, inside: &str) -> Result<u64, WheelError> {
    copy(path, inside, u64::MAX, &mut io::sink())
}

/// Copies the payload to `out` and returns its length. At most `limit` bytes are written, whatever
/// the wheel claims.
pub(crate) fn copy(path: &Path, inside: &str, limit: u64, out: &mut dyn Write) -> Result<u64, WheelError> {
    let io = |source| WheelError::Io { path: path.to_owned(), source };
    let damaged = |why: String| WheelError::Damaged { path: path.to_owned(), why };
    let file = File::open(path).map_err(io)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(e.to_string()))?;
    let mut payload = match archive.by_name(inside) {
        Ok(payload) => payload,
        Err(zip::result::ZipError::FileNotFound) => {
            return Err(WheelError::NoPayload { path: path.to_owned(), inside: inside.to_owned() });
        }
        Err(e) => return Err(damaged(e.to_string())),
    };
    let mut buffer = vec![0; 256 * 1024];
    let mut copied = 0;
    loop {
        // Errors of the reader are the wheel's (bad deflate stream, wrong CRC), those of the writer the disk's.
        let n = payload.read(&mut buffer).map_err(|e| damaged(e.to_string()))?;
        if n == 0 {
            return Ok(copied);
        }
        copied += n as u64;
        if copied > limit {
            return Err(WheelError::TooLong { path: path.to_owned(), limit });
        }
        out.write_all(&buffer[..n]).map_err(io)?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A wheel with one payload.
    pub(crate) fn wheel(path: &Path, inside: &str, payload: &[u8]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        zip.start_file(inside, SimpleFileOptions::default()).unwrap();
        zip.write_all(payload).unwrap();
        zip.finish().unwrap();
    }

    #[test]
    fn a_payload_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.whl");
        let payload: Vec<u8> = (0..600_000u32).map(|i| (i * 7) as u8).collect();
        wheel(&path, "x/part.bin", &payload);
        let mut out = Vec::new();
        assert_eq!(copy(&path, "x/part.bin", u64::MAX, &mut out).unwrap(), 600_000);
        assert_eq!(out, payload);
    }

    #[test]
    fn a_wheel_that_is_not_the_right_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.whl");
        wheel(&path, "x/part.bin", b"payload");
        assert!(matches!(verify(&path, "y/part.bin"), Err(WheelError::NoPayload { .. })));
        assert!(matches!(
            copy(&path, "x/part.bin", 6, &mut io::sink()),
            Err(WheelError::TooLong { limit: 6, .. })
        ));
        assert!(matches!(verify(&dir.path().join("no.whl"), "x"), Err(WheelError::Io { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// A flipped bit or a cut end is an error or harmless; the payload never comes out changed.
        #[test]
        fn a_damaged_wheel_never_gives_other_bytes(at in 0usize..400, bit in 0u8..8, cut in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.whl");
            let payload: Vec<u8> = (0..300u32).map(|i| (i * i) as u8).collect();
            wheel(&path, "x/part.bin", &payload);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            std::fs::write(&path, &bytes).unwrap();
            let mut out = Vec::new();
            if copy(&path, "x/part.bin", 1 << 20, &mut out).is_ok() {
                prop_assert_eq!(out, payload);
            }
        }
    }
}
