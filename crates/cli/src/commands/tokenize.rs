//! `kanana tokenize`: what the model reads of a text, and what ids mean.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use kanana_tokenizer::{Ending, Specials, Tokenizer};
use serde_json::{Value, json};

use super::chat::conversation::{Conversation, not_json};
use super::generate::{parse_ids, read_text};
use crate::args::{ModelArgs, OutputArgs};
use crate::hints::failure;
use crate::load;
use crate::output::{self, Align, Style, Table};
use crate::text::{TemplateArgs, Text, no_tokenizer};

/// Show the tokens of a text or of a conversation, or the text of tokens.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana tokenize --model ./checkpoint \"안녕하세요\"
  kanana tokenize --model ./checkpoint --file article.txt --json
  kanana tokenize --model ./checkpoint --decode \"128000, 9906\"
  kanana tokenize --model ./checkpoint --chat messages.json --render")]
pub struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    input: InputArgs,

    /// With --chat: print the rendered template instead of its tokens
    #[arg(long)]
    render: bool,

    /// Treat the text as nothing but text: add no token, recognise no control token
    #[arg(long, conflicts_with_all = ["chat", "decode"])]
    plain: bool,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// What to look at.
#[derive(Args)]
#[command(next_help_heading = "Input (one of these; else standard input)")]
#[group(multiple = false)]
pub struct InputArgs {
    /// A text
    text: Option<String>,

    /// The text of a file ("-" is standard input)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Token ids to turn into text, separated by commas or spaces
    #[arg(long, value_name = "IDS")]
    decode: Option<String>,

    /// A JSON list of messages, or an object with "messages" ("-" is standard input)
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
}

/// Prints the tokens, the text or the rendered conversation.
pub fn run(args: &TokenizeArgs) -> Result<()> {
    check_use(args)?;
    let dir = load::resolve(&args.model.model)?;
    let Some(text) = open(&dir, args)? else { return Err(no_tokenizer(&dir)) };
    if let Some(path) = &args.input.chat {
        let rendered = render(args, path, &text)?;
        if args.render {
            return match args.output.json {
                true => output::print_json(&json!({"text": rendered})),
                false => output::print(&rendered),
            };
        }
        let ids = text.tokenizer.encode_rendered(&rendered)?;
        return show(&text.tokenizer, &ids, &rendered, args.output.json);
    }
    if let Some(ids) = &args.input.decode {
        let ids = parse_ids(ids)?;
        if let Some(id) = ids.iter().find(|&&id| text.tokenizer.token(id).is_none()) {
            return Err(failure(
                format_args!("the tokenizer has no token {id}"),
                "ids of another model mean nothing here; `kanana inspect` shows the size of the vocabulary",
            ));
        }
        let decoded = text.tokenizer.decode(&ids, Specials::Keep)?;
        return match args.output.json {
            true => output::print_json(&json!({"ids": ids, "text": decoded})),
            false => output::println(decoded),
        };
    }
    let content = match (&args.input.text, &args.input.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => read_text("-".as_ref())?,
    };
    let ids =
        if args.plain { text.tokenizer.encode_plain(&content)? } else { text.tokenizer.encode(&content)? };
    show(&text.tokenizer, &ids, &content, args.output.json)
}

/// Refuses flags that only a conversation has a use for.
fn check_use(args: &TokenizeArgs) -> Result<()> {
    let flag = args.render.then_some("--render").or(args.template.given());
    match flag.filter(|_| args.input.chat.is_none()) {
        Some(flag) => Err(failure(format_args!("{flag} needs a conversation"), "give one with --chat FILE")),
        None => Ok(()),
    }
}

/// The text side of a folder; a folder without config.json will do, then the vocabulary is not checked.
fn open(dir: &std::path::Path, args: &TokenizeArgs) -> Result<Option<Text>> {
    let template = args.template.chat_template.as_deref();
    match dir.join("config.json").exists() {
        true => Text::open(dir, load::read_config(dir)?.vocab_size, template),
        false => Text::open(dir, usize::MAX, template),
    }
}

fn render(args: &TokenizeArgs, path: &std::path::Path, text: &Text) -> Result<String> {
    let json = read_text(path)?;
    let value: Value = serde_json::from_str(&json).map_err(|error| not_json(error, path))?;
    let conversation = Conversation::from_json(value)?;
    let mut request = args.template.request(args.template.with_system(conversation.messages()))?;
    // A conversation that ends with an answer is whole; any other is shown as the model would get it.
    let answered = request.messages.last().is_some_and(|message| message.role() == "assistant");
    request.ending = if answered { Ending::Closed } else { Ending::GenerationPrompt };
    Ok(text.template.render(&request)?)
}

fn show(tokenizer: &Tokenizer, ids: &[u32], content: &str, as_json: bool) -> Result<()> {
    let bytes_per_token = content.len() as f64 / ids.len().max(1) as f64;
    if as_json {
        let tokens: Vec<Value> = ids.iter().map(|&id| token_json(tokenizer, id)).collect();
        return output::print_json(&json!({
            "ids": ids, "tokens": tokens, "count": ids.len(), "bytes": content.len(),
            "bytes_per_token": bytes_per_token,
        }));
    }
    let mut table = Table::new(&[Align::Right, Align::Left, Align::Left]);
    for &id in ids {
        let (piece, hex) = piece(tokenizer, id);
        table.row([id.to_string(), piece, hex]);
    }
    output::print(&table.render())?;
    let style = Style::stderr();
    let count = format!("{}{}{}", style.bold(), ids.len(), style.reset());
    eprintln!("{count} tokens, {} bytes, {bytes_per_token:.2} bytes per token", content.len());
    Ok(())
}

fn token_json(tokenizer: &Tokenizer, id: u32) -> Value {
    let bytes = tokenizer.token_bytes(id);
    let text = bytes.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
    json!({"id": id, "text": text, "bytes": bytes, "token": tokenizer.token(id)})
}

/// A token for the eye: its text with control characters escaped, or nothing when it is no whole character; its bytes.
fn piece(tokenizer: &Tokenizer, id: u32) -> (String, String) {
    if let Some(name) = tokenizer.special_ids().get(&id) {
        return (name.clone(), String::new());
    }
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let text = std::str::from_utf8(&bytes).map(|text| format!("{text:?}"));
    (text.unwrap_or_else(|_| "…".into()), hex)
}
