//! Laws of text, each bitwise: `decode(encode(s)) == s`, and streamed text == whole text.

#![allow(clippy::unwrap_used)] // tests

mod common;

use common::{byte_level, llama2_decoder, llama3, sentence_piece, syllables};
use kanana_tokenizer::{Specials, StopStrings, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

const EMOJI: &str = "😀👩‍👩‍👧‍👦🇰🇷✊🏽❤️ 각ᆨ\u{1100}\u{1161}";

/// Streams `ids` and compares with decoding them at once.
fn check_stream(tokenizer: &Tokenizer, ids: &[u32]) {
    for specials in [Specials::Keep, Specials::Skip] {
        let mut stream = tokenizer.stream(specials);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, tokenizer.decode(ids, specials).unwrap(), "{ids:?}");
    }
}

fn check_round_trip(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode_plain(text).unwrap();
    assert_eq!(tokenizer.decode(&ids, Specials::Keep).unwrap(), text);
    check_stream(tokenizer, &ids);
}

/// Every kind of decoder, with a name for failures.
fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let no_strip = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" }] });
    let strips_two = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 2, "stop": 0 }] });
    let word_piece = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    vec![
        ("byte level", byte_level()),
        ("llama 2", sentence_piece(llama2_decoder())),
        ("metaspace", sentence_piece(metaspace)),
        ("gemma", sentence_piece(no_strip)),
        ("strips two", sentence_piece(strips_two)),
        ("word piece", sentence_piece(word_piece)),
        ("no decoder", sentence_piece(Value::Null)),
    ]
}

#[test]
fn every_syllable_survives() {
    let mut some = vec![byte_level(), sentence_piece(llama2_decoder())];
    some.extend(llama3());
    for tokenizer in &some {
        check_round_trip(tokenizer, &syllables());
        check_round_trip(tokenizer, EMOJI);
        for syllable in '가'..='힣' {
            check_round_trip(tokenizer, &syllable.to_string());
        }
    }
}

#[test]
fn text_comes_as_soon_as_a_character_is_whole() {
    let tokenizer = byte_level();
    let mut stream = tokenizer.stream(Specials::Skip);
    let shown: Vec<String> = "한😀".bytes().map(|byte| stream.push(u32::from(byte)).unwrap()).collect();
    assert_eq!(shown, ["", "", "한", "", "", "", "😀"]);
    let llama2 = sentence_piece(llama2_decoder());
    let mut stream = llama2.stream(Specials::Skip);
    let ids = llama2.encode_plain("the 가나").unwrap();
    let shown: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(shown, ["the", " 가", "나"]);
}

#[test]
fn the_last_half_character_is_not_swallowed() {
    let tokenizer = byte_level();
    let mut stream = tokenizer.stream(Specials::Skip);
    for byte in [b'a', 0xed, 0x95] {
        stream.push(u32::from(byte)).unwrap();
    }
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    assert_eq!(stream.finish().unwrap(), "", "a finished stream starts afresh");
}

#[test]
fn bytes_of_tokens_add_up() {
    let (tokenizer, text) = (byte_level(), format!("{EMOJI} the end"));
    let ids = tokenizer.encode_plain(&text).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
    assert_eq!(bytes, text.as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_survives(text in any::<String>()) {
        check_round_trip(&byte_level(), &text);
    }

    #[test]
    fn any_ids_stream_whole(ids in prop::collection::vec(0..300u32, 0..40)) {
        for (name, tokenizer) in tokenizers() {
            println!("{name}");
            check_stream(&tokenizer, &ids);
        }
    }

    /// Stop strings see the same text whatever the tokens are.
    #[test]
    fn stops_do_not_depend_on_tokens(text in "[ab안\n]{0,30}", stop in "[ab안\n]{1,4}") {
        let tokenizer = byte_level();
        let mut stream = tokenizer.stream(Specials::Skip);
        let mut stops = StopStrings::new([stop.clone()]);
        let mut shown = String::new();
        for id in tokenizer.encode_plain(&text).unwrap() {
            shown += &stops.push(&stream.push(id).unwrap()).text;
        }
        shown += &stops.push(&stream.finish().unwrap()).text;
        shown += &stops.finish();
        prop_assert_eq!(shown, text.split(&stop).next().unwrap());
    }
}
