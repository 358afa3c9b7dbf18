//! generation_config.json: how the authors suggest to sample. Only suggestions, so a key that is not honoured is
//! reported, not refused.

use std::io::ErrorKind;
use std::path::Path;

use super::json::Fields;
use super::validate::limits;
use crate::{ModelError, Result};

/// Keys that say nothing about sampling.
const IRRELEVANT: &[&str] = &[
    "_commit_hash",
    "_from_model_config",
    "bos_token_id",
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
];

/// What generation_config.json suggests; `None` where it is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// `false`: greedy, whatever the temperature says.
    pub do_sample: Option<bool>,
    /// Divides the logits; 0 means greedy.
    pub temperature: Option<f64>,
    /// Most likely tokens that are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Probability mass that is kept.
    pub top_p: Option<f64>,
    /// Smallest probability that is kept, relative to the largest.
    pub min_p: Option<f64>,
    /// Divides or multiplies the logits of tokens that were seen.
    pub repetition_penalty: Option<f64>,
    /// Most tokens of an answer.
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and answer together.
    pub max_length: Option<usize>,
    /// The tokens that end an answer; they take the place of those in config.json.
    pub eos_token_ids: Option<Vec<u32>>,
    /// Keys with a value that nothing here acts on, for a warning.
    pub not_honoured: Vec<String>,
}

impl GenerationDefaults {
    /// Reads the text of a generation_config.json; `file` is what messages call it.
    ///
    /// Errors: a known key out of range or of the wrong type.
    pub fn from_json_str(text: &str, file: &str) -> Result<Self> {
        let mut fields = Fields::parse(text, file)?;
        let eos_token_ids = fields.token_ids_or("eos_token_id", None)?;
        let top_k = match fields.take("top_k") {
            Some(zero) if zero.as_u64() == Some(0) => Some(0),
            Some(value) => Some(fields.as_size("top_k", &value, limits::TOKENS)?),
            None => None,
        };
        Ok(Self {
            do_sample: fields.flag("do_sample")?,
            temperature: fields.number_in("temperature", 0.0..=100.0)?,
            top_k,
            top_p: fields.number_in("top_p", 0.0..=1.0)?,
            min_p: fields.number_in("min_p", 0.0..=1.0)?,
            repetition_penalty: fields.number_in("repetition_penalty", 1e-3..=1e3)?,
            max_new_tokens: fields.size("max_new_tokens", limits::TOKENS)?,
            max_length: fields.size("max_length", limits::TOKENS)?,
            eos_token_ids: Some(eos_token_ids).filter(|ids| !ids.is_empty()),
            not_honoured: fields
                .rest()
                .into_iter()
                .filter(|(key, value)| !value.is_null() && !IRRELEVANT.contains(&key.as_str()))
                .map(|(key, _)| key)
                .collect(),
        })
    }

    /// Reads generation_config.json of a checkpoint folder; a folder without one suggests nothing.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::from_json_str(&text, &path.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ModelError::Read { path, source }),
        }
    }
}
