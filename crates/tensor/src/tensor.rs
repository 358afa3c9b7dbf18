use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::storage::{Owned, Storage};
use crate::{DType, Device, Element, Result, SharedBytes, TensorError};

/// A contiguous row-major tensor. Cloning shares the storage.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    device: Device,
    offset: usize, // bytes into the storage
    storage: Storage,
}

/// Which bytes a tensor stands for: equal for handles that share them, under any shape, while one of them lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    storage: usize,
    offset: usize,
    bytes: usize,
}

impl Tensor {
    pub(crate) fn from_storage(shape: &[usize], dtype: DType, device: Device, storage: Storage) -> Self {
        Tensor { dtype, shape: shape.to_vec(), device, offset: 0, storage }
    }

    /// A tensor of zeros in host memory, 64-byte aligned.
    pub fn zeros(shape: &[usize], dtype: DType) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Self::from_storage(shape, dtype, Device::Cpu, Storage::Owned(Arc::new(Owned::zeroed(bytes))))
    }

    /// A host tensor that holds a copy of `data`.
    ///
    /// Errors: [`TensorError::Length`] when `data` does not fill `shape`.
    pub fn from_slice<E: Element>(shape: &[usize], data: &[E]) -> Result<Self> {
        check_length(shape, data.len())?;
        let mut tensor = Self::zeros(shape, E::DTYPE);
        tensor.as_mut_slice()?.copy_from_slice(data);
        Ok(tensor)
    }

    /// A host tensor over bytes that somebody else owns, such as a memory-mapped file, starting at byte `offset`.
    ///
    /// Errors: [`TensorError::Length`] when the bytes end too early (counted in elements).
    pub fn from_shared(shape: &[usize], dtype: DType, bytes: SharedBytes, offset: usize) -> Result<Self> {
        let elements = shape.iter().product::<usize>();
        let available = (*bytes).as_ref().len().saturating_sub(offset) / dtype.size();
        if available < elements {
            return Err(TensorError::Length { shape: shape.to_vec(), expected: elements, got: available });
        }
        let mut tensor = Self::from_storage(shape, dtype, Device::Cpu, Storage::Shared(bytes));
        tensor.offset = offset;
        Ok(tensor)
    }

    /// A tensor whose bytes only the implementation of the kernels that made `memory` can reach.
    pub fn on_device(
        shape: &[usize],
        dtype: DType,
        device: Device,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self::from_storage(shape, dtype, device, Storage::OnDevice(memory))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of every dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the bytes are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// Extent of the first dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row: the product of all dimensions but the first.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// What tells this tensor from others.
    pub fn identity(&self) -> Identity {
        let storage = match &self.storage {
            Storage::Owned(owned) => Arc::as_ptr(owned).addr(),
            Storage::Shared(bytes) => Arc::as_ptr(bytes).cast::<u8>().addr(),
            Storage::OnDevice(memory) => Arc::as_ptr(memory).cast::<u8>().addr(),
        };
        Identity { storage, offset: self.offset, bytes: self.bytes() }
    }

    /// The same elements under another shape.
    ///
    /// Errors: [`TensorError::Length`] when the element counts differ.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        check_length(shape, self.len())?;
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// A view of some rows.
    ///
    /// Errors: [`TensorError::Rows`] when the range leaves the tensor.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.rows() {
            return Err(TensorError::Rows { start: range.start, end: range.end, rows: self.rows() });
        }
        let mut view = self.clone();
        view.offset += range.start * self.row_len() * self.dtype.size();
        // A scalar is one row, and a range of rows is a dimension.
        view.shape = [&[range.len()], self.shape.get(1..).unwrap_or_default()].concat();
        Ok(view)
    }

    /// The raw bytes in host memory.
    ///
    /// Errors: [`TensorError::NotOnHost`].
    pub fn as_bytes(&self) -> Result<&[u8]> {
        let all: &[u8] = match &self.storage {
            Storage::Owned(owned) => owned.lines.as_bytes(),
            Storage::Shared(bytes) => (**bytes).as_ref(),
            Storage::OnDevice(_) => return Err(TensorError::NotOnHost(self.device)),
        };
        Ok(&all[self.offset..self.offset + self.bytes()])
    }

    /// The elements in host memory.
    ///
    /// Errors: [`TensorError::DType`], [`TensorError::NotOnHost`], [`TensorError::Alignment`].
    pub fn as_slice<E: Element>(&self) -> Result<&[E]> {
        self.check_dtype::<E>()?;
        bytemuck::try_cast_slice(self.as_bytes()?).map_err(|_| TensorError::Alignment(self.dtype))
    }

    /// The elements in host memory, for writing.
    ///
    /// Errors: [`TensorError::DType`], [`TensorError::NotOnHost`], and [`TensorError::NotUnique`] unless this is the
    /// only handle on owned storage.
    pub fn as_mut_slice<E: Element>(&mut self) -> Result<&mut [E]> {
        self.check_dtype::<E>()?;
        let (start, len) = (self.offset, self.bytes());
        match &mut self.storage {
            Storage::Owned(owned) => {
                let owned = Arc::get_mut(owned).ok_or(TensorError::NotUnique)?;
                let all = owned.lines.as_bytes_mut();
                bytemuck::try_cast_slice_mut(&mut all[start..start + len])
                    .map_err(|_| TensorError::Alignment(self.dtype))
            }
            Storage::Shared(_) => Err(TensorError::NotUnique),
            Storage::OnDevice(_) => Err(TensorError::NotOnHost(self.device)),
        }
    }

    /// The device memory given to [`Tensor::on_device`], with the view's offset in bytes.
    pub fn device_memory(&self) -> Option<(&Arc<dyn Any + Send + Sync>, usize)> {
        match &self.storage {
            Storage::OnDevice(memory) => Some((memory, self.offset)),
            _ => None,
        }
    }

    /// The elements widened to f32, in order, whatever the floating dtype.
    ///
    /// Errors: [`TensorError::DType`] for integers, [`TensorError::NotOnHost`], [`TensorError::Alignment`].
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            DType::BF16 => self.as_slice::<half::bf16>()?.iter().map(|x| x.to_f32()).collect(),
            DType::F16 => self.as_slice::<half::f16>()?.iter().map(|x| x.to_f32()).collect(),
            _ => self.as_slice::<f32>()?.to_vec(),
        })
    }

    fn check_dtype<E: Element>(&self) -> Result<()> {
        match self.dtype == E::DTYPE {
            true => Ok(()),
            false => Err(TensorError::DType { expected: E::DTYPE, got: self.dtype }),
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?} on {})", self.dtype, self.shape, self.device)
    }
}

fn check_length(shape: &[usize], got: usize) -> Result<()> {
    let expected = shape.iter().product();
    match expected == got {
        true => Ok(()),
        false => Err(TensorError::Length { shape: shape.to_vec(), expected, got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_reshape_are_views() {
        let t = Tensor::from_slice(&[3, 2], &[0f32, 1., 2., 3., 4., 5.]).unwrap();
        assert_eq!(t.slice_rows(1..3).unwrap().as_slice::<f32>().unwrap(), &[2., 3., 4., 5.]);
        let reshaped = t.reshape(&[2, 3]).unwrap().slice_rows(1..2).unwrap();
        assert_eq!(reshaped.as_slice::<f32>().unwrap(), &[3., 4., 5.]);
        assert!(t.slice_rows(2..4).is_err());
        assert!(t.reshape(&[4]).is_err());
        let scalar = Tensor::from_slice(&[], &[7f32]).unwrap().slice_rows(0..1).unwrap();
        assert_eq!((scalar.shape(), scalar.as_slice::<f32>().unwrap()), (&[1][..], &[7f32][..]));
    }

    #[test]
    fn writing_needs_the_only_handle() {
        let mut t = Tensor::zeros(&[2], DType::F32);
        t.as_mut_slice::<f32>().unwrap()[0] = 1.0;
        let other = t.clone();
        assert_eq!(t.as_mut_slice::<f32>(), Err(TensorError::NotUnique));
        drop(other);
        assert!(t.as_mut_slice::<f32>().is_ok());
        assert!(t.as_slice::<u32>().is_err());
    }

    #[test]
    fn identity_is_that_of_the_bytes() {
        let t = Tensor::zeros(&[4, 2], DType::F32);
        assert_eq!(t.identity(), t.reshape(&[8]).unwrap().identity());
        assert_ne!(t.identity(), t.slice_rows(0..2).unwrap().identity());
        assert_ne!(t.slice_rows(2..4).unwrap().identity(), t.slice_rows(0..2).unwrap().identity());
        assert_ne!(t.identity(), Tensor::zeros(&[4, 2], DType::F32).identity());
    }

    #[test]
    fn shared_bytes_are_checked() {
        let bytes: SharedBytes = Arc::new(vec![0u8; 10]);
        assert!(Tensor::from_shared(&[2], DType::F32, bytes.clone(), 0).is_ok());
        assert!(Tensor::from_shared(&[2], DType::F32, bytes, 4).is_err());
    }
}
