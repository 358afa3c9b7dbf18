//! Log-probabilities in the two shapes that OpenAI's API has.

use kanana_engine::{Logprobs, TokenLogprob};
use kanana_tokenizer::{Specials, TextStream, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::error::ApiResult;

/// A token and how likely it was, as chat completions tell it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    /// Its text, with U+FFFD in the place of parts of a character.
    pub token: String,
    /// Units: nats.
    pub logprob: f32,
    /// Its bytes, which together with its neighbours' make characters.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub top_logprobs: Option<Vec<ChatTokenLogprob>>,
}

/// Of all tokens of a message.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// In order.
    pub content: Vec<ChatTokenLogprob>,
}

/// As chat completions tell them.
pub fn of_chat(tokenizer: &Tokenizer, logprobs: &[Logprobs]) -> ChatLogprobs {
    let plain = |entry: &TokenLogprob| {
        let bytes = bytes_of(tokenizer, entry.token);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        ChatTokenLogprob { token, logprob: entry.logprob, bytes, top_logprobs: None }
    };
    let content = logprobs.iter().map(|entry| ChatTokenLogprob {
        top_logprobs: Some(entry.top.iter().map(plain).collect()),
        ..plain(&entry.chosen)
    });
    ChatLogprobs { content: content.collect() }
}

/// Of all tokens of a text, as completions tell them.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Their texts.
    pub tokens: Vec<String>,
    /// Units: nats; null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest at each place, by their texts; null as above.
    #[schema(value_type = Vec<Object>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each begins. Units: characters.
    pub text_offset: Vec<usize>,
}

/// Where the tokens of a text begin, whichever pieces they come in: a token inside a character begins where that does.
pub struct Offsets {
    stream: TextStream,
    /// Units: characters.
    end: usize,
}

impl Offsets {
    /// At the beginning.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Offsets { stream: tokenizer.stream(Specials::Skip), end: 0 }
    }

    /// Here one text ends and another is put behind it.
    ///
    /// Errors: the tokenizers library refuses to decode.
    pub fn end_text(&mut self) -> ApiResult<()> {
        self.end += self.stream.finish()?.chars().count();
        Ok(())
    }
}

impl CompletionLogprobs {
    /// Appends tokens with what is known of them.
    ///
    /// Errors: the tokenizers library refuses to decode.
    pub fn extend(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &[u32],
        logprobs: &[Option<Logprobs>],
        offsets: &mut Offsets,
    ) -> ApiResult<()> {
        for (&token, logprobs) in tokens.iter().zip(logprobs) {
            self.text_offset.push(offsets.end);
            offsets.end += offsets.stream.push(token)?.chars().count();
            self.tokens.push(name_of(tokenizer, token));
            self.token_logprobs.push(logprobs.as_ref().map(|entry| entry.chosen.logprob));
            self.top_logprobs.push(logprobs.as_ref().map(|entry| top(tokenizer, entry)));
        }
        Ok(())
    }
}

/// The likeliest tokens and the chosen one; of two tokens of one text the likelier is told.
fn top(tokenizer: &Tokenizer, logprobs: &Logprobs) -> Map<String, Value> {
    let mut entries = Map::new();
    for entry in logprobs.top.iter().chain([&logprobs.chosen]) {
        entries.entry(name_of(tokenizer, entry.token)).or_insert_with(|| shortest(entry.logprob));
    }
    entries
}

/// A number as short as its 32 bits are; a plain conversion to 64 would spell them out.
fn shortest(x: f32) -> Value {
    json!(x.to_string().parse::<f64>().unwrap_or(f64::from(x)))
}

/// A token's text; where that is no whole characters, its bytes as `bytes:\xNN`, so that different tokens stay
/// different.
fn name_of(tokenizer: &Tokenizer, token: u32) -> String {
    let bytes = bytes_of(tokenizer, token);
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let escaped: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        }
    }
}

fn bytes_of(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    tokenizer.token_bytes(token).unwrap_or_default()
}
