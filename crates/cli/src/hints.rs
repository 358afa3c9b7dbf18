//! Errors as the user sees them: what went wrong, from the outside in, a blank line, and what to do about it.

use std::fmt::{self, Display};
use std::io;
use std::process::ExitCode;

use kanana_checkpoint::CheckpointError;
use kanana_data::DataError;
use kanana_engine::{EngineError, SequenceError};
use kanana_model::ModelError;
use kanana_tokenizer::TokenizerError;
use kanana_train::TrainError;

use crate::output::{OutputError, Style};

/// An error of this crate with its hint.
#[derive(Debug)]
struct Failure {
    message: String,
    hint: String,
    source: Option<anyhow::Error>,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// An error that says what to do.
pub fn failure(message: impl Display, hint: impl Display) -> anyhow::Error {
    Failure { message: message.to_string(), hint: hint.to_string(), source: None }.into()
}

/// Adds to an error what was being done, and what to do about it.
pub fn failure_of(source: anyhow::Error, message: impl Display, hint: impl Display) -> anyhow::Error {
    Failure { message: message.to_string(), hint: hint.to_string(), source: Some(source) }.into()
}

/// Prints an error and its hint to standard error. Nothing is said when the reader of standard output went away.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let style = Style::stderr();
    eprintln!("{}error:{} {}", style.red(), style.reset(), chain(error));
    if let Some(hint) = hint(error) {
        eprintln!("\n{}hint:{} {hint}", style.cyan(), style.reset());
    }
    ExitCode::FAILURE
}

/// Whether standard output was closed by whoever read it, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OutputError>().is_some_and(|error| error.0.kind() == io::ErrorKind::BrokenPipe)
}

/// Every cause on one line, outermost first; a cause whose text its parent already quotes is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// What to do about an error: its own hint, or the one that belongs to the kind of error.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(failure.hint.clone());
        }
        if let Some(OutputError(error)) = cause.downcast_ref() {
            return Some(of_output(error));
        }
        (cause.downcast_ref().and_then(of_engine))
            .or_else(|| cause.downcast_ref().and_then(of_model))
            .or_else(|| cause.downcast_ref().map(of_checkpoint))
            .or_else(|| cause.downcast_ref().map(of_tokenizer))
            .or_else(|| cause.downcast_ref().map(of_sequence))
            .or_else(|| cause.downcast_ref().and_then(of_training))
            .or_else(|| cause.downcast_ref().and_then(of_data))
            .or_else(|| cause.downcast_ref().and_then(of_io))
    })
}

fn of_engine(error: &EngineError) -> Option<String> {
    Some(match error {
        EngineError::PromptTooLong { .. } => {
            "give fewer tokens, or raise --max-context as far as the model goes (--yarn goes further)".into()
        }
        EngineError::TokenOutOfRange { .. } => {
            "`kanana tokenize` shows the ids of a text, `kanana inspect` the size of the vocabulary".into()
        }
        EngineError::KvMemory { .. } => "lower --max-tokens, or give more --kv-memory".into(),
        EngineError::Parameter { .. } => "`kanana generate --help` says what every flag may be".into(),
        EngineError::Model(error) => return of_model(error),
        _ => return None,
    })
}

fn of_model(error: &ModelError) -> Option<String> {
    match error {
        // A transparent variant stands in the chain in place of what it holds.
        ModelError::Checkpoint(error) => Some(of_checkpoint(error)),
        ModelError::Field { file, field, .. } => Some(format!(
            "if `{field}` was edited, correct it in {file}; otherwise this version cannot run the model yet"
        )),
        ModelError::MissingField { file, .. } => Some(format!("download {file} again: it is not whole")),
        ModelError::UnknownPreset { .. } => {
            Some("a checkpoint folder or Hub id is given with --model".into())
        }
        _ => error.hint(),
    }
}

fn of_tokenizer(error: &TokenizerError) -> String {
    let own = match error {
        TokenizerError::TemplateRaised { .. } => {
            "change the conversation as the template says, or give another one with --chat-template FILE"
        }
        TokenizerError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "check the path",
        TokenizerError::Invalid { .. } => "download the file again, or correct it in an editor",
        TokenizerError::Message { .. } => r#"a message is {"role": "user", "content": "…"}"#,
        _ => error.hint().unwrap_or("check the tokenizer's files with `kanana inspect`"),
    };
    own.into()
}

/// The messages of this crate end in what to do: the hint says where it comes from.
fn of_checkpoint(error: &CheckpointError) -> String {
    match error {
        CheckpointError::NoFolder(_) | CheckpointError::NotAFolder(_) | CheckpointError::NoWeights(_) => {
            "a checkpoint folder holds config.json, tokenizer.json and *.safetensors"
        }
        CheckpointError::Pickle(_) => {
            "many models have safetensors too: `kanana pull OWNER/NAME` fetches only those"
        }
        CheckpointError::Gguf { .. } => {
            "`kanana convert --help` lists what is read and written; a file that is broken must be fetched again"
        }
        CheckpointError::Packing { .. } | CheckpointError::PackedDType { .. } | CheckpointError::Packed { .. } => {
            "quantise the original again with `kanana quantize`"
        }
        CheckpointError::AlreadyThere { .. } => "give another destination, or move away what is there",
        CheckpointError::UnsupportedDType { .. } => "`kanana inspect` lists the dtypes of a checkpoint",
        _ => "`kanana pull OWNER/NAME` fetches what is missing and checks every digest",
    }
    .into()
}

fn of_training(error: &TrainError) -> Option<String> {
    Some(match error {
        // A transparent variant stands in the chain in place of what it holds.
        TrainError::Data(error) => return of_data(error),
        TrainError::Model(error) => return of_model(error),
        TrainError::Checkpoint(error) => of_checkpoint(error),
        TrainError::Io { source, .. } => return of_io(source),
        TrainError::Recipe { .. } => {
            "`kanana train --help` shows an example; docs/training.md lists every key".into()
        }
        TrainError::Overlap { .. } => {
            "keep documents apart with `kanana data shard --held-out FOLDER --every N`, for all texts alike"
                .into()
        }
        TrainError::Vocabulary { .. } => "raise vocab_size of the model's config.json".into(),
        TrainError::NoRouter { .. } => "leave out step.router_bias_rate, or take a mixture of experts".into(),
        TrainError::NoTargets { .. } => {
            "raise step.batch_tokens: no conversation fits, or none has an answer".into()
        }
        TrainError::TooManySkipped { .. } => {
            "lower the learning rate, or look at the data around this step; step.max_skipped is the limit"
                .into()
        }
        TrainError::NoTarget { .. } => {
            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj can be adapted".into()
        }
        _ => return None,
    })
}

fn of_data(error: &DataError) -> Option<String> {
    Some(match error {
        DataError::Tokenizer(error) => of_tokenizer(error),
        DataError::Io { source, .. } => return of_io(source),
        DataError::UnknownForm { .. } => "rename the file after what is in it".into(),
        DataError::Row { .. } => {
            "correct the row; --field, --messages or --prompt say what is taken from it".into()
        }
        DataError::Parquet { .. } => "make the file again, or give it as .jsonl".into(),
        DataError::Template { .. } => "a field stands in braces: {question}; {{ and }} are braces".into(),
        DataError::Shards { .. } => "`kanana data shard --help` says how shards are made".into(),
        DataError::Mixture { .. } => {
            "correct the recipe's [[stage]]; `kanana data shard` told how many tokens there are".into()
        }
    })
}

fn of_sequence(error: &SequenceError) -> String {
    match error {
        SequenceError::NonFiniteLogits { .. } => "try --dtype f32; if it stays, download the weights again",
        SequenceError::NothingToChoose => "lower --min-tokens or give fewer --stop-token-id",
        SequenceError::Grammar { .. } => {
            "ask for something simpler: a schema with fewer choices and bounded lengths"
        }
    }
    .into()
}

fn of_output(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "free some space, or write the output somewhere else".into(),
        _ => "check where standard output goes".into(),
    }
}

fn of_io(error: &io::Error) -> Option<String> {
    Some(match error.kind() {
        io::ErrorKind::NotFound => "check the path".into(),
        io::ErrorKind::IsADirectory => "give a file, this is a folder".into(),
        io::ErrorKind::PermissionDenied => "check the file's permissions".into(),
        io::ErrorKind::StorageFull => "free some space".into(),
        io::ErrorKind::InvalidData => "the file must be UTF-8 text".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_chain_reads_from_the_outside_in_without_repeating_itself() {
        let inner = io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("cannot read a.json: disk on fire").context("loading");
        assert_eq!(chain(&error), "loading: cannot read a.json: disk on fire");
    }

    #[test]
    fn a_hint_is_found_below_added_context() {
        let error = Err::<(), _>(failure("no", "say yes")).context("asking").unwrap_err();
        assert_eq!(hint(&error).as_deref(), Some("say yes"));
        assert_eq!(chain(&error), "asking: no");
    }

    #[test]
    fn only_standard_output_may_close_quietly() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&OutputError(broken()).into()));
        assert!(!is_closed_pipe(&broken().into()));
    }
}
