use kanana_tensor::{DType, TensorError};

use crate::Format;

/// The result of an op.
pub type Result<T> = std::result::Result<T, KernelError>;

/// A broken invariant of an op's arguments, or a failure of the machine.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// An argument has the wrong shape.
    #[error("{op}: {argument} has shape {got:?}, expected {expected}")]
    Shape {
        /// The op.
        op: &'static str,
        /// Which argument.
        argument: &'static str,
        /// What the contract says.
        expected: String,
        /// What was given.
        got: Vec<usize>,
    },
    /// An argument has a dtype the op does not take.
    #[error("{op}: {argument} is {got}, expected {expected}")]
    DType {
        /// The op.
        op: &'static str,
        /// Which argument.
        argument: &'static str,
        /// The dtypes the contract allows.
        expected: &'static str,
        /// What was given.
        got: DType,
    },
    /// An index points outside of what it indexes.
    #[error("{op}: index {index} is out of range, there are {limit}")]
    Index {
        /// The op.
        op: &'static str,
        /// The offending index.
        index: usize,
        /// How many there are.
        limit: usize,
    },
    /// The environment asks for an instruction set that this processor lacks, or that there is not.
    #[error("{variable} is {got:?}, but this processor has {available}")]
    InstructionSet {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        got: String,
        /// The sets there are.
        available: String,
    },
    /// A weight was packed by another implementation of the vocabulary.
    #[error("{op}: the weight was laid out for another device; pack it with the kernels that use it")]
    ForeignWeight {
        /// The op.
        op: &'static str,
    },
    /// Bytes of codes were promised for a format that has none.
    #[error("{op}: {format} is not quantised, expected q8 or q4")]
    NotQuantised {
        /// The op.
        op: &'static str,
        /// What was given.
        format: Format,
    },
    /// A pass is recorded that has no gradient.
    #[error("{op} has no gradient: {why}")]
    NotDifferentiable {
        /// The op.
        op: &'static str,
        /// What is in the way.
        why: &'static str,
    },
    /// The storage of a tensor was not as the op needs it.
    #[error("{op}: {source}")]
    Tensor {
        /// The op.
        op: &'static str,
        /// What was wrong.
        source: TensorError,
    },
}

impl From<TensorError> for KernelError {
    fn from(source: TensorError) -> Self {
        KernelError::Tensor { op: "tensor", source }
    }
}
