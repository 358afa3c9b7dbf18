use std::path::PathBuf;

/// The result of an operation on text.
pub type Result<T> = std::result::Result<T, TokenizerError>;

/// A broken invariant of a tokenizer file, a template or a conversation.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder holds no tokenizer.
    #[error("{dir}: no tokenizer.json and no tokenizer.model")]
    Missing {
        /// The folder searched.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A text file is not UTF-8.
    #[error("{path}: not UTF-8 (first bad byte at offset {offset})")]
    NotUtf8 {
        /// The file, or a name for other input.
        path: PathBuf,
        /// Bytes before the first bad one.
        offset: usize,
    },
    /// A file is not what its name says.
    #[error("{path}: {field}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field or line at fault.
        field: String,
        /// Expected and got.
        problem: String,
    },
    /// The tokenizer can produce ids that the embedding does not have.
    #[error("the tokenizer has {vocab_size} ids but the model's embedding only {rows} rows")]
    LargerThanEmbedding {
        /// Highest token id plus one.
        vocab_size: usize,
        /// Rows of the embedding (`vocab_size` of config.json).
        rows: usize,
    },
    /// A vocabulary cannot be learnt.
    #[error("training of a tokenizer: {problem}")]
    Training {
        /// What is in the way, and what to do.
        problem: String,
    },
    /// The tokenizers library refused the text.
    #[error("encoding failed: {0}")]
    Encode(String),
    /// The tokenizers library refused the ids.
    #[error("decoding failed: {0}")]
    Decode(String),
    /// Text that should have been plain produced a control token.
    #[error("plain text produced the control token {token:?} (id {id})")]
    ControlFromPlainText {
        /// The control token.
        token: String,
        /// Its id.
        id: u32,
    },
    /// A message is not of the form chat templates read.
    #[error("message: {field}: {problem}")]
    Message {
        /// The field at fault.
        field: String,
        /// Expected and got.
        problem: String,
    },
    /// A tool, or the choice among tools, is not of the form that OpenAI's API has.
    #[error("tools: {field}: {problem}")]
    Tool {
        /// The field at fault.
        field: String,
        /// Expected and got.
        problem: String,
    },
    /// The template does not parse.
    #[error("chat template {name}: syntax error: {problem}")]
    TemplateSyntax {
        /// Where the template came from.
        name: String,
        /// The parser's words, with the line.
        problem: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// The template failed while rendering.
    #[error("chat template {name}: {problem}")]
    TemplateFailed {
        /// Where the template came from.
        name: String,
        /// What failed, with the line.
        problem: String,
    },
    /// The template did more work, or took more time, than any honest template needs.
    #[error("chat template {name}: stopped: {problem}")]
    TemplateLimit {
        /// Where the template came from.
        name: String,
        /// The limit that was hit.
        problem: String,
    },
    /// `tokenizer_config.json` has templates, but none for this request.
    #[error("no chat template named \"default\"; the checkpoint has {names:?}")]
    NoDefaultTemplate {
        /// The names there are.
        names: Vec<String>,
    },
    /// The final message cannot be continued.
    #[error("cannot continue the final message: {problem}")]
    CannotContinue {
        /// Why.
        problem: String,
    },
}

impl TokenizerError {
    /// What to do about it, in one line; `None` where the error already says it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Missing { .. } => {
                "a checkpoint folder needs its tokenizer.json; download it beside the weights (`kanana pull`)"
            }
            Self::NotUtf8 { .. } => "convert the file to UTF-8, for instance with `iconv -f CP949 -t UTF-8`",
            Self::LargerThanEmbedding { .. } => {
                "tokenizer and weights are of different models, or the vocabulary was extended without resizing the \
                 embedding"
            }
            Self::TemplateSyntax { .. } | Self::TemplateFailed { .. } | Self::NoDefaultTemplate { .. } => {
                "give another template with --chat-template FILE"
            }
            Self::TemplateLimit { .. } => {
                "do not trust this checkpoint's template; give another one with --chat-template FILE"
            }
            Self::CannotContinue { .. } => {
                "the conversation must end with a message with text that the template keeps"
            }
            _ => return None,
        })
    }
}

/// Reads a text file.
///
/// Errors: unreadable, not UTF-8 (with the offset).
pub(crate) fn read_text(path: &std::path::Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| TokenizerError::Io { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|error| TokenizerError::NotUtf8 {
        path: path.into(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// Reads a JSON file.
///
/// Errors: as [`read_text`], and not JSON (with line and column).
pub(crate) fn read_json(path: &std::path::Path) -> Result<serde_json::Value> {
    serde_json::from_str(&read_text(path)?).map_err(|error| TokenizerError::Invalid {
        path: path.into(),
        field: format!("line {} column {}", error.line(), error.column()),
        problem: error.to_string(),
    })
}
