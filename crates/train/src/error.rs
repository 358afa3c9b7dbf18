use std::path::PathBuf;

use kanana_checkpoint::CheckpointError;
use kanana_data::DataError;
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
    /// A recipe that cannot be followed.
    #[error("{path}: {problem}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// The key, what was expected and got.
        problem: String,
    },
    /// A bias of routers is to be learnt by a model that has none.
    #[error("step.router_bias_rate is {rate}, but {model_type} is no mixture of experts; expected 0")]
    NoRouter {
        /// What the recipe says.
        rate: f32,
        /// Of the model's config.json.
        model_type: &'static str,
    },
    /// A gradient without a parameter.
    #[error("there is no parameter {name}")]
    UnknownParameter {
        /// Its name.
        name: String,
    },
    /// A gradient, or what the optimiser remembers, is not of its parameter's shape, or of another dtype.
    #[error("parameter {parameter}: its {what} should be {expected}, got {got}")]
    Misfit {
        /// The parameter.
        parameter: String,
        /// Its gradient, or the part of the state.
        what: &'static str,
        /// The dtype, and the shape of the parameter.
        expected: String,
        /// What there is.
        got: String,
    },
    /// Too many steps were left out.
    #[error(
        "step {step}: {skipped} steps were left out, for gradients that are not finite or losses that stand out"
    )]
    TooManySkipped {
        /// The step, from 1.
        step: u64,
        /// How many.
        skipped: u64,
    },
    /// Shards have ids that the model does not.
    #[error("{shards}: a vocabulary of {has}, but the model has {model}")]
    Vocabulary {
        /// The folder.
        shards: PathBuf,
        /// Ids there may be.
        has: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// What is measured on would be trained on.
    #[error("stage {stage:?}: {documents} documents of {shards} are in the evaluation texts too")]
    Overlap {
        /// The folder.
        shards: PathBuf,
        /// The stage that reads it.
        stage: String,
        /// How many.
        documents: usize,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The data refused.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint refused.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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
