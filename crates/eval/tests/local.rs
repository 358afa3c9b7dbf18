//! The engine as a language model: answers do not depend on what else is asked, and mean what the harness means by them. On
//! pico-base, which the tree carries.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kanana_checkpoint::Checkpoint;
use kanana_engine::{Engine, EngineOptions, Pooling, log_likelihoods};
use kanana_eval::EvalError;
use kanana_eval::lm::{
    Ended, GenerateRequest, Generation, LanguageModel, Local, LocalParts, LogLikelihood,
    LogLikelihoodRequest, Prompt,
};
use kanana_kernels::{Cpu, CpuOptions, Format, KvFormat};
use kanana_model::{Config, LoadOptions, Transformer};
use kanana_tokenizer::{ChatTemplate, Tokenizer};

const CONTEXT: usize = 512;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pico-base")
}

fn transformer() -> (Transformer, Arc<Cpu>) {
    let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }));
    let config = Config::from_dir(&folder()).unwrap();
    let format = config.quantization.unwrap_or(Format::F32);
    let options = LoadOptions { format, max_positions: CONTEXT };
    let model =
        Transformer::load(&Checkpoint::open(folder()).unwrap(), &config, &*kernels, &options).unwrap();
    (model.with_kv_format(KvFormat::F32), kernels)
}

fn local(change: impl FnOnce(&mut EngineOptions)) -> Local {
    let (model, kernels) = transformer();
    let mut options = EngineOptions::for_context(CONTEXT, KvFormat::F32);
    options.num_blocks = 256;
    change(&mut options);
    Local::new(LocalParts {
        name: "pico-base".into(),
        engine: Engine::new(Arc::new(model), kernels, options).unwrap(),
        max_length: CONTEXT - 1,
        tokenizer: Tokenizer::from_dir(folder()).unwrap(),
        template: ChatTemplate::built_in(),
        pooling: Pooling::Last,
        stop_token_ids: Vec::new(),
        interrupted: Box::new(|| false),
    })
}

fn scores(local: &mut Local, requests: &[LogLikelihoodRequest]) -> Vec<LogLikelihood> {
    let mut answers = vec![None; requests.len()];
    local
        .log_likelihoods(requests, &mut |index, answer| {
            assert!(answers[index].replace(answer).is_none(), "answered twice");
            Ok(())
        })
        .unwrap();
    answers.into_iter().map(Option::unwrap).collect()
}

fn answers(local: &mut Local, requests: &[GenerateRequest]) -> Vec<Generation> {
    let mut answers = vec![None; requests.len()];
    local
        .generate(requests, &mut |index, answer| {
            assert!(answers[index].replace(answer).is_none(), "answered twice");
            Ok(())
        })
        .unwrap();
    answers.into_iter().map(Option::unwrap).collect()
}

fn request(context: &str, continuation: &str) -> LogLikelihoodRequest {
    LogLikelihoodRequest { context: context.into(), continuation: continuation.into() }
}

/// Choices of one letter and of several tokens, with long and short shared beginnings, and none.
fn requests() -> Vec<LogLikelihoodRequest> {
    let shared =
        "파이썬은 배우기 쉽고 강력한 프로그래밍 언어입니다. It has efficient data structures. ".repeat(4);
    let mut requests = Vec::new();
    for question in ["서울은", "What is a list? A list", "x"] {
        for continuation in [" A", " B", " C", " 대한민국의 수도입니다", " is a sequence of values"]
        {
            requests.push(request(&format!("{shared}{question}"), continuation));
            requests.push(request(question, continuation));
        }
    }
    requests.push(request("", "처음부터 끝까지"));
    requests.push(request(&shared.repeat(12), " longer than the context"));
    requests
}

#[test]
fn together_is_alone() {
    let requests = requests();
    let together = scores(&mut local(|_| ()), &requests);
    let backwards: Vec<_> = requests.iter().rev().cloned().collect();
    let small = |options: &mut EngineOptions| (options.num_blocks, options.max_batched_tokens) = (40, 64);
    let mut in_little_room = scores(&mut local(small), &backwards);
    in_little_room.reverse();
    assert_eq!(together, in_little_room);
    let uncached = scores(&mut local(|options| options.prefix_cache = false), &requests);
    assert_eq!(together, uncached);
    for (one, expected) in requests.iter().zip(&together) {
        assert_eq!(scores(&mut local(|_| ()), std::slice::from_ref(one))[0], *expected, "{one:?}");
    }
}

/// `TemplateLM._encode_pair`: tokens of the whole text, less those of the context without its last spaces.
#[test]
fn a_score_is_that_of_the_tokens_of_the_whole_text() {
    let (model, kernels) = transformer();
    let tokenizer = Tokenizer::from_dir(folder()).unwrap();
    let check = |context: &str, continuation: &str| {
        let got = scores(&mut local(|_| ()), &[request(context, continuation)])[0];
        let whole = tokenizer.encode(&format!("{context}{continuation}")).unwrap();
        let from = tokenizer.encode(context.trim_end()).unwrap().len();
        assert_eq!((got.context_tokens, got.continuation_tokens), (from, whole.len() - from), "{context:?}");
        let each = log_likelihoods(&model, &*kernels, &whole).unwrap();
        let expected: f64 = each[from - 1..].iter().map(|&score| f64::from(score)).sum();
        assert!((got.sum - expected).abs() < 1e-3, "{context:?}: {} and {expected}", got.sum);
    };
    check("서울은", " 대한민국의 수도입니다");
    check("서울은 ", "대한민국의 수도입니다");
    check("파이썬은 배우기", " 쉬운");
}

#[test]
fn the_likeliest_continuation_is_greedy() {
    let mut local = local(|_| ());
    let text = "파이썬은 배우기";
    let greedy = &answers(&mut local, &[GenerateRequest::greedy(Prompt::Text(text.into()), 4)])[0].text;
    let both = [request(text, greedy), request(text, " zzz")];
    let greedy: Vec<bool> = scores(&mut local, &both).iter().map(|score| score.is_greedy).collect();
    assert_eq!(greedy, [true, false]);
}

#[test]
fn a_text_is_scored_whole_in_windows() {
    let mut local = local(|_| ());
    let texts =
        ["짧은 글.".to_owned(), "긴 글은 문맥보다 길어서 여러 창으로 나뉩니다. ".repeat(60), String::new()];
    let mut sums = vec![None; 3];
    local
        .rolling_log_likelihoods(&texts, &mut |index, answer| {
            assert!(sums[index].replace(answer).is_none());
            Ok(())
        })
        .unwrap();
    let tokenizer = Tokenizer::from_dir(folder()).unwrap();
    for (text, answer) in texts.iter().zip(sums) {
        let answer = answer.unwrap();
        assert_eq!(
            answer.continuation_tokens,
            tokenizer.encode_rendered(text).unwrap().len(),
            "each token once"
        );
        assert!(if text.is_empty() { answer.sum == 0.0 } else { answer.sum < -1.0 });
    }
}

#[test]
fn answers_end_where_they_should_whoever_else_is_asked() {
    let prompt = |text: &str| Prompt::Text(text.into());
    let whole = &answers(&mut local(|_| ()), &[GenerateRequest::greedy(prompt("파이썬은"), 24)])[0];
    assert_eq!((whole.ended, whole.completion_tokens), (Ended::Length, 24));
    let stop: String = whole.text.chars().skip(5).take(3).collect();
    let before = whole.text.split_once(&stop).unwrap().0.to_owned();
    let sampled =
        |seed| GenerateRequest {
            temperature: 1.0, seed, ..GenerateRequest::greedy(prompt("파이썬은"), 12)
        };
    let requests = [
        GenerateRequest::greedy(prompt("파이썬은"), 24).until(&[&stop]),
        sampled(1),
        sampled(2),
        GenerateRequest::greedy(Prompt::user("안녕하세요"), 9),
        GenerateRequest::greedy(prompt(&"길고 긴 글. ".repeat(400)), 20),
    ];
    let together = answers(&mut local(|_| ()), &requests);
    assert_eq!((together[0].text.as_str(), together[0].ended), (before.as_str(), Ended::Stop));
    assert_ne!(together[1].text, together[2].text);
    assert_eq!(together[4].prompt_tokens, CONTEXT - 1 - 20, "cut on the left, with room for the answer");
    for (one, expected) in requests.iter().zip(&together) {
        assert_eq!(answers(&mut local(|_| ()), std::slice::from_ref(one))[0], *expected);
    }
}

#[test]
fn an_interruption_ends_a_run_and_leaves_the_engine_usable() {
    let mut local = local(|_| ());
    let mut count = 0;
    let stopped = local.log_likelihoods(&requests(), &mut |_, _| {
        count += 1;
        if count == 3 { Err(EvalError::Stopped) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(EvalError::Stopped)));
    assert_eq!(scores(&mut local, &requests()), scores(&mut self::local(|_| ()), &requests()));
    let problem = local.log_likelihoods(&[request("abc", "")], &mut |_, _| Ok(())).unwrap_err();
    assert!(problem.to_string().contains("has no tokens of its own"), "{problem}");
}
