use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::{LINE, Lines, Owned, Storage};
use crate::{DType, Device, Tensor};

/// Uses of the pool (tensors made and dropped) after which free memory that served none of them goes back to the
/// system: about three forward passes of 32 layers.
const KEPT_FOR: u64 = 4096;

/// Host memory that is used again: a dropped tensor's storage serves the next tensor of about its size.
///
/// A forward pass makes the same few activation shapes at every layer; without this each of them is a fresh mapping
/// whose pages fault in one by one. Sizes are rounded up to powers of two, so that batches of every length share a few
/// sizes (what a tensor does not fill is not touched, and costs nothing), and what batches of late did not need is freed.
#[derive(Default)]
pub struct Pool {
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// By size in lines, then the last one given back first, because it is the likeliest to be in a cache.
    memory: BTreeMap<(usize, Reverse<u64>), Lines>,
    /// Counts tensors made and dropped.
    clock: u64,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A tensor whose contents are unspecified: the caller overwrites every element.
    pub fn tensor(self: &Arc<Self>, shape: &[usize], dtype: DType) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let count = bytes.div_ceil(LINE).next_power_of_two();
        let reused = self.lock().take(count);
        let lines = reused.unwrap_or_else(|| Lines::zeroed(count));
        let owned = Owned { lines, home: Arc::downgrade(self) };
        Tensor::from_storage(shape, dtype, Device::Cpu, Storage::Owned(Arc::new(owned)))
    }

    pub(crate) fn give_back(&self, lines: Lines) {
        self.lock().put(lines);
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        // The map is valid between any two of its operations, so a panicking holder leaves nothing half done.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, count: usize) -> Option<Lines> {
        self.clock += 1;
        let of_that_size = (count, Reverse(u64::MAX))..=(count, Reverse(0));
        let (&key, _) = self.memory.range(of_that_size).next()?;
        self.memory.remove(&key)
    }

    fn put(&mut self, lines: Lines) {
        self.clock += 1;
        self.memory.insert((lines.count(), Reverse(self.clock)), lines);
        if self.clock.is_multiple_of(KEPT_FOR / 4) {
            let clock = self.clock;
            self.memory.retain(|(_, Reverse(given_back)), _| clock - *given_back < KEPT_FOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_bytes(pool: &Pool) -> usize {
        pool.lock().memory.values().map(|lines| lines.count() * LINE).sum()
    }

    /// A layer's activations for some tokens, dropped again: how many bytes they were.
    fn pass(pool: &Arc<Pool>, tokens: usize) -> usize {
        let tensors = [64, 320, 320, 320].map(|width| pool.tensor(&[tokens, width], DType::F32));
        tensors.iter().map(Tensor::bytes).sum()
    }

    #[test]
    fn storage_is_used_again() {
        let pool = Pool::new();
        let address = |tensor: &Tensor| tensor.as_slice::<f32>().unwrap().as_ptr();
        let first = pool.tensor(&[100, 7], DType::F32);
        let used = address(&first);
        drop(first);
        let second = pool.tensor(&[7, 80], DType::F32);
        assert_eq!((address(&second), second.len()), (used, 560));
        let third = pool.tensor(&[7, 100], DType::F32);
        assert_ne!(address(&third), used);
        drop(second);
        let too_small_for_it = pool.tensor(&[7, 20], DType::F32);
        assert_ne!(address(&too_small_for_it), used);
    }

    #[test]
    fn a_repeated_pass_takes_no_more_memory() {
        let pool = Pool::new();
        pass(&pool, 100);
        let after_one = free_bytes(&pool);
        (0..5000).for_each(|_| assert!(pass(&pool, 100) <= after_one));
        assert_eq!(free_bytes(&pool), after_one);
    }

    #[test]
    fn passes_of_every_length_keep_little_more_than_the_largest() {
        let pool = Pool::new();
        let (mut largest, mut kept) = (0, 0);
        for tokens in 1..500 {
            largest = largest.max(pass(&pool, tokens));
            kept = kept.max(free_bytes(&pool));
        }
        assert!(kept < 4 * largest, "{kept} bytes kept, {largest} ever in use");
    }

    #[test]
    fn memory_that_is_no_longer_needed_is_freed() {
        let pool = Pool::new();
        pass(&pool, 500);
        let small = (0..5000).map(|_| pass(&pool, 1)).max().unwrap();
        assert!(free_bytes(&pool) < 3 * small, "{} bytes kept", free_bytes(&pool));
    }
}
