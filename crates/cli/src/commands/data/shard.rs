//! `kanana data shard`: corpora to token shards.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use kanana_data::{DataError, Document, Encoder, Fields, ShardInfo, ShardWriter, Template, read};

use crate::hints::failure;
use crate::output;

/// Turn corpora into token shards, and keep some documents apart for evaluation.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana data shard --tokenizer tokenizer --input ko_law.jsonl.zst --out shards/law
  kanana data shard --tokenizer tokenizer --input ko_law.jsonl.zst --out shards/law --held-out shards/law-eval --every 50
  kanana data shard --tokenizer tokenizer --input chat.jsonl --messages messages --out shards/chat
  kanana data shard --tokenizer tokenizer --input pairs.jsonl --prompt 'Translate into Korean: {en}' --response '{ko}' --out shards/pairs

Documents that are equal but for case and spacing are written once. Of conversations, the assistant's turns are learnt.")]
pub struct ShardArgs {
    /// The folder of the tokenizer, with its chat template
    #[arg(long, value_name = "FOLDER")]
    tokenizer: PathBuf,

    /// Corpora: .jsonl, .txt or .parquet, perhaps with .zst or .gz behind
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    input: Vec<PathBuf>,

    /// The field that holds the text
    #[arg(long, value_name = "NAME", default_value = "text", conflicts_with_all = ["messages", "prompt"])]
    field: String,

    /// The field that holds a list of messages
    #[arg(long, value_name = "NAME", conflicts_with = "prompt")]
    messages: Option<String>,

    /// What the user says, with fields in braces
    #[arg(long, value_name = "TEMPLATE", requires = "response")]
    prompt: Option<String>,

    /// What the assistant says, with fields in braces
    #[arg(long, value_name = "TEMPLATE", requires = "prompt")]
    response: Option<String>,

    /// Rows to take of each file [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// The folder to write
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    /// Another folder, for the documents kept for evaluation
    #[arg(long, value_name = "FOLDER", requires = "every")]
    held_out: Option<PathBuf>,

    /// Keep one in so many documents for evaluation, chosen by their text
    #[arg(long, value_name = "N", requires = "held_out", value_parser = clap::value_parser!(u64).range(2..))]
    every: Option<u64>,
}

pub fn run(args: &ShardArgs) -> Result<()> {
    let fields = fields(args)?;
    let encoder = Encoder::from_dir(&args.tokenizer)?;
    let vocab_size = encoder.tokenizer().vocab_size();
    let mut kept = ShardWriter::create(&args.out, &args.tokenizer, vocab_size)?;
    let create = |dir: &PathBuf| ShardWriter::create(dir, &args.tokenizer, vocab_size);
    let mut held_out = args.held_out.as_ref().map(create).transpose()?;
    let (mut seen, mut twice) = (HashSet::new(), 0);
    for path in &args.input {
        for row in read::open(path)?.take(args.limit.unwrap_or(usize::MAX)) {
            let (row_number, row) = row?;
            let problem = |problem| DataError::Row { path: path.clone(), row: row_number, problem };
            let document = Document::from_row(&row, &fields).map_err(problem)?;
            let fingerprint = document.fingerprint();
            if !seen.insert(fingerprint) {
                twice += 1;
                continue;
            }
            let tokens = encoder.encode(&document).map_err(problem)?;
            let writer = match (&mut held_out, args.every) {
                (Some(held_out), Some(every)) if fingerprint % every == 0 => held_out,
                _ => &mut kept,
            };
            writer.push(&tokens, fingerprint, document.bytes())?;
        }
        output::note(format!("{}: {} documents so far", path.display(), seen.len()));
    }
    if kept.info().documents == 0 {
        let hint = "check the field names, or raise --every";
        return Err(failure(format!("no document is left for {}", args.out.display()), hint));
    }
    if twice > 0 {
        output::note(format!("{twice} documents were there twice and are written once"));
    }
    tell(&args.out, &kept.finish()?)?;
    match (held_out, &args.held_out) {
        (Some(writer), Some(dir)) => tell(dir, &writer.finish()?),
        _ => Ok(()),
    }
}

fn fields(args: &ShardArgs) -> Result<Fields> {
    Ok(match (&args.messages, &args.prompt, &args.response) {
        (Some(field), ..) => Fields::Messages(field.clone()),
        (None, Some(prompt), Some(response)) => {
            Fields::Pair { prompt: Template::new(prompt)?, response: Template::new(response)? }
        }
        _ => Fields::Text(args.field.clone()),
    })
}

fn tell(dir: &Path, info: &ShardInfo) -> Result<()> {
    output::println(format!(
        "{}: {} documents, {} tokens, {} learnt, {:.2} bytes a token",
        dir.display(),
        info.documents,
        info.tokens,
        info.learnt,
        info.text_bytes as f64 / info.learnt.max(1) as f64
    ))
}
