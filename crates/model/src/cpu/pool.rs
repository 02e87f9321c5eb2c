//! Threads that compute one step together.
//!
//! A step is some hundred short jobs that all threads must finish before the next begins. So a thread that
//! has nothing to do first watches for the next job (a microsecond away, most often) and only then sleeps.
//! The thread that calls is one of the pool's; a pool of one has no others.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread, ThreadId};

use super::cores::Cores;

/// Looks at a flag before a thread sleeps: some 50 microseconds, longer than any pause inside a step.
const SPINS: u32 = 2000;

/// Runs jobs on a fixed set of threads.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    cores: Cores,
    /// The thread that entered last.
    caller: Option<ThreadId>,
}

/// What all threads see.
struct Shared {
    /// Number of the job that is to be done; changed only by the caller, after `job` was written.
    number: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Each thread's own run of tasks: the next one of it. Runs lie next to each other, so what a thread
    /// reads is one stream; who is through with its own helps the others.
    next: Vec<Next>,
    /// Workers still at the job.
    busy: AtomicUsize,
    /// Set by a thread before it sleeps, taken by the one that wakes it.
    sleeping: Vec<AtomicBool>,
    caller_sleeps: AtomicBool,
    stop: AtomicBool,
    /// Tasks that the caller did without the others.
    alone: AtomicUsize,
    /// What a worker panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: all fields but `job` are `Sync`. `job` is written by the caller only while `busy` is 0, before
// `number` changes with release; workers read it after seeing that change with acquire, and are done
// with it before they lower `busy`.
unsafe impl Sync for Shared {}
// SAFETY: the only field that is not `Send` by itself is `job`, whose pointer is to something `Sync`.
unsafe impl Send for Shared {}

/// On a cache line of its own: every thread counts its own up.
#[repr(align(64))]
struct Next(AtomicUsize);

#[derive(Clone)]
struct Job {
    /// Outlives the job: `each` does not return before all threads are done with it.
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    caller: Thread,
}

impl Job {
    /// The tasks that belong to a thread.
    fn run(&self, thread: usize, threads: usize) -> Range<usize> {
        self.tasks * thread / threads..self.tasks * (thread + 1) / threads
    }
}

impl Pool {
    /// `threads` of them, the caller's included.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        Self::on_cores(threads, Cores::default())
    }

    /// As [`Self::new`], each thread on a core of its own for as long as there are cores.
    pub(super) fn on_cores(threads: usize, cores: Cores) -> std::io::Result<Self> {
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            number: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: (0..=workers).map(|_| Next(AtomicUsize::new(0))).collect(),
            busy: AtomicUsize::new(0),
            sleeping: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            caller_sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            alone: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        // Made first: should a thread not start, the drop of what is there ends the others.
        let mut pool = Self { shared, workers: Vec::new(), cores, caller: None };
        for index in 0..workers {
            let (shared, cores) = (Arc::clone(&pool.shared), pool.cores.clone());
            let builder = thread::Builder::new().name(format!("model-{}", index + 1));
            pool.workers.push(builder.spawn(move || {
                cores.bind(index + 1);
                shared.work(index);
            })?);
        }
        Ok(pool)
    }

    /// The thread that calls becomes the pool's first: with cores, it moves to the first of them and stays.
    pub(super) fn enter(&mut self) {
        if self.cores.is_empty() {
            return;
        }
        let caller = thread::current().id();
        if self.caller != Some(caller) {
            self.caller = Some(caller);
            self.cores.bind(0);
        }
    }

    /// Tells from any thread how far the tasks have come: another number whenever one was begun.
    pub(super) fn sight(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let begun = shared.next.iter().map(|next| next.0.load(Ordering::Relaxed)).sum::<usize>();
            let jobs = shared.number.load(Ordering::Relaxed) as u64;
            // A large odd number: jobs and their tasks do not make up for each other.
            let alone = shared.alone.load(Ordering::Relaxed) as u64;
            jobs.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(begun as u64).wrapping_add(alone << 32)
        }
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, on any threads; returns when all are done.
    /// A panic of a task is passed on after that.
    ///
    /// `&mut`: a pool does one job at a time, and a task cannot start another.
    pub(super) fn each(&mut self, tasks: usize, task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            for i in 0..tasks {
                self.shared.alone.fetch_add(1, Ordering::Relaxed);
                task(i);
            }
            return;
        }
        let task: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime changes. No thread uses the pointer after this function: it waits
        // for `busy` to become 0, whether or not a task panics.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(task)
        };
        let job = Job { task, tasks, caller: thread::current() };
        let shared = &*self.shared;
        // SAFETY: no job is under way (`&mut self`, and `each` waits), so no worker reads it.
        unsafe { *shared.job.get() = Some(job.clone()) };
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(job.run(thread, self.threads()).start, Ordering::Relaxed);
        }
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.number.fetch_add(1, Ordering::SeqCst);
        for (sleeping, worker) in shared.sleeping.iter().zip(&self.workers) {
            if sleeping.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.tasks(&job, 0)));
        shared.wait();
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// As [`Self::each`] over pieces of `data`, `size` long except for the last.
    pub(super) fn pieces<T: Send>(
        &mut self,
        data: &mut [T],
        size: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let parts = Parts::new(data);
        self.each(data.len().div_ceil(size.max(1)), |i| {
            // SAFETY: each piece is asked for once, and pieces do not overlap.
            task(i, unsafe { parts.get(i * size, size) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what its tasks panic with; it cannot end by a panic.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, index: usize) {
        let mut done = 0;
        loop {
            let mut spins = 0;
            while self.number.load(Ordering::Acquire) == done {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                spins += 1;
                if spins < SPINS {
                    spin_loop();
                    continue;
                }
                self.sleeping[index].store(true, Ordering::SeqCst);
                // Looked at once more: who changes it afterwards sees the flag and wakes this thread.
                if self.number.load(Ordering::SeqCst) == done && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.sleeping[index].store(false, Ordering::SeqCst);
            }
            done = done.wrapping_add(1);
            // SAFETY: written before `number` changed, and not again before this worker lowers `busy`.
            let job = unsafe { (*self.job.get()).clone() };
            let Some(job) = job else { continue };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.tasks(&job, index + 1))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            let caller = job.caller;
            if self.busy.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_sleeps.swap(false, Ordering::SeqCst)
            {
                caller.unpark();
            }
        }
    }

    /// Takes tasks until none is left: those of `thread`'s run, then the others'.
    fn tasks(&self, job: &Job, thread: usize) {
        // SAFETY: what it points at outlives the job; see `Pool::each`.
        let task = unsafe { &*job.task };
        let threads = self.next.len();
        for owner in (thread..threads).chain(0..thread) {
            let end = job.run(owner, threads).end;
            loop {
                let i = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                if i >= end {
                    break;
                }
                task(i);
            }
        }
    }

    /// Until all workers are done.
    fn wait(&self) {
        let mut spins = 0;
        while self.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                spin_loop();
                continue;
            }
            self.caller_sleeps.store(true, Ordering::SeqCst);
            if self.busy.load(Ordering::SeqCst) != 0 {
                thread::park();
            }
            self.caller_sleeps.store(false, Ordering::SeqCst);
        }
    }
}

/// A slice whose parts several tasks write at the same time.
pub(super) struct Parts<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: handing a part to another thread is handing over `&mut [T]`; that parts do not overlap is
// what `get` demands.
unsafe impl<T: Send> Sync for Parts<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<T> {}

impl<T> Parts<T> {
    /// The slice must not be used otherwise while parts of it are.
    pub(super) fn new(data: &mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len() }
    }

    /// `count` elements from `from` on, or as many as there are.
    ///
    /// # Safety
    /// No two parts that overlap are in use at the same time, and none outlives the slice.
    #[allow(clippy::mut_from_ref, reason = "what it is for; the caller keeps parts apart")]
    pub(super) unsafe fn get(&self, from: usize, count: usize) -> &mut [T] {
        let from = from.min(self.len);
        let count = count.min(self.len - from);
        // SAFETY: inside the slice; the caller promises that it is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 1000] {
                let mut counts = vec![0; tasks];
                pool.pieces(&mut counts, 3, |i, piece| {
                    for (j, count) in piece.iter_mut().enumerate() {
                        *count += 3 * i + j + 1;
                    }
                });
                assert_eq!(counts, (1..=tasks).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn sleeping_threads_wake_for_the_next_job() {
        let mut pool = Pool::new(3).unwrap();
        let done = AtomicUsize::new(0);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            pool.each(6, |_| {
                // Long enough that the caller sleeps, too.
                thread::sleep(std::time::Duration::from_millis(5));
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(done.into_inner(), 18);
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        for bad in [0, 5, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.each(100, |i| assert!(i != bad, "task {i}"));
            }));
            let message = caught.unwrap_err();
            assert_eq!(message.downcast_ref::<String>().unwrap(), &format!("task {bad}"));
        }
        let sum = AtomicUsize::new(0);
        pool.each(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
