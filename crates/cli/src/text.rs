//! A checkpoint's text side: its tokenizer and its chat template.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kanana_checkpoint::gguf::{GgufFile, tokenizer_config_json, tokenizer_json};
use kanana_model::Config;
use kanana_tokenizer::{ChatRequest, ChatTemplate, Message, Tokenizer, TokenizerError};
use serde_json::{Value, json};

use crate::hints::failure;
use crate::load;

/// How a conversation is put to the model.
#[derive(Args, Clone)]
#[command(next_help_heading = "Chat")]
pub struct TemplateArgs {
    /// A system prompt (Kanana's model cards use "You are a helpful AI assistant developed by Kakao.")
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// A JSON list of functions that the model may call
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,

    /// A JSON list of documents, for templates that have a place for them
    #[arg(long, value_name = "FILE")]
    pub documents: Option<PathBuf>,

    /// Use this template instead of the checkpoint's
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

impl TemplateArgs {
    /// The first of these flags that was given.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--system", self.system.is_some()),
            ("--tools", self.tools.is_some()),
            ("--documents", self.documents.is_some()),
            ("--chat-template", self.chat_template.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// A conversation to be answered, with the tools and documents of the flags.
    pub fn request(&self, messages: Vec<Message>) -> Result<ChatRequest> {
        let list = |path: &Option<PathBuf>| path.as_deref().map(read_list).transpose();
        Ok(ChatRequest {
            tools: list(&self.tools)?,
            documents: list(&self.documents)?,
            ..ChatRequest::new(messages)
        })
    }

    /// The messages behind the system prompt of the flags, if there is one.
    pub fn with_system(&self, messages: Vec<Message>) -> Vec<Message> {
        self.system.iter().map(Message::system).chain(messages).collect()
    }
}

fn read_list(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| {
        failure(format_args!("{}: {error}", path.display()), "the file must hold a JSON list")
    })
}

/// Tokenizer and template of one checkpoint.
pub struct Text {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

impl Text {
    /// What the folder holds, for an embedding of `rows` rows; `None` when it has no tokenizer.
    ///
    /// Errors: broken files, or a tokenizer with more tokens than the embedding has rows.
    pub fn open(dir: &Path, rows: usize, template: Option<&Path>) -> Result<Option<Self>> {
        let file = load::open_gguf(dir)?;
        let Some(tokenizer) = tokenizer_of(dir, file.as_ref())? else { return Ok(None) };
        tokenizer.check_fits(rows)?;
        let template = match template {
            Some(file) => {
                ChatTemplate::from_file(file)?.with_special_tokens(tokenizer.special_tokens().clone())
            }
            None => template_of(dir, file.as_ref())?,
        };
        Ok(Some(Text { tokenizer, template }))
    }

    /// The ids of a rendered conversation.
    pub fn encode_chat(&self, request: &ChatRequest) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_rendered(&self.template.render(request)?)?)
    }

    /// Tokens that end a turn, beside those that config.json names: the tokenizer's own idea of an end, and the two ends
    /// of the Llama 3 format, of which the second follows calls of tools.
    pub fn ends_of_turn(&self) -> Vec<u32> {
        let named = self.tokenizer.special_token_id("eos_token");
        let ends =
            ["<|eot_id|>", "<|eom_id|>"].into_iter().filter_map(|token| self.tokenizer.token_id(token));
        let mut ids: Vec<u32> = named.into_iter().chain(ends).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The tokenizer of a folder, or of the GGUF file that the model is, if it has one.
fn tokenizer_of(model: &Path, file: Option<&GgufFile>) -> Result<Option<Tokenizer>> {
    if let Some(file) = file {
        let Some(tokenizer) = tokenizer_json(file)? else { return Ok(None) };
        return Ok(Some(Tokenizer::from_json_with_config(&tokenizer, &tokenizer_config_json(file)?)?));
    }
    match Tokenizer::from_dir(model) {
        Err(TokenizerError::Missing { .. }) => Ok(None),
        tokenizer => Ok(Some(tokenizer?)),
    }
}

/// The chat template of a folder, or of the GGUF file that the model is, or the built-in one.
fn template_of(model: &Path, file: Option<&GgufFile>) -> Result<ChatTemplate> {
    match file {
        Some(file) => Ok(ChatTemplate::from_config_json(model, &tokenizer_config_json(file)?)?),
        None => Ok(ChatTemplate::from_dir(model)?),
    }
}

/// The error of a command that needs text where there is no tokenizer.
pub fn no_tokenizer(dir: &Path) -> anyhow::Error {
    failure(
        format_args!("{} has no tokenizer.json", dir.display()),
        "copy the model's tokenizer.json there, or give token ids with `generate --prompt-ids`",
    )
}

/// What `inspect` tells of the tokenizer: null without one.
pub fn summary(dir: &Path, config: &Config) -> Result<Value> {
    let file = load::open_gguf(dir)?;
    let tokenizer = match tokenizer_of(dir, file.as_ref()) {
        Ok(None) => return Ok(Value::Null),
        Err(error) => return Ok(json!({"error": error.to_string()})),
        Ok(Some(tokenizer)) => tokenizer,
    };
    let mut summary = json!({
        "tokens": tokenizer.vocab_size(),
        "embedding_rows": config.vocab_size,
        "control_tokens": tokenizer.special_ids().len(),
        "bos_token": tokenizer.special_tokens().get("bos_token"),
        "eos_token": tokenizer.special_tokens().get("eos_token"),
    });
    let template = template_of(dir, file.as_ref()).map(|template| {
        summary["chat_template"] = json!(template.origin().to_string());
    });
    if let Err(error) = tokenizer.check_fits(config.vocab_size).map_err(Into::into).and(template) {
        summary["error"] = json!(error.to_string());
    }
    Ok(summary)
}
