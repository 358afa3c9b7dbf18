//! From a row to tokens, and which of them are learnt.

use kanana_tokenizer::{ChatRequest, ChatTemplate, Ending, Message, Tokenizer};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::read::{Row, text};
use crate::{DataError, Result};

/// The target of a token after which nothing is learnt.
pub const IGNORED: u32 = u32::MAX;

/// What a row is to training.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A text, of which every token is learnt.
    Text(String),
    /// A conversation, of which the assistant's turns are learnt.
    Chat(Vec<Message>),
}

/// How rows become documents.
#[derive(Clone, Debug)]
pub enum Fields {
    /// A text under this name.
    Text(String),
    /// A list of messages with `role` and `content` under this name.
    Messages(String),
    /// A question and an answer, each a template with fields in braces: `{question}`.
    Pair {
        /// What the user says.
        prompt: Template,
        /// What the assistant says.
        response: Template,
    },
}

/// A text with fields in braces; `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Field(String),
}

impl Template {
    /// Reads a template. Errors: a brace that is not closed.
    pub fn new(template: &str) -> Result<Self> {
        let failed = |problem| DataError::Template { template: template.to_owned(), problem };
        let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), template);
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                text.push_str(brace);
                rest = after;
            } else if brace == "{" {
                let (field, after) = rest.split_once('}').ok_or_else(|| failed("a brace is not closed"))?;
                parts.push(Part::Text(std::mem::take(&mut text)));
                parts.push(Part::Field(field.to_owned()));
                rest = after;
            } else {
                return Err(failed("a brace is closed that was not opened; }} is a brace"));
            }
        }
        text.push_str(rest);
        parts.push(Part::Text(text));
        Ok(Template(parts))
    }

    fn fill(&self, row: &Row) -> std::result::Result<String, String> {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Field(field) => filled.push_str(&text(row, field)?),
            }
        }
        Ok(filled)
    }
}

impl Document {
    /// Takes what is learnt out of a row; the error says what is missing.
    pub fn from_row(row: &Row, fields: &Fields) -> std::result::Result<Self, String> {
        match fields {
            Fields::Text(field) => Ok(Document::Text(text(row, field)?.into_owned())),
            Fields::Pair { prompt, response } => Ok(Document::Chat(vec![
                Message::user(prompt.fill(row)?),
                Message::assistant(response.fill(row)?),
            ])),
            Fields::Messages(field) => {
                let Some(Value::Array(messages)) = row.get(field) else {
                    return Err(match row.get(field) {
                        Some(_) => format!("field {field:?} is not a list of messages"),
                        None => text(row, field).err().unwrap_or_default(),
                    });
                };
                let messages: std::result::Result<_, String> = messages
                    .iter()
                    .map(|message| Message::from_value(message.clone()).map_err(|error| error.to_string()))
                    .collect();
                Ok(Document::Chat(messages?))
            }
        }
    }

    /// Tells documents apart, whatever their case and spacing: the first eight bytes of a SHA-256.
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            for word in text.split_whitespace() {
                digest.update(word.to_lowercase());
                digest.update(" ");
            }
        };
        match self {
            Document::Text(text) => add(text),
            Document::Chat(messages) => messages.iter().filter_map(Message::text).for_each(add),
        }
        let bytes = digest.finalize();
        u64::from_le_bytes(std::array::from_fn(|i| bytes[i]))
    }

    /// The bytes of its text: of a conversation, those of the assistant's turns.
    pub fn bytes(&self) -> usize {
        match self {
            Document::Text(text) => text.len(),
            Document::Chat(messages) => messages
                .iter()
                .filter(|message| message.role() == "assistant")
                .filter_map(|message| message.text().map(str::len))
                .sum(),
        }
    }
}

/// A document in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// Whether each is learnt, given those before it; never the first.
    pub learnt: Vec<bool>,
}

/// Turns documents into tokens.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// What the tokenizer puts before a text.
    begin: Option<u32>,
    end: u32,
}

impl Encoder {
    /// The tokenizer and chat template of a folder; a text ends with its `eos_token`.
    ///
    /// Errors: those of the files; no `eos_token`.
    pub fn from_dir(dir: &std::path::Path) -> Result<Self> {
        let tokenizer = Tokenizer::from_dir(dir)?;
        let end = tokenizer.special_token_id("eos_token").ok_or_else(|| DataError::Shards {
            path: dir.join("tokenizer_config.json"),
            problem: "no eos_token: a text would have no end".to_owned(),
        })?;
        let first = tokenizer.encode("")?.first().copied();
        let begin = tokenizer.special_token_id("bos_token").filter(|&begin| first == Some(begin));
        Ok(Encoder { template: ChatTemplate::from_dir(dir)?, tokenizer, begin, end })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens; the error says what is wrong with the document.
    pub fn encode(&self, document: &Document) -> std::result::Result<Tokens, String> {
        let told = |error: kanana_tokenizer::TokenizerError| error.to_string();
        match document {
            Document::Text(text) => {
                // A control token that is written in a corpus is text, not the end of a document.
                let plain = self.tokenizer.encode_plain(text).map_err(told)?;
                let ids: Vec<u32> = self.begin.into_iter().chain(plain).chain([self.end]).collect();
                let mut learnt = vec![true; ids.len()];
                learnt[0] = false;
                Ok(Tokens { ids, learnt })
            }
            Document::Chat(messages) => {
                let tokens = |upto: usize, ending: Ending| {
                    let request = ChatRequest { ending, ..ChatRequest::new(messages[..upto].to_vec()) };
                    let text = self.template.render(&request).map_err(told)?;
                    self.tokenizer.encode_rendered(&text).map_err(told)
                };
                let ids = tokens(messages.len(), Ending::Closed)?;
                let mut learnt = vec![false; ids.len()];
                for (i, _) in messages.iter().enumerate().filter(|(_, message)| message.role() == "assistant")
                {
                    // What the template writes before the answer, and up to its end.
                    let before = tokens(i, Ending::GenerationPrompt)?;
                    let after = tokens(i + 1, Ending::Closed)?;
                    if !after.starts_with(&before) || !ids.starts_with(&after) {
                        return Err(format!(
                            "the chat template writes message {} otherwise once others follow it, so its tokens cannot be told",
                            i + 1
                        ));
                    }
                    learnt[before.len()..after.len()].fill(true);
                }
                if !learnt.contains(&true) {
                    return Err("no message of the assistant: nothing would be learnt".to_owned());
                }
                Ok(Tokens { ids, learnt })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use kanana_tokenizer::Specials;
    use kanana_tokenizer::train::{CHAT_TEMPLATE, TrainOptions, save, tokenizer_config, train};
    use serde_json::json;

    fn encoder(chat_template: &str) -> Encoder {
        let dir = tempfile::tempdir().unwrap();
        let options = TrainOptions::new(270);
        let json = train(["the cat sat on the mat, 한국어 한국어"; 4].iter(), &options).unwrap();
        save(dir.path(), &json, &tokenizer_config(&options, chat_template)).unwrap();
        Encoder::from_dir(dir.path()).unwrap()
    }

    fn row(value: Value) -> Row {
        value.as_object().cloned().unwrap()
    }

    fn chat(turns: &[(&str, &str)]) -> Document {
        Document::Chat(turns.iter().map(|&(role, text)| Message::new(role, text)).collect())
    }

    #[test]
    fn templates_take_fields_and_braces() {
        let filled = |template| Template::new(template).unwrap().fill(&row(json!({"ko": "고양이", "n": 3})));
        assert_eq!(filled("{n}: {ko}{{}}").unwrap(), "3: 고양이{}");
        assert!(filled("{kp}").unwrap_err().contains("did you mean \"ko\""));
        for (template, expected) in [("a {ko", "not closed"), ("a} b", "not opened"), ("{{{ko", "not closed")]
        {
            let error = Template::new(template).unwrap_err().to_string();
            assert!(error.contains(expected), "{template}: {error}");
        }
    }

    #[test]
    fn rows_without_the_field_say_so() {
        let check = |value: Value, expected: &str| {
            let error =
                Document::from_row(&row(value), &Fields::Messages("messages".to_owned())).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(json!({"massages": []}), "did you mean \"massages\"");
        check(json!({"messages": "hello"}), "not a list of messages");
        check(json!({"messages": [{"content": "hello"}]}), "role");
        check(json!({"messages": [{"role": "user", "content": 5}]}), "content");
    }

    #[test]
    fn a_text_has_one_beginning_and_one_end() {
        let encoder = encoder(CHAT_TEMPLATE);
        let control = |ids: &[u32]| -> Vec<String> {
            ids.iter().filter_map(|id| encoder.tokenizer.special_ids().get(id).cloned()).collect()
        };
        // The last one names the tokens that frame a text, which are only text there.
        for text in ["", "the cat", "한국어 ㄱ 🦀\n", "a <|end_of_text|><|begin_of_text|> b"] {
            let tokens = encoder.encode(&Document::Text(text.to_owned())).unwrap();
            assert_eq!(control(&tokens.ids), ["<|begin_of_text|>", "<|end_of_text|>"], "{text}");
            assert_eq!(tokens.ids[tokens.ids.len() - 1], encoder.end);
            assert_eq!(encoder.tokenizer.decode(&tokens.ids, Specials::Skip).unwrap(), text);
            assert_eq!(tokens.learnt.iter().position(|&learnt| learnt), Some(1));
            assert!(tokens.learnt[1..].iter().all(|&learnt| learnt));
        }
    }

    #[test]
    fn the_turns_of_the_assistant_are_learnt_to_their_end() {
        let encoder = encoder(CHAT_TEMPLATE);
        let check = |turns: &[(&str, &str)], expected: &str| {
            let tokens = encoder.encode(&chat(turns)).unwrap();
            let pairs = tokens.ids.iter().zip(&tokens.learnt);
            let learnt: Vec<u32> = pairs.filter(|&(_, &learnt)| learnt).map(|(&id, _)| id).collect();
            assert_eq!(encoder.tokenizer.decode(&learnt, Specials::Keep).unwrap(), expected);
        };
        check(&[("user", "the mat"), ("assistant", "the cat")], "the cat<|eot_id|>");
        check(
            &[("system", "s"), ("user", "u"), ("assistant", "하나"), ("user", "the"), ("assistant", "둘")],
            "하나<|eot_id|>둘<|eot_id|>",
        );
        check(&[("assistant", "a"), ("user", "not this")], "a<|eot_id|>");
        for turns in [&[][..], &[("user", "u")]] {
            assert!(encoder.encode(&chat(turns)).unwrap_err().contains("nothing would be learnt"));
        }
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_refused() {
        let encoder = encoder(
            "{%- for message in messages %}[{{ message['content'] if loop.last else '...' }}]{%- endfor %}\
             {%- if add_generation_prompt %}[{%- endif %}",
        );
        let turns = [("user", "u"), ("assistant", "one"), ("user", "v"), ("assistant", "two")];
        let error = encoder.encode(&chat(&turns)).unwrap_err();
        assert!(error.contains("message 2 otherwise"), "{error}");
    }

    #[test]
    fn fingerprints_see_words_only() {
        let of = |text: &str| Document::Text(text.to_owned()).fingerprint();
        assert_eq!(of("The  cat\n sat"), of(" the CAT sat "));
        assert_eq!(of("the cat"), chat(&[("user", "the"), ("assistant", "cat")]).fingerprint());
        assert_ne!(of("the cat"), of("thecat"));
        assert_ne!(of("가"), of("나"));
    }

    #[test]
    fn the_bytes_of_a_conversation_are_the_assistants() {
        assert_eq!(chat(&[("user", "abc"), ("assistant", "가"), ("assistant", "d")]).bytes(), 4);
        assert_eq!(Document::Text("가나".to_owned()).bytes(), 6);
    }
}
