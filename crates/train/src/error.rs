use kanana_kernels::KernelError;
use kanana_model::ModelError;
use kanana_tensor::TensorError;

/// The result of training.
pub type Result<T> = std::result::Result<T, TrainError>;

/// A broken invariant of training, or a failure below it.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A batch from which nothing can be learnt.
    #[error("step {step}: no token of the batch is a target")]
    NoTargets {
        /// The step, from 1.
        step: u64,
    },
    /// An adapter for projections that the model does not have.
    #[error("lora: no projection of the model is called {}", targets.join(" or "))]
    NoTarget {
        /// What was asked for.
        targets: Vec<String>,
    },
    /// A gradient without a parameter.
    #[error("there is no parameter {name}")]
    UnknownParameter {
        /// Its name.
        name: String,
    },
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The storage of a tensor was not as needed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
