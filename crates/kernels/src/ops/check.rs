//! The checks that contracts are made of. Each op's `mod.rs` names its arguments once, for every implementation.

use kanana_tensor::{DType, Element, Tensor, TensorError};

use crate::{KernelError, Result};

/// Fails unless `tensor` has this shape.
pub(crate) fn shape(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: &[usize],
) -> Result<()> {
    match tensor.shape() == expected {
        true => Ok(()),
        false => Err(shape_error(op, argument, tensor, format!("{expected:?}"))),
    }
}

/// The extents of a tensor of `N` dimensions.
pub(crate) fn dims<const N: usize>(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
) -> Result<[usize; N]> {
    tensor.shape().try_into().map_err(|_| shape_error(op, argument, tensor, format!("{N} dimensions")))
}

pub(crate) fn shape_error(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: String,
) -> KernelError {
    KernelError::Shape { op, argument, expected, got: tensor.shape().to_vec() }
}

/// The elements of a host tensor.
pub(crate) fn slice<'a, E: Element>(op: &'static str, tensor: &'a Tensor) -> Result<&'a [E]> {
    tensor.as_slice::<E>().map_err(|source| KernelError::Tensor { op, source })
}

/// The elements of a host tensor that only this handle reaches.
pub(crate) fn slice_mut<'a, E: Element>(op: &'static str, tensor: &'a mut Tensor) -> Result<&'a mut [E]> {
    tensor.as_mut_slice::<E>().map_err(|source| KernelError::Tensor { op, source })
}

/// The elements of a tensor of indices, all below `limit`.
pub(crate) fn indices<'a>(op: &'static str, tensor: &'a Tensor, limit: usize) -> Result<&'a [u32]> {
    let indices = slice::<u32>(op, tensor)?;
    match indices.iter().find(|&&index| index as usize >= limit) {
        Some(&index) => Err(KernelError::Index { op, index: index as usize, limit }),
        None => Ok(indices),
    }
}

/// Fails unless the dtype is one that numbers are rounded to.
pub(crate) fn storable(op: &'static str, argument: &'static str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::BF16 => Ok(()),
        got => Err(KernelError::DType { op, argument, expected: "f32 or bf16", got }),
    }
}

/// Names the op in an error of the tensor crate.
pub(crate) fn in_op<T>(op: &'static str, result: std::result::Result<T, TensorError>) -> Result<T> {
    result.map_err(|source| KernelError::Tensor { op, source })
}
