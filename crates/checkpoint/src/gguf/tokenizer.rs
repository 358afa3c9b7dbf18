//! The tokenizer, both ways: `tokenizer.ggml` keys, and a `tokenizer.json` with its `tokenizer_config.json`.
//!
//! Byte-level BPE only. Other vocabularies (SentencePiece) are refused by name.
//! Tests: `cargo test -p kanana-checkpoint --test gguf_tokenizer`.

use serde_json::{Map, Value, json};

use super::GgufFile;
use super::error::GgufError;
use super::metadata::{Metadata, MetadataValue};
use super::vocabulary::*;
use crate::{CheckpointError, Result};

/// The contents of a tokenizer.json; none when the file has no vocabulary.
///
/// Errors: a vocabulary that is no byte-level BPE, a way to cut words that is not known, contradictions.
pub fn tokenizer_json(file: &GgufFile) -> Result<Option<Value>> {
    let metadata = file.metadata();
    match metadata.text(MODEL_KEY)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some("gpt2") => {}
        Some(other) => {
            let expected = "\"gpt2\" (byte-level BPE): no other vocabulary is read from GGUF; take tokenizer.json from \
                            the original model";
            return Err(metadata.wrong(GgufError::value(MODEL_KEY, format!("{other:?}"), expected)));
        }
    }
    let pre = pre_tokenizer(metadata)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pre_tokenizer = match pre.split {
        None => byte_level(true),
        Some(split) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]}),
    };
    let bos = match metadata.bool(ADD_BOS_KEY)?.unwrap_or(pre.adds_bos) {
        true => vocabulary.token(metadata, BOS_KEY)?,
        false => None,
    };
    let eos = match metadata.bool(ADD_EOS_KEY)?.unwrap_or(false) {
        true => vocabulary.token(metadata, END_KEYS[0])?,
        false => None,
    };
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": if pre.composes { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": template(bos, eos),
        "decoder": byte_level(false),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocabulary.ordinary(), "merges": merges(metadata)?,
        },
    })))
}

/// The contents of a tokenizer_config.json: the named tokens and the chat template.
pub fn tokenizer_config_json(file: &GgufFile) -> Result<Value> {
    let metadata = file.metadata();
    let vocabulary = Vocabulary::read(metadata)?;
    let mut config = Map::new();
    for (field, key) in [
        ("bos_token", BOS_KEY),
        ("eos_token", END_KEYS[0]),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some((_, token)) = vocabulary.token(metadata, key)? {
            config.insert(field.to_owned(), token.into());
        }
    }
    if let Some(template) = metadata.text(CHAT_TEMPLATE_KEY)? {
        config.insert("chat_template".to_owned(), template.into());
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    Ok(Value::Object(config))
}

fn pre_tokenizer(metadata: Metadata<'_>) -> Result<&'static PreTokenizer> {
    let name = metadata.need(PRE_KEY, metadata.text(PRE_KEY)?)?;
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        let expected = format!("one of {}; take tokenizer.json from the original model", known.join(", "));
        metadata.wrong(GgufError::value(PRE_KEY, format!("{name:?}"), expected))
    })
}

fn merges(metadata: Metadata<'_>) -> Result<Vec<Value>> {
    let merges = metadata.need(MERGES_KEY, metadata.texts(MERGES_KEY)?)?;
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => {
            let got = format!("{merge:?}");
            Err(metadata.wrong(GgufError::value(MERGES_KEY, got, "two tokens with a space between")))
        }
    };
    merges.into_iter().map(pair).collect()
}

/// What is put around every text; null when that is nothing.
fn template(bos: Option<(u64, &str)>, eos: Option<(u64, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(u64, &str)>, type_id: u32| {
        token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": type_id}}))
    };
    let text = |name: &str, type_id: u32| -> Vec<Value> {
        let sequence = json!({"Sequence": {"id": name, "type_id": type_id}});
        special(bos, type_id).into_iter().chain([sequence]).chain(special(eos, type_id)).collect()
    };
    let tokens: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [text("A", 0), text("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": tokens})
}

/// The tokens of a file with their types, in the order of their ids.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    /// An empty one where the file has none.
    fn read(metadata: Metadata<'a>) -> Result<Self> {
        let tokens = metadata.texts(TOKENS_KEY)?.unwrap_or_default();
        let types = metadata.integers(TYPES_KEY)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            let expected = format!("as many as tokens, {}", tokens.len());
            return Err(metadata.wrong(GgufError::value(TYPES_KEY, types.len(), expected)));
        }
        Ok(Vocabulary { tokens, types })
    }

    /// The token whose id is the value of a key.
    fn token(&self, metadata: Metadata<'_>, key: &str) -> Result<Option<(u64, &'a str)>> {
        let Some(id) = metadata.integer(key)? else { return Ok(None) };
        match usize::try_from(id).ok().and_then(|id| self.tokens.get(id)) {
            Some(token) => Ok(Some((id, token))),
            None if self.tokens.is_empty() => Ok(None),
            None => {
                let expected = format!("an id below {}, the number of tokens", self.tokens.len());
                Err(metadata.wrong(GgufError::value(key, id, expected)))
            }
        }
    }

    /// The tokens that are recognised whole in a text, control tokens among them.
    fn added(&self) -> Vec<Value> {
        let added = |(id, (token, kind)): (usize, (&&str, &i64))| {
            matches!(*kind, CONTROL | USER_DEFINED).then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind == CONTROL})
            })
        };
        self.tokens.iter().zip(&self.types).enumerate().filter_map(added).collect()
    }

    /// The tokens that text is merged into.
    fn ordinary(&self) -> Map<String, Value> {
        let ordinary = |(id, (token, kind)): (usize, (&&str, &i64))| {
            (!matches!(*kind, CONTROL | USER_DEFINED | UNUSED)).then(|| ((*token).to_owned(), id.into()))
        };
        self.tokens.iter().zip(&self.types).enumerate().filter_map(ordinary).collect()
    }
}

/// The keys of a tokenizer.json (`tokenizer`) and a tokenizer_config.json (`config`, null when there is none), for an
/// embedding of so many rows; rows without a token become `[PAD<id>]`, marked as unused.
///
/// Errors: a tokenizer that GGUF cannot express.
pub(crate) fn tokenizer_metadata(
    tokenizer: &Value,
    config: &Value,
    vocab_size: usize,
) -> Result<Vec<(String, MetadataValue)>, GgufError> {
    let model = &tokenizer["model"];
    let refuse = |field: &str, got: &Value, why: &'static str| {
        Err(GgufError::NotExpressible { field: format!("tokenizer.json: {field}"), got: shorten(got), why })
    };
    let Some(vocab) = model["vocab"].as_object().filter(|_| model["type"] == "BPE") else {
        return refuse("model.type", &model["type"], "only byte-level BPE is written");
    };
    let ignores = model["ignore_merges"] == true;
    let split = split_of(&tokenizer["pre_tokenizer"]);
    let pre = PRE_TOKENIZERS.iter().filter(|pre| split == Some(pre.split));
    let Some(pre) = pre.clone().find(|pre| pre.ignore_merges == ignores).or(pre.clone().next()) else {
        return refuse(
            "pre_tokenizer",
            &tokenizer["pre_tokenizer"],
            "llama.cpp knows a list of ways to cut words, and this is none of those known here",
        );
    };
    if ignores && !pre.ignore_merges {
        return refuse(
            "model.ignore_merges",
            &true.into(),
            "llama.cpp merges words that are tokens, with this way to cut words",
        );
    }

    let mut tokens: Vec<Option<(String, i64)>> = vec![None; vocab_size];
    let ordinary = vocab.iter().map(|(token, id)| (token.as_str(), id, NORMAL));
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten().map(|token| {
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        (token["content"].as_str().unwrap_or_default(), &token["id"], kind)
    });
    for (token, id, kind) in ordinary.chain(added) {
        let slot = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        match slot {
            Some(slot) => *slot = Some((token.to_owned(), kind)),
            None => return refuse(token, id, "it has no row in the embedding"),
        }
    }
    let (names, types) = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)))
        .map(|(name, kind)| (name, kind as i32))
        .unzip::<_, _, Vec<String>, Vec<i32>>();

    let (adds_bos, adds_eos) = around(&tokenizer["post_processor"]);
    let id_of = |field: &str| {
        let token = config[field].as_str().or(config[field]["content"].as_str())?;
        names.iter().position(|name| name == token)
    };
    let named = [
        (BOS_KEY, "bos_token"),
        (END_KEYS[0], "eos_token"),
        ("tokenizer.ggml.unknown_token_id", "unk_token"),
        ("tokenizer.ggml.padding_token_id", "pad_token"),
    ];
    let ids: Vec<_> = named
        .iter()
        .filter_map(|(key, field)| Some(((*key).to_owned(), MetadataValue::U32(id_of(field)? as u32))))
        .collect();
    let mut entries = vec![
        (MODEL_KEY.to_owned(), MetadataValue::Text("gpt2".to_owned())),
        (PRE_KEY.to_owned(), MetadataValue::Text(pre.names[0].to_owned())),
        (TOKENS_KEY.to_owned(), MetadataValue::Texts(names)),
        (TYPES_KEY.to_owned(), MetadataValue::I32s(types)),
        (MERGES_KEY.to_owned(), MetadataValue::Texts(written_merges(&model["merges"])?)),
        (ADD_BOS_KEY.to_owned(), MetadataValue::Bool(adds_bos)),
        (ADD_EOS_KEY.to_owned(), MetadataValue::Bool(adds_eos)),
    ];
    entries.extend(ids);
    if let Some(template) = config["chat_template"].as_str() {
        entries.push((CHAT_TEMPLATE_KEY.to_owned(), MetadataValue::Text(template.to_owned())));
    }
    Ok(entries)
}

/// The regular expression of a byte-level pre-tokenizer, `Some(None)` for GPT-2's own; none for anything else.
fn split_of(pre_tokenizer: &Value) -> Option<Option<&str>> {
    if pre_tokenizer["type"] == "ByteLevel" {
        return (pre_tokenizer["use_regex"] != false && pre_tokenizer["add_prefix_space"] != true)
            .then_some(None);
    }
    match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
        Some([split, bytes]) if bytes["type"] == "ByteLevel" && bytes["use_regex"] == false => {
            split["pattern"]["Regex"].as_str().map(Some)
        }
        _ => None,
    }
}

/// Whether a post-processor puts a token before the text, and one behind.
fn around(post_processor: &Value) -> (bool, bool) {
    let parts =
        post_processor["processors"].as_array().map_or(std::slice::from_ref(post_processor), Vec::as_slice);
    let single = parts.iter().find_map(|part| part["single"].as_array());
    let special = |item: Option<&Value>| item.is_some_and(|item| item.get("SpecialToken").is_some());
    single.map_or((false, false), |single| (special(single.first()), special(single.last())))
}

fn written_merges(merges: &Value) -> Result<Vec<String>, GgufError> {
    let written = |merge: &Value| match merge {
        Value::String(merge) => Some(merge.clone()),
        pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
    };
    merges.as_array().and_then(|list| list.iter().map(written).collect()).ok_or_else(|| {
        GgufError::NotExpressible {
            field: "tokenizer.json: model.merges".to_owned(),
            got: shorten(merges),
            why: "pairs of tokens are needed",
        }
    })
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The token ids of a config.json that the tokenizer's files do not name.
///
/// Errors: more ends of text than GGUF has keys for.
pub(crate) fn end_metadata(
    config: &Value,
    entries: &mut Vec<(String, MetadataValue)>,
) -> Result<(), GgufError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let named = |entries: &[(String, MetadataValue)], key: &str| {
        entries.iter().find_map(|(name, value)| match value {
            MetadataValue::U32(id) if name == key => Some(*id),
            _ => None,
        })
    };
    if let (Some(bos), None) = (id(&config["bos_token_id"]), named(entries, BOS_KEY)) {
        entries.push((BOS_KEY.to_owned(), MetadataValue::U32(bos)));
    }
    let ends = match &config["eos_token_id"] {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => Vec::from_iter(id(one)),
    };
    let mut free = END_KEYS.into_iter();
    let mut known = Vec::from_iter(named(entries, END_KEYS[0]));
    if !known.is_empty() {
        free.next();
    }
    for end in ends {
        if known.contains(&end) {
            continue;
        }
        let Some(key) = free.next() else {
            let got = config["eos_token_id"].to_string();
            let why = "there are keys for the ends of a text, of a turn and of a message";
            return Err(GgufError::NotExpressible { field: "eos_token_id".to_owned(), got, why });
        };
        entries.push((key.to_owned(), MetadataValue::U32(end)));
        known.push(end);
    }
    Ok(())
}

/// Errors of writing name the file that is written.
pub(crate) fn in_file(file: &std::path::Path) -> impl Fn(GgufError) -> CheckpointError + '_ {
    move |problem| CheckpointError::Gguf { file: file.into(), problem }
}
