use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::storage::{Line, Owned, Storage};
use crate::{DType, Device, Tensor};

/// Host memory that is used again: a dropped tensor's storage serves the next tensor of about its size.
///
/// A forward pass makes the same few activation shapes at every layer; without this each of them is a fresh mapping
/// whose pages fault in one by one.
#[derive(Default)]
pub struct Pool {
    free: Mutex<BTreeMap<usize, Vec<Vec<Line>>>>,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A tensor whose contents are unspecified: the caller overwrites every element.
    pub fn tensor(self: &Arc<Self>, shape: &[usize], dtype: DType) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let lines = size_class(bytes.div_ceil(64));
        let reused = self.lock().get_mut(&lines).and_then(Vec::pop);
        let lines = reused.unwrap_or_else(|| bytemuck::allocation::zeroed_vec(lines));
        let owned = Owned { lines, home: Arc::downgrade(self) };
        Tensor::from_storage(shape, dtype, Device::Cpu, Storage::Owned(Arc::new(owned)))
    }

    pub(crate) fn give_back(&self, lines: Vec<Line>) {
        self.lock().entry(lines.len()).or_default().push(lines);
    }

    /// Frees what is not in use.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Vec<Vec<Line>>>> {
        // The map is valid between any two of its operations, so a panicking holder leaves nothing half done.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rounds up to eight classes per power of two: at most 12.5 % is wasted.
fn size_class(lines: usize) -> usize {
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_used_again() {
        let pool = Pool::new();
        let first = pool.tensor(&[100, 7], DType::F32);
        let address = first.as_slice::<f32>().unwrap().as_ptr();
        drop(first);
        let second = pool.tensor(&[7, 100], DType::F32);
        assert_eq!(second.as_slice::<f32>().unwrap().as_ptr(), address);
        let third = pool.tensor(&[7, 100], DType::F32);
        assert_ne!(third.as_slice::<f32>().unwrap().as_ptr(), address);
    }

    #[test]
    fn size_classes_waste_little() {
        for lines in 1..5000 {
            let class = size_class(lines);
            assert!(class >= lines && class as f64 <= lines as f64 * 1.126 + 1.0, "{lines} -> {class}");
        }
    }
}
