use crate::{DType, Device};

/// The result of an operation on tensors.
pub type Result<T> = std::result::Result<T, TensorError>;

/// A broken invariant of a tensor.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum TensorError {
    /// The data do not fill the shape.
    #[error("a tensor of shape {shape:?} holds {expected} elements, but {got} were given")]
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// Its element count.
        expected: usize,
        /// The element count given.
        got: usize,
    },
    /// The elements are of another type.
    #[error("expected a {expected} tensor, got {got}")]
    DType {
        /// The dtype the caller reads.
        expected: DType,
        /// The dtype of the tensor.
        got: DType,
    },
    /// The row range leaves the tensor.
    #[error("rows {start}..{end} of a tensor with {rows} rows")]
    Rows {
        /// First row.
        start: usize,
        /// One past the last row.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
    /// The bytes are not on this machine's host memory.
    #[error("the tensor is on {0}, not in host memory")]
    NotOnHost(Device),
    /// Writing needs the only handle on the storage, and storage that may be written.
    #[error("the tensor's storage is shared or read-only and cannot be written in place")]
    NotUnique,
    /// The bytes do not start at a multiple of the element size.
    #[error("the data of a {0} tensor are not aligned to its element size")]
    Alignment(DType),
}
