//! What reading and writing a vocabulary share: the keys of `tokenizer.ggml`, the ways to cut text into words, and the
//! tokens that begin and end a text.

use super::metadata::Metadata;
use crate::Result;

pub(crate) const MODEL_KEY: &str = "tokenizer.ggml.model";
pub(crate) const PRE_KEY: &str = "tokenizer.ggml.pre";
pub(crate) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
pub(crate) const TYPES_KEY: &str = "tokenizer.ggml.token_type";
pub(crate) const MERGES_KEY: &str = "tokenizer.ggml.merges";
pub(crate) const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
/// The ends of a text, of a turn, and of a message that a tool will answer.
pub(crate) const END_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
pub(crate) const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";
pub(crate) const ADD_EOS_KEY: &str = "tokenizer.ggml.add_eos_token";
pub(crate) const CHAT_TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// The numbers of `tokenizer.ggml.token_type`.
pub(crate) const NORMAL: i64 = 1;
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;
pub(crate) const UNUSED: i64 = 5;

/// A way to cut text into words before merging.
#[derive(Debug, PartialEq)]
pub(crate) struct PreTokenizer {
    /// The names in `tokenizer.ggml.pre`, the one that is written first.
    pub(crate) names: &'static [&'static str],
    /// The regular expression; GPT-2's is built into the tokenizers library.
    pub(crate) split: Option<&'static str>,
    /// A word that is a token is never merged from smaller ones.
    pub(crate) ignore_merges: bool,
    /// Whether texts begin with the beginning-of-text token when the file does not say.
    pub(crate) adds_bos: bool,
    /// Text is brought into Unicode's composed form first.
    pub(crate) composes: bool,
}

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Those that are read and written.
///
/// Sources: the `tokenizer.json` files of the models they are named after; llama.cpp `src/llama-vocab.cpp`.
pub(crate) const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Some(LLAMA3_SPLIT),
        ignore_merges: true,
        adds_bos: true,
        composes: false,
    },
    PreTokenizer {
        names: &["smaug-bpe"],
        split: Some(LLAMA3_SPLIT),
        ignore_merges: false,
        adds_bos: false,
        composes: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: false,
        adds_bos: false,
        composes: true,
    },
    PreTokenizer {
        names: &["gpt-4o", "kanana2", "llama4"],
        split: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: false,
        adds_bos: false,
        composes: false,
    },
    PreTokenizer { names: &["gpt-2"], split: None, ignore_merges: false, adds_bos: false, composes: false },
];

/// The token that begins a text, and those that end an answer, each once.
pub(crate) fn end_tokens(metadata: Metadata<'_>) -> Result<(Option<u64>, Vec<u64>)> {
    let mut ends = Vec::new();
    for key in END_KEYS {
        ends.extend(metadata.integer(key)?.filter(|id| !ends.contains(id)));
    }
    Ok((metadata.integer(BOS_KEY)?, ends))
}
