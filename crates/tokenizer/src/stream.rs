//! Token ids in, whole characters out.

use std::collections::HashMap;
use std::sync::LazyLock;

use tokenizers::DecoderWrapper;

use crate::tiktoken::byte_alphabet;
use crate::{Result, Specials, Tokenizer};

/// Decodes a stream of token ids without ever showing half a character.
///
/// Law: the concatenation of everything [`push`](Self::push) and [`finish`](Self::finish) return is, byte for byte,
/// [`Tokenizer::decode`] of all ids. Text is given out as soon as no later token can change it:
///
/// - byte-level vocabularies (Llama 3, Kanana): when the character is complete;
/// - SentencePiece-style vocabularies: at every token but a byte such as `<0xED>`, whose run must end first, since one
///   bad byte turns the whole run into U+FFFD;
/// - other decoders (WordPiece, CTC and the like), whose whole text no prefix foretells: at the end.
///
/// Cost: amortised O(bytes of the token) per token.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    specials: Specials,
    pending: Pending,
}

#[derive(Debug, Clone)]
enum Pending {
    /// Byte-level: bytes of an unfinished character, at most three.
    Bytes(Vec<u8>),
    /// Tokens whose texts only add up behind the first: ids not yet shown.
    Pieces { ids: Vec<u32>, anchor: u32, started: bool },
    /// All ids so far.
    All(Vec<u32>),
}

impl TextStream {
    pub(crate) fn new(tokenizer: Tokenizer, specials: Specials) -> Self {
        let pending = match tokenizer.inner.library.get_decoder() {
            Some(decoder) if is_byte_level(decoder) => Pending::Bytes(Vec::new()),
            Some(decoder) if adds_up(decoder) => match anchor(&tokenizer) {
                Some(anchor) => Pending::Pieces { ids: Vec::new(), anchor, started: false },
                None => Pending::All(Vec::new()),
            },
            _ => Pending::All(Vec::new()),
        };
        Self { tokenizer, specials, pending }
    }

    /// Takes the next id and gives the text that is certain now, often none.
    ///
    /// Errors: the tokenizers library refuses to decode.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.specials == Specials::Skip && self.tokenizer.special_ids().contains_key(&id) {
            return Ok(String::new());
        }
        let Some(token) = self.tokenizer.token(id) else {
            return Ok(String::new());
        };
        match &mut self.pending {
            Pending::Bytes(bytes) => {
                bytes.extend(unspell(&token));
                Ok(take_characters(bytes))
            }
            Pending::Pieces { ids, .. } => {
                ids.push(id);
                if fallback_byte(&token).is_some() { Ok(String::new()) } else { self.take_pieces() }
            }
            Pending::All(ids) => {
                ids.push(id);
                Ok(String::new())
            }
        }
    }

    /// The rest of the text: what an unfinished character leaves, exactly as decoding everything would. The stream
    /// starts afresh.
    ///
    /// Errors: the tokenizers library refuses to decode.
    pub fn finish(&mut self) -> Result<String> {
        let rest = match &mut self.pending {
            Pending::Bytes(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            Pending::Pieces { .. } => self.take_pieces(),
            Pending::All(ids) => self.tokenizer.decode(ids, self.specials),
        };
        *self = Self::new(self.tokenizer.clone(), self.specials);
        rest
    }

    /// Decodes the ids held, behind the anchor unless they are the first that show: decoders treat the beginning of a
    /// text in their own way (they drop its first space).
    fn take_pieces(&mut self) -> Result<String> {
        let Pending::Pieces { ids, anchor, started } = &mut self.pending else {
            return Ok(String::new());
        };
        if !*started {
            let text = self.tokenizer.decode(ids, self.specials)?;
            if !text.is_empty() {
                *started = true;
                ids.clear();
            }
            return Ok(text);
        }
        let behind = std::mem::take(ids);
        let text = self.tokenizer.decode(&[&[*anchor], behind.as_slice()].concat(), self.specials)?;
        Ok(text[1..].to_string()) // the anchor is one ASCII letter
    }
}

/// The bytes one token stands for, by the tokenizer's decoder.
pub(crate) fn token_bytes(tokenizer: &Tokenizer, token: &str) -> Vec<u8> {
    match (tokenizer.inner.library.get_decoder(), fallback_byte(token)) {
        (Some(decoder), _) if is_byte_level(decoder) => unspell(token),
        (_, Some(byte)) => vec![byte],
        _ => token.replace('\u{2581}', " ").into_bytes(),
    }
}

/// Removes and returns all of `bytes` but an unfinished character at the end; bad bytes become U+FFFD, as
/// `String::from_utf8_lossy` of the whole has it.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text += valid;
                bytes.clear();
                return text;
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text += std::str::from_utf8(valid).expect("valid up to here: this is a bug");
                let Some(bad) = error.error_len() else {
                    *bytes = rest.to_vec();
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                *bytes = rest[bad..].to_vec();
            }
        }
    }
}

/// A byte-level token's bytes; a token with a character outside the byte alphabet stands for itself.
fn unspell(token: &str) -> Vec<u8> {
    static BYTE_OF: LazyLock<HashMap<char, u8>> =
        LazyLock::new(|| byte_alphabet().into_iter().zip(0..=255).collect());
    let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTE_OF.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a token such as `<0xED>`, by the rule of the library's `ByteFallback` decoder.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => {
            matches!(sequence.get_decoders(), [DecoderWrapper::ByteLevel(_)])
        }
        _ => false,
    }
}

/// True where the text of tokens is the text of the first followed by that of the others, runs of fallback bytes kept
/// together: decoders that work token by token, then at most one that strips the beginning of the joined text.
fn adds_up(decoder: &DecoderWrapper) -> bool {
    use DecoderWrapper::{ByteFallback, Fuse, Metaspace, Replace, Sequence, Strip};
    let steps = match decoder {
        Sequence(sequence) => sequence.get_decoders(),
        single => std::slice::from_ref(single),
    };
    let per_token =
        steps.iter().take_while(|step| matches!(step, Replace(_) | ByteFallback(_) | Metaspace(_))).count();
    match &steps[per_token..] {
        [] | [Fuse(_)] => true,
        [Strip(strip)] | [Fuse(_), Strip(strip)] => strip.start <= 1,
        _ => false,
    }
}

/// A token that decodes to one ASCII letter wherever it stands.
fn anchor(tokenizer: &Tokenizer) -> Option<u32> {
    let letters = ('a'..='z').filter_map(|letter| Some((letter, tokenizer.token_id(&letter.to_string())?)));
    let plain = |&(letter, id): &(char, u32)| {
        let text = |ids: &[u32]| tokenizer.decode(ids, Specials::Skip).ok();
        text(&[id]) == Some(letter.to_string()) && text(&[id, id]) == Some([letter, letter].iter().collect())
    };
    letters.into_iter().find(plain).map(|(_, id)| id)
}
