//! `tokenizer.json` to token ids and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokenizers::tokenizer::pre_tokenizer::PreTokenizedString;
use tokenizers::{
    AddedToken, DecoderWrapper, Model as _, NormalizedString, Normalizer as _, OffsetType, PreTokenizer as _,
};

use crate::error::{read_json, read_text};
use crate::{Result, TextStream, TokenizerError, tiktoken};

/// What decoding does with control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They stay in the text.
    Keep,
    /// They are left out.
    Skip,
}

/// A tokenizer; cheap to clone, safe to share between threads.
///
/// Text is never cleaned up: `clean_up_tokenization_spaces` of `tokenizer_config.json` is ignored, since it would break
/// `decode(encode(text)) == text`. Truncation and padding of `tokenizer.json` are ignored, as transformers ignores them.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) library: tokenizers::Tokenizer,
    special_tokens: Map<String, Value>,
    special_ids: BTreeMap<u32, String>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a checkpoint folder: `tokenizer.json`, or `tokenizer.model` in Llama 3's text format where there is no
    /// `tokenizer.json`; and `tokenizer_config.json` and `special_tokens_map.json` where they exist.
    ///
    /// Errors: no tokenizer; unreadable, not UTF-8, not JSON or inconsistent files, named with the field.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (json, model) = (dir.join("tokenizer.json"), dir.join("tokenizer.model"));
        let tokenizer = if json.exists() {
            Self::from_file(&json)?
        } else if model.exists() {
            Self::from_tiktoken(&model)?
        } else {
            return Err(TokenizerError::Missing { dir: dir.into() });
        };
        tokenizer.with_config(dir)
    }

    /// Reads a `tokenizer.json` alone.
    ///
    /// Errors: as [`Tokenizer::from_dir`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let library = tokenizers::Tokenizer::from_bytes(read_text(path)?);
        Self::new(library.map_err(|error| invalid(path, "tokenizer", error))?, Map::new(), path)
    }

    /// Builds a tokenizer from the contents of a `tokenizer.json`.
    ///
    /// Errors: contents that are no tokenizer.
    pub fn from_json(json: &Value) -> Result<Self> {
        let path = Path::new("tokenizer.json");
        let library = tokenizers::Tokenizer::from_bytes(json.to_string());
        Self::new(library.map_err(|error| invalid(path, "tokenizer", error))?, Map::new(), path)
    }

    /// Builds a tokenizer from the contents of a `tokenizer.json` and a `tokenizer_config.json` that lie elsewhere, as
    /// in a GGUF file.
    ///
    /// Errors: contents that are no tokenizer, named special tokens that are no text.
    pub fn from_json_with_config(json: &Value, config: &Value) -> Result<Self> {
        let mut tokenizer = Self::from_json(json)?;
        let inner = Arc::get_mut(&mut tokenizer.inner).expect("just made, not shared: this is a bug");
        inner.special_tokens = special_tokens_of(Path::new("tokenizer_config.json"), config)?;
        Ok(tokenizer)
    }

    /// Reads the original Llama 3 `tokenizer.model`, with Llama 3.1's control tokens behind it.
    fn from_tiktoken(path: &Path) -> Result<Self> {
        let ranks = match read_text(path) {
            Ok(text) => tiktoken::parse_ranks(path, &text)?,
            Err(TokenizerError::NotUtf8 { .. }) => {
                return Err(invalid(
                    path,
                    "format",
                    "a binary SentencePiece model; only Llama 3's text format is read. Save a tokenizer.json beside it \
                     with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
                ));
            }
            Err(error) => return Err(error),
        };
        let specials = tiktoken::llama3_specials();
        let mut tokenizer =
            Self::from_json(&tiktoken::to_tokenizer_json(&ranks, &specials, tiktoken::LLAMA3_SPLIT))?;
        let inner = Arc::get_mut(&mut tokenizer.inner).expect("just made, not shared: this is a bug");
        inner.special_tokens.insert("bos_token".into(), json!("<|begin_of_text|>"));
        inner.special_tokens.insert("eos_token".into(), json!("<|eot_id|>"));
        Ok(tokenizer)
    }

    fn new(
        mut library: tokenizers::Tokenizer,
        special_tokens: Map<String, Value>,
        path: &Path,
    ) -> Result<Self> {
        library.with_padding(None);
        library.with_truncation(None).map_err(|error| invalid(path, "truncation", error))?;
        if library.get_decoder().is_some_and(strips_ends) {
            return Err(invalid(
                path,
                "decoder.stop",
                "a decoder that strips the ends of tokens is not supported",
            ));
        }
        let vocab_size = library.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 {
            return Err(invalid(path, "model.vocab", "the vocabulary is empty"));
        }
        let added = library.get_added_tokens_decoder();
        let special_ids = added
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        Ok(Self { inner: Arc::new(Inner { library, special_tokens, special_ids, vocab_size }) })
    }

    /// Adds what `tokenizer_config.json` and `special_tokens_map.json` know.
    fn with_config(self, dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let mut special_tokens = self.inner.special_tokens.clone();
        special_tokens.extend(read_special_tokens(dir)?);
        let inner = Arc::into_inner(self.inner).expect("just made, not shared: this is a bug");
        let mut library = inner.library;
        if path.exists() {
            add_tokens(&mut library, &path, &read_json(&path)?)?;
        }
        Self::new(library, special_tokens, &path)
    }

    /// Text to ids as transformers' `tokenizer(text)`: control tokens written in the text are recognised, and the
    /// tokens that open (and close) every text are added, for Llama 3 `<|begin_of_text|>`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Text that a chat template rendered: control tokens are recognised and nothing is added.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.library.encode_fast(text, add_special_tokens);
        Ok(encoding.map_err(|error| TokenizerError::Encode(error.to_string()))?.get_ids().to_vec())
    }

    /// Text from outside as nothing but text: `<|eot_id|>` written in it becomes ordinary characters, and nothing is
    /// added.
    ///
    /// Errors: a vocabulary that spells a control token from plain text after all.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_without_added_tokens(text);
        let ids = ids.map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let control = |id: &u32| self.inner.special_ids.get(id).filter(|token| text.contains(token.as_str()));
        match ids.iter().find_map(|id| Some((*id, control(id)?))) {
            Some((id, token)) => Err(TokenizerError::ControlFromPlainText { token: token.clone(), id }),
            None => Ok(ids),
        }
    }

    fn encode_without_added_tokens(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let library = &self.inner.library;
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = library.get_normalizer() {
            normalizer.normalize(&mut normalized)?;
        }
        let mut pieces = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = library.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| library.get_model().tokenize(piece.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// Ids to text; bytes that are no UTF-8 become U+FFFD, ids without a token become nothing.
    pub fn decode(&self, ids: &[u32], specials: Specials) -> Result<String> {
        let text = self.inner.library.decode(ids, specials == Specials::Skip);
        text.map_err(|error| TokenizerError::Decode(error.to_string()))
    }

    /// Decodes ids as they come.
    pub fn stream(&self, specials: Specials) -> TextStream {
        TextStream::new(self.clone(), specials)
    }

    /// The token as the vocabulary spells it (byte-level vocabularies spell 한 as `íķľ`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.library.id_to_token(id)
    }

    /// The bytes a token adds to the text, which need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(crate::stream::token_bytes(self, &self.token(id)?))
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.library.token_to_id(token)
    }

    /// Control tokens by id.
    pub fn special_ids(&self) -> &BTreeMap<u32, String> {
        &self.inner.special_ids
    }

    /// `bos_token`, `eos_token` and the like, by their names in `tokenizer_config.json`.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.inner.special_tokens
    }

    /// The id of a named special token such as `eos_token`.
    pub fn special_token_id(&self, name: &str) -> Option<u32> {
        self.token_id(self.inner.special_tokens.get(name)?.as_str()?)
    }

    /// Highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Checks that every id has a row in an embedding of `rows` rows.
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        if self.vocab_size() > rows {
            return Err(TokenizerError::LargerThanEmbedding { vocab_size: self.vocab_size(), rows });
        }
        Ok(())
    }
}

/// Named special tokens of a checkpoint folder; `tokenizer_config.json` wins over `special_tokens_map.json`.
pub(crate) fn read_special_tokens(dir: &Path) -> Result<Map<String, Value>> {
    let mut tokens = Map::new();
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        tokens.extend(special_tokens_of(&path, &read_json(&path)?)?);
    }
    Ok(tokens)
}

/// `bos_token`, `eos_token` and the like of one file's contents.
pub(crate) fn special_tokens_of(path: &Path, config: &Value) -> Result<Map<String, Value>> {
    let Value::Object(fields) = config else {
        return Err(invalid(path, "top level", "expected an object"));
    };
    let mut tokens = Map::new();
    for (field, value) in fields.iter().filter(|(field, _)| field.ends_with("_token")) {
        let content = if value.is_object() { &value["content"] } else { value };
        match content {
            Value::String(_) => drop(tokens.insert(field.clone(), content.clone())),
            Value::Null | Value::Bool(_) => {} // unset, or a switch such as add_bos_token
            other => return Err(invalid(path, field, format!("expected a token, got {other}"))),
        }
    }
    Ok(tokens)
}

/// Adds tokens that only `added_tokens_decoder` of `tokenizer_config.json` names, at the ids it names.
fn add_tokens(library: &mut tokenizers::Tokenizer, path: &Path, config: &Value) -> Result<()> {
    let field = "added_tokens_decoder";
    let Some(added) = config.get(field).and_then(Value::as_object) else {
        return Ok(());
    };
    let mut by_id = BTreeMap::new();
    for (id, token) in added {
        let number: u32 = id
            .parse()
            .map_err(|_| invalid(path, field, format!("expected token ids as keys, got {id:?}")))?;
        let token: AddedToken = serde_json::from_value(token.clone())
            .map_err(|error| invalid(path, &format!("{field}.{id}"), error))?;
        by_id.insert(number, token);
    }
    for (id, token) in by_id {
        let content = token.content.clone();
        if library.token_to_id(&content).is_none() {
            let added =
                if token.special { library.add_special_tokens([token]) } else { library.add_tokens([token]) };
            added.map_err(|error| invalid(path, &format!("{field}.{id}"), error))?;
        }
        let got = library.token_to_id(&content);
        if got != Some(id) {
            return Err(invalid(
                path,
                &format!("{field}.{id}"),
                format!("tokenizer.json has {content:?} at {got:?}"),
            ));
        }
    }
    Ok(())
}

/// True of decoders that strip the ends of tokens: the library panics on tokens shorter than what is stripped.
fn strips_ends(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::Strip(strip) => strip.stop > 0,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(strips_ends),
        _ => false,
    }
}

fn invalid(path: &Path, field: &str, problem: impl ToString) -> TokenizerError {
    TokenizerError::Invalid { path: path.into(), field: field.into(), problem: problem.to_string() }
}
