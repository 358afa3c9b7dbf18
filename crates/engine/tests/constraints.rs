//! The laws of constrained decoding: what is generated fits the grammar, and a constrained answer is bitwise the same
//! alone, among others, in chunks, preempted, and with speculation. Run: `cargo test -p kanana-engine --test constraints`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use std::sync::Arc;

use kanana_engine::{
    Constraint, EngineOptions, FinishReason, Grammar, Request, SamplingParams, Speculation, Stats, Vocabulary,
};
use kanana_kernels::{Cpu, CpuOptions, Format, KvFormat};
use kanana_model::{Config, LoadOptions, Transformer};
use serde_json::{Map, Value, json};
use world::dice::Dice;
use world::{Answer, Running, World};

const CONTEXT: usize = 512;

const EOS: u32 = 2;

/// The token of the byte 0; the others follow.
const FIRST_BYTE: u32 = 3;

/// More rows than the vocabulary has tokens.
const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 52, "vocab_size": 320, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2}"#;

const LONGER: [&str; 12] =
    ["{\"", "\":", ", ", "true", "null", "ab", "aaaa", "가나", "\"}", "123", "\n\n", "  "];

fn model(seed: u64) -> (Arc<Transformer>, Arc<Cpu>) {
    let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }));
    let config = Config::from_json_str(CONFIG, "bytes").unwrap();
    let options = LoadOptions { format: Format::F32, max_positions: CONTEXT };
    let model = Transformer::random(&config, &*kernels, &options, seed).unwrap();
    (Arc::new(model.with_kv_format(KvFormat::F32)), kernels)
}

fn world() -> World {
    let (model, kernels) = model(11);
    World { name: "bytes", model, kernels, kv_format: KvFormat::F32 }
}

fn options() -> EngineOptions {
    EngineOptions { num_blocks: 1024, ..EngineOptions::for_context(CONTEXT, KvFormat::F32) }
}

fn words() -> Vec<Vec<u8>> {
    let bytes = (0..=255).map(|byte| vec![byte]);
    let longer = LONGER.iter().map(|text| text.as_bytes().to_vec());
    std::iter::repeat_n(vec![], 3).chain(bytes).chain(longer).collect()
}

fn vocabulary() -> Vocabulary {
    let tokens: Vec<_> = words().into_iter().map(|word| (!word.is_empty()).then_some(word)).collect();
    Vocabulary::new(&tokens, &[(1, "<|begin|>".to_owned())], &[EOS]).unwrap()
}

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| FIRST_BYTE + u32::from(byte)).collect()
}

fn text(tokens: &[u32]) -> String {
    let words = words();
    String::from_utf8(tokens.iter().flat_map(|&id| words[id as usize].clone()).collect()).unwrap()
}

type Asked = (Request, Option<Constraint>);

fn answers(engine: &mut Running, asked: Vec<Asked>) -> Vec<Answer> {
    let add = |(request, constraint): Asked| match constraint {
        Some(constraint) => engine.engine.add_constrained(request, constraint).unwrap(),
        None => engine.engine.add(request).unwrap(),
    };
    let ids: Vec<_> = asked.into_iter().map(add).collect();
    engine.finish();
    ids.into_iter().map(|id| engine.answers.remove(&id).unwrap()).collect()
}

fn ask(vocabulary: &Vocabulary, prompt: &str, grammar: Grammar, params: &str) -> Asked {
    let params = SamplingParams { logprobs: Some(2), ..serde_json::from_str(params).unwrap() };
    (Request { prompt: tokens(prompt), params }, Some(vocabulary.compile(&grammar).unwrap()))
}

#[test]
fn random_schemas_are_obeyed() {
    let (world, vocabulary, mut dice) = (world(), vocabulary(), Dice(1));
    let mut engine = world.engine(options());
    let schemas: Vec<Value> = (0..200).map(|_| dice.schema(3)).collect();
    let params = |i| format!(r#"{{"temperature": 1, "seed": {i}, "max_tokens": 300}}"#);
    let ask = |(i, schema): (usize, &Value)| {
        ask(&vocabulary, "a schema: ", Grammar::JsonSchema(schema.clone()), &params(i))
    };
    let answers = answers(&mut engine, schemas.iter().enumerate().map(ask).collect());
    let mut complete = 0;
    for (schema, answer) in schemas.iter().zip(answers) {
        match answer.finished.unwrap() {
            FinishReason::Stop => {
                let text = text(&answer.tokens);
                let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
                assert!(jsonschema::is_valid(schema, &value), "{schema}: {text}");
                complete += 1;
            }
            FinishReason::Length => assert_eq!(answer.tokens.len(), 300, "{schema}"),
            FinishReason::Error(error) => panic!("{schema}: {error}"),
        }
    }
    assert!(complete >= 180, "only {complete} of 200 came to an end");
}

#[test]
fn other_grammars_are_obeyed() {
    let (world, vocabulary) = (world(), vocabulary());
    let check = |grammar: Grammar, fits: &dyn Fn(&str) -> bool| {
        let params = |seed| format!(r#"{{"seed": {seed}, "temperature": 1.2, "max_tokens": 200}}"#);
        let asked = (0..20).map(|seed| ask(&vocabulary, "x", grammar.clone(), &params(seed))).collect();
        let answers = answers(&mut world.engine(options()), asked);
        let complete: Vec<_> = answers.iter().filter(|a| a.finished == Some(FinishReason::Stop)).collect();
        assert!(complete.len() > 10, "{grammar:?}: {} of 20", complete.len());
        for answer in complete {
            let end = answer.tokens.len() - usize::from(answer.tokens.last() == Some(&EOS));
            let text = text(&answer.tokens[..end]);
            assert!(fits(&text), "{grammar:?}: {text:?}");
        }
    };
    let all = |text: &str, set: &str| text.chars().all(|c| set.contains(c));
    check(Grammar::Regex("[0-9]{3}-[0-9]{4}".to_owned()), &|text| {
        text.len() == 8 && all(text, "0123456789-")
    });
    check(Grammar::Regex("(ab|가나)+!?".to_owned()), &|text| !text.is_empty() && all(text, "ab가나!"));
    let choices = ["yes", "no", "no/yes", "아니오"].map(str::to_owned);
    check(Grammar::Choice(choices.to_vec()), &|text| choices.iter().any(|choice| choice == text));
    // JSON has numbers such as 1e999, which serde_json has not.
    check(Grammar::JsonObject, &|text| {
        let parsed = serde_json::from_str::<Map<String, Value>>(text);
        parsed.err().is_none_or(|e| e.to_string().contains("out of range"))
    });
    let lark = "start: \"(\" start \")\" | /[ab]/";
    check(Grammar::Lark(lark.to_owned()), &|text| {
        all(text, "()ab") && text.matches('(').count() * 2 + 1 == text.len()
    });
}

/// Constrained and free requests, some of which can be foreseen.
fn mixture() -> Vec<Asked> {
    let vocabulary = vocabulary();
    let ask = |prompt: &str, grammar, params: &str| ask(&vocabulary, prompt, grammar, params);
    let object = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 6},
        "n": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 6}},
        "required": ["name", "n"], "additionalProperties": false});
    let said = r#"{"name": "ab", "n": [1, 1, 1]} {"name": "ab", "n": [1, 1, 1]} "#;
    let free =
        SamplingParams { logprobs: Some(1), seed: Some(4), max_tokens: Some(30), ..Default::default() };
    vec![
        ask(said, Grammar::JsonSchema(object.clone()), r#"{"temperature": 0, "max_tokens": 60}"#),
        (Request { prompt: tokens(said), params: free }, None),
        ask(
            said,
            Grammar::JsonSchema(object.clone()),
            r#"{"seed": 5, "max_tokens": 50, "prompt_logprobs": 1}"#,
        ),
        ask(
            "ab",
            Grammar::Regex("(ab){3,20}".to_owned()),
            r#"{"seed": 6, "max_tokens": 45, "ignore_eos": true}"#,
        ),
        ask("abab", Grammar::Regex("(ab)*".to_owned()), r#"{"seed": 7, "max_tokens": 45, "min_tokens": 9}"#),
        ask(said, Grammar::Choice(vec![said.to_owned(), "{}".to_owned()]), r#"{"seed": 8, "top_p": 0.9}"#),
        ask("", Grammar::JsonObject, r#"{"seed": 9, "max_tokens": 40, "repetition_penalty": 1.3}"#),
    ]
    .into_iter()
    .map(|(request, constraint)| match request.prompt.is_empty() {
        true => (Request { prompt: vec![1], ..request }, constraint),
        false => (request, constraint),
    })
    .collect()
}

fn check(what: &str, change: impl Fn(&mut EngineOptions), inspect: impl Fn(Stats)) {
    let world = world();
    let alone: Vec<Answer> = mixture()
        .into_iter()
        .flat_map(|asked| {
            answers(&mut world.engine(EngineOptions { prefix_cache: false, ..options() }), vec![asked])
        })
        .collect();
    let mut options = options();
    change(&mut options);
    let mut engine = world.engine(options);
    for round in ["first", "second"] {
        for (i, (got, expected)) in answers(&mut engine, mixture()).iter().zip(&alone).enumerate() {
            assert_eq!(got, expected, "{what}, {round} round: request {i}");
        }
    }
    inspect(engine.engine.stats());
}

#[test]
fn together_is_alone() {
    check("together", |_| (), |_| ());
}

#[test]
fn chunked_is_whole() {
    for budget in [1, 9] {
        check("chunked", |options| options.max_batched_tokens = budget, |_| ());
    }
}

/// Blocks for little more than the longest request.
fn narrow(options: &mut EngineOptions) {
    (options.block_size, options.num_blocks) = (3, 60);
}

#[test]
fn preempted_is_uninterrupted() {
    check("preempted", narrow, |stats| assert!(stats.preemptions > 0, "{stats:?}"));
}

#[test]
fn speculation_changes_nothing() {
    let some_came_true = |stats: Stats| assert!(stats.accepted_tokens > 9, "{stats:?}");
    let lookup = Speculation::PromptLookup { ngram: 2, proposals: 6..=6 };
    let draft = |seed| Speculation::Draft { model: model(seed).0, proposals: 4..=4 };
    check("lookup", |options| options.speculation = lookup.clone(), some_came_true);
    check("stranger", |options| options.speculation = draft(12), |stats| assert!(stats.proposed_tokens > 9));
    check(
        "same model",
        |options| options.speculation = draft(11),
        |stats| {
            assert_eq!(stats.accepted_tokens, stats.proposed_tokens);
            some_came_true(stats);
        },
    );
    check(
        "preempted, same model",
        |options| {
            narrow(options);
            options.speculation = draft(11);
        },
        |stats| assert!(stats.preemptions > 0 && stats.accepted_tokens > 9, "{stats:?}"),
    );
}

#[test]
fn sequences_end_where_they_should() {
    let (world, vocabulary) = (world(), vocabulary());
    let check = |regex: &str, params: &str, expected: &str, finished: FinishReason| {
        let asked = ask(&vocabulary, "x", Grammar::Regex(regex.to_owned()), params);
        let answer = answers(&mut world.engine(options()), vec![asked]).remove(0);
        let shown: Vec<String> =
            answer.tokens.iter().map(|&id| if id == EOS { "$".to_owned() } else { text(&[id]) }).collect();
        assert_eq!(
            (shown.concat().as_str(), answer.finished),
            (expected, Some(finished)),
            "{regex} {params}"
        );
    };
    let (stop, length) = (FinishReason::Stop, FinishReason::Length);
    let end_wanted = r#""temperature": 0, "max_tokens": 7, "logit_bias": {"2": 100}"#;
    let with = |more: &str| format!("{{{end_wanted}{more}}}");
    check("xyz", &with(""), "xyz", stop.clone()); // the end is not allowed sooner, and not needed
    check("x(yz)?", &with(""), "x$", stop.clone());
    check("x(yz)?", &with(r#", "ignore_eos": true"#), "xyz", stop.clone());
    check("x(yz)?", &with(r#", "min_tokens": 2"#), "xyz", stop.clone());
    check("x(yz)?", &with(r#", "min_tokens": 7"#), "xyz", stop.clone());
    check("x{2,9}", &with(r#", "min_tokens": 4"#), "xxxx$", stop.clone());
    check("x*", &with(r#", "ignore_eos": true"#), "xxxxxxx", length.clone());
    check("x*", &with(""), "$", stop.clone());
    let x = FIRST_BYTE + u32::from(b'x');
    check(
        "yx*",
        &format!(r#"{{"temperature": 0, "stop_token_ids": [{x}], "logit_bias": {{"{x}": 90}}}}"#),
        "yx",
        stop,
    );
    check("x{9}", &with(""), "xxxxxxx", length);
}
