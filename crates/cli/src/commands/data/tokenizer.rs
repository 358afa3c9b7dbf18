//! `kanana tokenizer train`: a vocabulary from texts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use kanana_data::read;
use kanana_tokenizer::Tokenizer;
use kanana_tokenizer::train::{self, CHAT_TEMPLATE, TrainOptions};
use serde_json::json;

use crate::args::OutputArgs;
use crate::hints::failure;
use crate::output::{self, Align, Table};

/// Make tokenizers.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana tokenizer train --input ko.jsonl.zst en.jsonl.zst --vocab-size 8192 --out tokenizer")]
pub struct TokenizerArgs {
    #[command(subcommand)]
    command: TokenizerCommand,
}

#[derive(Subcommand)]
enum TokenizerCommand {
    Train(TrainArgs),
}

/// Learn a byte-level BPE vocabulary, cut as Llama 3's, and write tokenizer.json and tokenizer_config.json.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana tokenizer train --input ko.jsonl.zst en.jsonl.zst --vocab-size 8192 --out tokenizer
  kanana tokenizer train --input corpus.txt --vocab-size 16384 --single-digits --max-bytes 100000000 --out tokenizer

A report of bytes per token goes to standard output: by file, and of Hangul and other text apart.")]
struct TrainArgs {
    /// Corpora: .jsonl, .txt or .parquet, perhaps with .zst or .gz behind
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    input: Vec<PathBuf>,

    /// The field that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,

    /// Ids in all, control tokens included
    #[arg(long, value_name = "N")]
    vocab_size: usize,

    /// Make every digit a token of its own: small models count better
    #[arg(long)]
    single_digits: bool,

    /// Text to read of each file, in bytes, so that large ones do not crowd out small ones [default: all]
    #[arg(long, value_name = "N")]
    max_bytes: Option<usize>,

    /// A chat template for tokenizer_config.json [default: the frame of Llama 3 without a system turn]
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// The folder to write
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    #[command(flatten)]
    output: OutputArgs,
}

/// Bytes and tokens of some text.
#[derive(Default)]
struct Count {
    bytes: usize,
    tokens: usize,
}

pub fn run(args: &TokenizerArgs) -> Result<()> {
    let TokenizerCommand::Train(args) = &args.command;
    if args.out.join("tokenizer.json").exists() {
        let hint = "name another folder with --out, or remove it";
        return Err(failure(format!("{} has a tokenizer.json already", args.out.display()), hint));
    }
    let template = match &args.chat_template {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => CHAT_TEMPLATE.to_owned(),
    };
    let mut texts = Vec::new();
    for path in &args.input {
        let mut left = args.max_bytes.unwrap_or(usize::MAX);
        for row in read::open(path)? {
            let (number, row) = row?;
            let text = read::text(&row, &args.field).map_err(|problem| kanana_data::DataError::Row {
                path: path.clone(),
                row: number,
                problem,
            })?;
            if left < text.len() {
                break;
            }
            left -= text.len();
            texts.push((path.clone(), text.into_owned()));
        }
        output::note(format!("{}: read", path.display()));
    }
    let options = TrainOptions { single_digits: args.single_digits, ..TrainOptions::new(args.vocab_size) };
    output::note(format!("learning a vocabulary of {} from {} documents", args.vocab_size, texts.len()));
    let json = train::train(texts.iter().map(|(_, text)| text), &options)?;
    train::save(&args.out, &json, &train::tokenizer_config(&options, &template))?;
    report(&texts, &Tokenizer::from_dir(&args.out)?, args)
}

/// Bytes per token of a sample of every file, Hangul and the rest apart.
fn report(texts: &[(PathBuf, String)], tokenizer: &Tokenizer, args: &TrainArgs) -> Result<()> {
    const SAMPLE: usize = 200_000;
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for (path, text) in texts {
        let hangul = text.chars().filter(|c| ('가'..='힣').contains(c)).count();
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        let language = if 2 * hangul > letters { "Hangul" } else { "other" };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if counts.get(&name).is_some_and(|count| count.bytes > SAMPLE) {
            continue;
        }
        let tokens = tokenizer.encode_plain(text)?.len();
        for name in [name, format!("all {language}")] {
            let count = counts.entry(name).or_default();
            count.bytes += text.len();
            count.tokens += tokens;
        }
    }
    if args.output.json {
        let rows = counts
            .iter()
            .map(|(name, count)| (name.clone(), json!({"bytes": count.bytes, "tokens": count.tokens})));
        return output::print_json(
            &json!({"vocab_size": args.vocab_size, "sample": rows.collect::<serde_json::Map<_, _>>()}),
        );
    }
    let mut table = Table::new(&[Align::Left, Align::Right]);
    table.row(["text", "bytes per token"]);
    for (name, count) in counts {
        table.row([name, format!("{:.2}", count.bytes as f64 / count.tokens.max(1) as f64)]);
    }
    output::print(&table.render())
}
