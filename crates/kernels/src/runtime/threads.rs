//! A pool whose workers spin for a moment before they sleep: a decode step has hundreds of short parallel regions,
//! and waking a sleeping thread costs more than most of them.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Spins before a waiting thread sleeps: some 50 µs.
const SPINS: usize = 1 << 10;

type Body = *const (dyn Fn(usize) + Sync);

struct Job {
    body: Body,
    tasks: usize,
}

struct Shared {
    /// Counts jobs; a worker runs when it differs from the last one it saw.
    generation: AtomicUsize,
    /// Written by the caller between jobs, read by the workers during one.
    job: UnsafeCell<Option<Job>>,
    next_task: AtomicUsize,
    busy_workers: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only while no worker is busy (the caller holds `Threads::turn` and has seen
// `busy_workers == 0`), and read only by busy workers after the acquire load of `generation`.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only dereferenced while the caller that owns the closure waits in `run`.
unsafe impl Send for Shared {}

/// A fixed set of threads that run the tasks of one job at a time; the caller is one of them.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl Threads {
    /// `count` threads in all, the caller's included.
    pub(crate) fn new(count: usize) -> Self {
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next_task: AtomicUsize::new(0),
            busy_workers: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..count.max(1))
            .filter_map(|i| {
                let shared = shared.clone();
                // A machine that refuses another thread computes with those it has.
                std::thread::Builder::new().name(format!("kernels-{i}")).spawn(move || work(&shared)).ok()
            })
            .collect();
        Threads { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads there are.
    pub(crate) fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(0)`, …, `body(tasks - 1)`, each once, on any thread, and returns when all are done.
    pub(crate) fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(body);
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: the lifetime is erased, but every worker has left the job before this function returns, also when
        // `body` panics: the panic is caught until they have.
        let erased: Body = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Body>(body) };
        // SAFETY: no worker is busy (end of the last `run`) and `turn` keeps other callers out.
        unsafe { *shared.job.get() = Some(Job { body: erased, tasks }) };
        shared.next_task.store(0, Ordering::Relaxed);
        shared.busy_workers.store(self.workers.len(), Ordering::Relaxed);
        shared.generation.fetch_add(1, Ordering::SeqCst);
        if *lock(&shared.sleepers) > 0 {
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| take_tasks(shared, tasks, body)));
        let mut spins = 0;
        while shared.busy_workers.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        // Taken down in any case: the next job did not panic.
        let worker_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!worker_panicked, "a kernel panicked on a worker thread: this is a bug");
    }

    /// Calls `body(i, chunk)` for consecutive chunks of `chunk_len` elements of `data`, the last maybe shorter.
    pub(crate) fn chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let len = data.len();
        let shared = SharedMut::new(data);
        self.run(len.div_ceil(chunk_len.max(1)), &|i| {
            let start = i * chunk_len;
            // SAFETY: chunks do not overlap and each task runs once.
            body(i, unsafe { shared.range(start, chunk_len.min(len - start)) });
        });
    }

    /// Calls `body(row, chunk)` for every row of `row_len` elements, several rows to a task.
    pub(crate) fn rows_mut<T: Send>(
        &self,
        data: &mut [T],
        row_len: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if data.is_empty() {
            return;
        }
        let rows = data.len() / row_len;
        // Enough work in a task to pay for claiming it, enough tasks for all threads.
        let rows_per_task = (8192 / row_len).clamp(1, rows.div_ceil(self.count()));
        self.chunks_mut(data, rows_per_task * row_len, |task, chunk| {
            for (i, row) in chunk.chunks_exact_mut(row_len).enumerate() {
                body(task * rows_per_task + i, row);
            }
        });
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        {
            let _sleepers = lock(&self.shared.sleepers);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so joining cannot fail in a way that matters here.
            let _ = worker.join();
        }
    }
}

fn take_tasks(shared: &Shared, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
    loop {
        let task = shared.next_task.fetch_add(1, Ordering::Relaxed);
        if task >= tasks {
            return;
        }
        body(task);
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        seen = wait_for_job(shared, seen);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: this worker is counted in `busy_workers`, so the job is not written until it leaves.
        let Some(Job { body, tasks }) = (unsafe { &*shared.job.get() }) else { return };
        // SAFETY: the caller waits in `run` for this worker, so the closure is alive.
        let body = unsafe { &**body };
        if catch_unwind(AssertUnwindSafe(|| take_tasks(shared, *tasks, body))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.busy_workers.fetch_sub(1, Ordering::Release);
    }
}

fn wait_for_job(shared: &Shared, seen: usize) -> usize {
    for _ in 0..SPINS {
        let generation = shared.generation.load(Ordering::Acquire);
        if generation != seen {
            return generation;
        }
        std::hint::spin_loop();
    }
    let mut sleepers = lock(&shared.sleepers);
    *sleepers += 1;
    loop {
        let generation = shared.generation.load(Ordering::SeqCst);
        if generation != seen {
            *sleepers -= 1;
            return generation;
        }
        sleepers = shared.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice that several tasks write in disjoint places.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the places that tasks write are disjoint by the contract of `range`.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        SharedMut { start: data.as_mut_ptr(), len: data.len(), owner: std::marker::PhantomData }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No two ranges that are alive at once may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "a task writes outside of its output: this is a bug");
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise, alive by `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count);
            for tasks in [0, 1, 2, 3, 100, 1000] {
                let mut hits = vec![0u32; tasks];
                threads.chunks_mut(&mut hits, 1, |i, hit| hit[0] += 1 + i as u32);
                assert!(hits.iter().enumerate().all(|(i, &hit)| hit == 1 + i as u32));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let threads = Threads::new(3);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let sum = AtomicUsize::new(0);
            threads.run(64, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 64 * 63 / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let threads = Threads::new(2);
        let both_started = std::sync::Barrier::new(2);
        let panics_everywhere = |_| {
            both_started.wait();
            panic!("on every thread");
        };
        for _ in 0..3 {
            let one = catch_unwind(AssertUnwindSafe(|| threads.run(8, &|i| assert!(i != 5))));
            assert!(one.is_err());
            threads.run(8, &|_| ());
            let all = catch_unwind(AssertUnwindSafe(|| threads.run(2, &panics_everywhere)));
            assert!(all.is_err());
            threads.run(8, &|_| ());
        }
    }

    #[test]
    fn several_callers_take_turns() {
        let threads = Threads::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let sum = AtomicUsize::new(0);
                        threads.run(10, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }
}
