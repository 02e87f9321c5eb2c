//! The file that a tier of this process spills to: it has no name, so only its process finds it.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// Flips a bit in every 64 bytes of the files that this process has open in `folder`; the number of files.
#[cfg(target_os = "linux")]
pub(crate) fn flip_bits(folder: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.path());
    let ours = |path: &std::path::PathBuf| std::fs::read_link(path).is_ok_and(|to| to.starts_with(folder));
    let mut files = 0;
    for path in open.filter(ours) {
        let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes.iter_mut().step_by(64).for_each(|byte| *byte ^= 16);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&bytes).unwrap();
        files += 1;
    }
    files
}
