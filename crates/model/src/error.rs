use std::path::PathBuf;

use kanana_kernels::{Format, KernelError};
use kanana_tensor::TensorError;

/// The result of an operation on a model.
pub type Result<T> = std::result::Result<T, ModelError>;

/// A broken invariant of a model's description, weights or inputs.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the checkpoint could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not the JSON object it should be, or gives a key twice.
    #[error("{file}: not a valid JSON object: {source}")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field has a value this program cannot compute with, or that contradicts another field.
    #[error("{file}: `{field}` is {got}, expected {expected}")]
    Field {
        /// The file.
        file: String,
        /// The field, dotted when it lies inside another: `rope_scaling.factor`.
        field: String,
        /// The value, as JSON, shortened.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// A field that must be stated is absent.
    #[error("{file}: `{field}` is missing: {why}")]
    MissingField {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Why it cannot be guessed.
        why: String,
    },
    /// A field that nothing here understands: it might change the mathematics.
    #[error("{file}: `{field}` = {got} is not understood, and it might change the mathematics")]
    UnknownField {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// The value, as JSON, shortened.
        got: String,
    },
    /// No preset has this name.
    #[error("there is no preset named {name:?}; there are {known}")]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// The names there are, comma separated.
        known: String,
    },
    /// The checkpoint lacks a tensor the configuration calls for.
    #[error("the tensor `{tensor}` is missing from the checkpoint")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("the tensor `{tensor}` has shape {got:?}, but config.json calls for {expected:?}")]
    ShapeMismatch {
        /// Its name.
        tensor: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        got: Vec<usize>,
    },
    /// A weight is not made of floating-point numbers.
    #[error("the tensor `{tensor}` is {got}; weights are read from f32, f16 or bf16")]
    WeightDType {
        /// Its name.
        tensor: String,
        /// Its dtype.
        got: kanana_tensor::DType,
    },
    /// A matrix is quantised otherwise than the configuration says.
    #[error("{}: the tensor `{tensor}` is stored as {got}, expected {expected}", file.display())]
    StoredFormat {
        /// Its name.
        tensor: String,
        /// The file.
        file: PathBuf,
        /// The formats that would be read.
        expected: String,
        /// The format or dtype it has.
        got: String,
    },
    /// Quantising what is quantised would lose twice.
    #[error("the tensor `{tensor}` is stored as {from} and was asked for as {to}")]
    Requantised {
        /// Its name.
        tensor: String,
        /// The format it has.
        from: Format,
        /// The format asked for.
        to: Format,
    },
    /// A packed matrix has other bytes than its shape calls for.
    #[error("{}: the tensor `{tensor}` ({matrix}) has bytes of shape {got:?}, expected {expected:?}", file.display())]
    PackedShape {
        /// Its name.
        tensor: String,
        /// The file.
        file: PathBuf,
        /// What it stands for.
        matrix: String,
        /// Panels, and the bytes of one.
        expected: [usize; 2],
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] kanana_checkpoint::CheckpointError),
    /// An op refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A tensor was not as it is needed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl ModelError {
    /// What the user can do about it, where that is more than the message already says.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("a model folder holds config.json, *.safetensors and tokenizer.json".to_owned())
            }
            Self::Json { file, .. } => Some(format!("download {file} again, or correct it in an editor")),
            Self::UnknownField { field, file, .. } => Some(format!(
                "if `{field}` changes nothing in the forward pass, delete it from {file}; otherwise this model \
                 cannot be run correctly yet"
            )),
            Self::MissingTensor { .. } | Self::ShapeMismatch { .. } => Some(
                "`kanana inspect` lists every missing, extra and misshapen tensor; weights and config.json may come \
                 from different models"
                    .to_owned(),
            ),
            Self::Requantised { from, .. } => {
                Some(format!("load it in {from}, or load the model that it was quantised from"))
            }
            Self::StoredFormat { .. } | Self::PackedShape { .. } => Some(
                "config.json and the weights may come from different models, or from another version of this program: \
                 quantise the original again with `kanana quantize`"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
