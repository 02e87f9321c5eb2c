//! Which core a thread runs on.

use std::sync::Arc;

use crate::LoadError;

/// Cores for the threads of a pool, in order; empty: wherever the operating system puts them.
#[derive(Clone, Debug, Default)]
pub(super) struct Cores(Arc<[usize]>);

impl Cores {
    /// `cores` must differ and be open to this process.
    pub(super) fn new(cores: &[usize]) -> Result<Self, LoadError> {
        let bad = |why| Err(LoadError::BadOption { option: "cores", why });
        for (i, core) in cores.iter().enumerate() {
            if cores[..i].contains(core) {
                return bad(format!("core {core} is named twice"));
            }
        }
        if !cores.is_empty() {
            let open = match open() {
                Ok(open) => open,
                Err(why) => return bad(why),
            };
            if let Some(core) = cores.iter().find(|core| !open.contains(core)) {
                return bad(format!("core {core} is not open to this process; its cores are {open:?}"));
            }
        }
        Ok(Self(cores.into()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts the thread that calls on the core of the pool's thread `index`; without one for it, nothing changes.
    pub(super) fn bind(&self, index: usize) {
        let Some(&core) = self.0.get(index) else { return };
        // It was open when the model was loaded: what is left is a machine that changed under the process, and there
        // it computes the same, elsewhere.
        if let Err(error) = bind(core) {
            tracing::warn!(core, error, "the thread stays where it is");
        }
    }
}

/// Cores that this process may use.
#[cfg(target_os = "linux")]
fn open() -> Result<Vec<usize>, String> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None).map_err(|e| e.to_string())?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

#[cfg(target_os = "linux")]
fn bind(core: usize) -> Result<(), String> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|e| e.to_string())
}

#[cfg(not(target_os = "linux"))]
fn open() -> Result<Vec<usize>, String> {
    Err("threads are put on cores on Linux only; leave it out".to_owned())
}

#[cfg(not(target_os = "linux"))]
fn bind(_: usize) -> Result<(), String> {
    open().map(|_| ())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::pool::Pool;
    use super::*;

    #[test]
    fn every_thread_is_on_its_core() {
        let open = open().unwrap();
        let cores: Vec<usize> = open.iter().rev().copied().take(2).collect();
        // A thread of its own: the test's is not to be moved.
        std::thread::scope(|scope| {
            let on = scope.spawn(|| {
                let mut pool = Pool::on_cores(cores.len(), Cores::new(&cores).unwrap()).unwrap();
                pool.enter();
                let mut seen = vec![usize::MAX; 2 * cores.len()];
                let waits = std::sync::Barrier::new(cores.len());
                // As many tasks at a time as there are threads.
                pool.pieces(&mut seen, 2, |_, seen| {
                    waits.wait();
                    seen[0] = rustix::thread::sched_getcpu();
                });
                seen.into_iter().step_by(2).collect::<Vec<_>>()
            });
            let mut on = on.join().unwrap();
            let mut expected = cores.clone();
            on.sort_unstable();
            expected.sort_unstable();
            assert_eq!(on, expected);
        });
    }

    #[test]
    fn cores_that_are_not_there_are_refused() {
        let first = open().unwrap()[0];
        for (cores, why) in [(vec![first, first], "twice"), (vec![first, 1_000_000], "1000000 is not open")] {
            let error = Cores::new(&cores).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("cores"), "{error}");
        }
        assert!(Cores::new(&[]).unwrap().is_empty());
    }
}
