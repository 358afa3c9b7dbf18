//! Tensors: a dtype, a shape, a device and shared storage.
//!
//! Contiguous only: a tensor is `shape.product()` elements in row-major order, and the only views are ranges of
//! rows and reshapes. It knows nothing of models, files or arithmetic. Tests: `cargo test -p kanana-tensor`.

mod dtype;
mod error;
mod pool;
mod storage;
mod tensor;

pub use bytemuck::Pod;
pub use dtype::{DType, Element};
pub use error::{Result, TensorError};
pub use half::{bf16, f16};
pub use pool::Pool;
pub use storage::{Device, SharedBytes};
pub use tensor::{Identity, Tensor};
