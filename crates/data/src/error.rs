use std::path::{Path, PathBuf};

use kanana_tokenizer::TokenizerError;

/// The result of an operation on data.
pub type Result<T> = std::result::Result<T, DataError>;

/// A broken invariant of a corpus, a shard or a mixture.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file whose form its name does not tell.
    #[error("{path}: expected .jsonl, .json or .txt, perhaps with .zst or .gz behind, or .parquet")]
    UnknownForm {
        /// The file.
        path: PathBuf,
    },
    /// A file that ends in `.parquet` and is none.
    #[error("{path}: expected a whole Parquet file: {problem}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        problem: String,
    },
    /// A row is not what it should be.
    #[error("{path}: row {row}: {problem}")]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: u64,
        /// Expected and got.
        problem: String,
    },
    /// A template of a prompt or an answer cannot be read.
    #[error("template {template:?}: {problem}")]
    Template {
        /// The text.
        template: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A folder is not a whole shard.
    #[error("{path}: {problem}")]
    Shards {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A mixture asks for what its sources do not have.
    #[error("stage {stage:?}: {problem}")]
    Mixture {
        /// The stage.
        stage: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The tokenizer or the chat template refused.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Names the file in an error of the system.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
    let path = path.to_owned();
    move |source| DataError::Io { path, source }
}
