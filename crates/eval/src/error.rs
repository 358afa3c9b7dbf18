use std::path::{Path, PathBuf};

use kanana_data::DataError;
use kanana_tokenizer::TokenizerError;

/// The result of an operation of an evaluation.
pub type Result<T> = std::result::Result<T, EvalError>;

/// A broken invariant of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Rows cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer or the chat template refused.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The data of a task are not where they were looked for.
    #[error("{task}: expected one of {} in {folder}", expected.join(", "))]
    NoData {
        /// The task.
        task: String,
        /// The folder that was given.
        folder: PathBuf,
        /// The paths that were tried, relative to it.
        expected: Vec<String>,
    },
    /// A row lacks a field, or a field is not what it should be.
    #[error("{path}: row {row}: {problem}")]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: u64,
        /// Expected and got.
        problem: String,
    },
    /// A name that is no task or suite.
    #[error("no task or suite is called {name:?}")]
    UnknownTask {
        /// The name.
        name: String,
    },
    /// A task needs what this run does not have: a judge, a sandbox, log-likelihoods.
    #[error("{task} needs {needs}")]
    Needs {
        /// The task.
        task: String,
        /// What is missing, and the flag that gives it.
        needs: String,
    },
    /// The model, or the server in front of it, refused.
    #[error("{model}: {problem}")]
    Model {
        /// Which.
        model: String,
        /// What happened.
        problem: String,
    },
    /// The sandbox cannot be set up, or a program could not be run in it at all.
    #[error("sandbox: {problem}")]
    Sandbox {
        /// Which part, and what the system says.
        problem: String,
    },
    /// A journal or a report belongs to something else, or is damaged.
    #[error("{path}: {problem}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A regular expression that an answer is read with is none.
    #[error("{pattern:?}: {problem}")]
    Pattern {
        /// As Python would be given it.
        pattern: String,
        /// What the engine says.
        problem: String,
    },
    /// A context is too short for what is to be put into it.
    #[error("{task}: a length of {length} tokens is too short: at least {least} are needed")]
    TooShort {
        /// The task.
        task: String,
        /// The length. Units: tokens.
        length: usize,
        /// The least that would do. Units: tokens.
        least: usize,
    },
    /// The person asked to stop, or everything that was to be shown has been shown.
    #[error("stopped")]
    Stopped,
}

/// Names the file in an error of the system.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> EvalError {
    let path = path.to_owned();
    move |source| EvalError::Io { path, source }
}
