use kanana_kernels::KernelError;
use kanana_model::ModelError;
use kanana_tensor::TensorError;

/// The result of an engine call.
pub type Result<T> = std::result::Result<T, EngineError>;

/// A request or a setting that cannot be served, or a failure of the machine below.
///
/// What goes wrong with one sequence while it runs is not here: it is that sequence's
/// [`FinishReason::Error`](crate::FinishReason::Error), and the others go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A field of [`EngineOptions`](crate::EngineOptions) or [`SamplingParams`](crate::SamplingParams) is out of range.
    #[error("{field} is {got}, but must be {expected}")]
    Parameter {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        expected: String,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// No position is left for what was asked.
    #[error(
        "the prompt has {prompt} tokens and at least {generated} must follow, but the context holds {context}"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that must fit behind it: 1, or 0 when a prompt is only scored.
        generated: usize,
        /// Tokens the context holds.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error(
        "{field} names token {token}, but the model's vocabulary has {vocab_size} tokens, counted from 0"
    )]
    TokenOutOfRange {
        /// Where the id stands: `prompt`, `logit_bias`, `stop_token_ids`, `specials` or `eos_token_ids`.
        field: &'static str,
        /// The id.
        token: u32,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The KV cache could not hold the sequence even if it were alone.
    #[error(
        "the request may grow to {needed} blocks of the KV cache, but there are {num_blocks}, of {block_size} tokens \
         each"
    )]
    KvMemory {
        /// Blocks at full length.
        needed: usize,
        /// Blocks there are.
        num_blocks: usize,
        /// Tokens in a block.
        block_size: usize,
    },
    /// The draft model counts other tokens than the model.
    #[error("the draft model's vocabulary has {draft} tokens, but the model's has {target}")]
    DraftVocabulary {
        /// The draft model's vocabulary.
        draft: usize,
        /// The model's vocabulary.
        target: usize,
    },
    /// A grammar that cannot be followed.
    #[error("{field} is refused: {reason}")]
    Grammar {
        /// Which kind of grammar: `json_schema`, `json_object`, `regex`, `choice` or `lark`.
        field: &'static str,
        /// What is wrong with it, or too much.
        reason: String,
    },
    /// Two models that are compared count other tokens.
    #[error("the first model's vocabulary has {first} tokens, the second's {second}")]
    Vocabularies {
        /// Of the first model.
        first: usize,
        /// Of the second.
        second: usize,
    },
    /// A given token has no finite log-probability.
    #[error("the log-probability of token {position} of a window is not finite")]
    NonFiniteScore {
        /// Its place in the window, from 0.
        position: usize,
    },
    /// The forward pass failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A result could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl EngineError {
    /// What the user can do about it, where that is more than the message already says.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::EmptyPrompt => "give at least one token, such as the one that begins a text",
            Self::PromptTooLong { .. } => "shorten the prompt, or raise the context if the model allows more",
            Self::TokenOutOfRange { .. } => "token ids of another tokenizer mean nothing to this model",
            Self::KvMemory { .. } => "shorten the prompt, lower max_tokens, or give the KV cache more memory",
            Self::DraftVocabulary { .. } => {
                "a draft model must have the model's tokenizer: take a smaller member of the same family"
            }
            Self::Grammar { .. } => {
                "change what the reason names, or ask for json_object and check the answer"
            }
            Self::Vocabularies { .. } => "compare models with the same tokenizer",
            Self::NonFiniteScore { .. } => {
                "the weights hold numbers that are not finite: download them again"
            }
            Self::Model(error) => return error.hint(),
            Self::Parameter { .. } | Self::Kernel(_) | Self::Tensor(_) => return None,
        };
        Some(hint.to_owned())
    }
}
