//! The laws of speculation: whoever proposes, and however well, tokens and log-probabilities are bitwise those of an
//! engine without speculation. Run: `cargo test -p kanana-engine --test speculation`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use kanana_checkpoint::Checkpoint;
use kanana_engine::{
    Engine, EngineError, EngineOptions, FinishReason, Request, SamplingParams, SequenceId, Speculation, Stats,
};
use kanana_kernels::{Cpu, CpuOptions, KvFormat};
use kanana_model::{Batch, Config, LoadOptions, Transformer};
use kanana_tensor::DType;
use world::{Answer, SEED, World, load_options, prompt, requests, worlds};

/// Draft models from the best to the worst: the model itself, its weights in another precision, and a stranger.
fn drafts(world: &World) -> [Arc<Transformer>; 3] {
    let (same, other) = match world.name {
        "llama bf16" | "llama bf16, cache q8" => (DType::BF16, DType::F32),
        _ => (DType::F32, DType::BF16),
    };
    [world.draft(same, SEED), world.draft(other, SEED), world.draft(same, SEED + 1)]
}

fn speculations(world: &World) -> Vec<(&'static str, Speculation)> {
    let [same, similar, stranger] = drafts(world);
    vec![
        ("lookup", Speculation::PromptLookup { ngram: 2, proposals: 0..=6 }),
        ("stubborn lookup", Speculation::PromptLookup { ngram: 1, proposals: 9..=9 }),
        ("same model", Speculation::Draft { model: same, proposals: 0..=5 }),
        ("similar model", Speculation::draft(similar)),
        ("stranger", Speculation::Draft { model: stranger, proposals: 3..=4 }),
    ]
}

/// Those of the other laws; and some that repeat themselves, so that proposals come true now and then.
fn all_requests() -> Vec<Request> {
    let period = [&prompt(1, 4)[..]; 6].concat();
    let request = |json: &str| Request {
        prompt: period.clone(),
        params: SamplingParams { logprobs: Some(1), ..serde_json::from_str(json).unwrap() },
    };
    let repetitive = [
        request(r#"{"temperature": 0, "max_tokens": 40, "repetition_penalty": 0.7}"#),
        request(r#"{"seed": 3, "temperature": 0.4, "max_tokens": 33, "presence_penalty": -1.5}"#),
        request(r#"{"seed": 4, "top_k": 2, "max_tokens": 19, "min_tokens": 19, "frequency_penalty": 0.05}"#),
    ];
    requests().into_iter().chain(repetitive).collect()
}

/// Every request by itself, without speculation.
fn alone(world: &World) -> Vec<Answer> {
    let options = EngineOptions { prefix_cache: false, ..world.options() };
    all_requests().into_iter().map(|request| world.engine(options.clone()).answer(request)).collect()
}

/// All requests at once, with each speculation and in engines that `change` sets up, answer like each alone without.
fn check(what: &str, change: impl Fn(&mut EngineOptions), inspect: impl Fn(&str, Stats)) {
    for world in worlds() {
        let expected = alone(&world);
        for (name, speculation) in speculations(&world) {
            let mut options = EngineOptions { speculation, ..world.options() };
            change(&mut options);
            let mut engine = world.engine(options);
            for round in ["first", "second"] {
                let answers = engine.answers(all_requests());
                for (i, (got, expected)) in answers.iter().zip(&expected).enumerate() {
                    assert_eq!(got, expected, "{what}, {name}: request {i}, {round} round, {}", world.name);
                }
            }
            inspect(name, engine.engine.stats());
        }
    }
}

/// Proposals were made and some came true: of the model's own all, and of most others' not all.
fn some_came_true(name: &str, stats: Stats) {
    let Stats { proposed_tokens, accepted_tokens, .. } = stats;
    match name {
        "same model" => assert_eq!(accepted_tokens, proposed_tokens),
        "similar model" => assert!(accepted_tokens * 2 > proposed_tokens, "{stats:?}"),
        _ => assert!(proposed_tokens > accepted_tokens, "{name}: {stats:?}"),
    }
    assert!(accepted_tokens > 0, "{name}: {stats:?}");
}

#[test]
fn speculation_changes_nothing() {
    check("at once", |_| (), some_came_true);
}

#[test]
fn nor_does_it_with_chunks() {
    for budget in [1, 7, 40] {
        check(
            "chunked",
            |options| options.max_batched_tokens = budget,
            |name, stats| match budget {
                1 => assert_eq!(stats.proposed_tokens, 0, "there is no room"),
                _ => some_came_true(name, stats),
            },
        );
    }
}

#[test]
fn nor_with_preemption() {
    for prefix_cache in [true, false] {
        check(
            "preempted",
            |options| (options.block_size, options.num_blocks, options.prefix_cache) = (3, 22, prefix_cache),
            |name, stats| {
                assert!(stats.preemptions > 0, "{stats:?}");
                some_came_true(name, stats);
            },
        );
    }
}

#[test]
fn nor_with_any_block_size() {
    for block_size in [1, 5] {
        let num_blocks = 512usize.div_ceil(block_size);
        check(
            "block size",
            |options| (options.block_size, options.num_blocks) = (block_size, num_blocks),
            some_came_true,
        );
    }
}

/// A draft model's keys and values are there wherever the model's are: as many proposals come true behind a prefix from
/// the cache as behind one that was computed.
#[test]
fn the_prefix_cache_serves_the_draft_model_too() {
    for world in worlds() {
        for model in drafts(&world) {
            let speculation = Speculation::Draft { model, proposals: 4..=4 };
            let options = EngineOptions { speculation, block_size: 4, ..world.options() };
            let accepted = |rounds: usize, prefix_cache| {
                let mut engine = world.engine(EngineOptions { prefix_cache, ..options.clone() });
                for request in (0..rounds).flat_map(|_| all_requests()) {
                    engine.answer(request);
                }
                assert_eq!(engine.engine.stats().cached_tokens > 0, prefix_cache);
                engine.engine.stats().accepted_tokens
            };
            let once = accepted(1, false);
            assert!(once > 0);
            assert_eq!(accepted(3, true), 3 * once, "{}", world.name);
        }
    }
}

/// A draft model that is the model answers in steps of all proposals and one more token, greedy or not.
#[test]
fn a_perfect_draft_saves_steps() {
    let world = &worlds()[0];
    for temperature in [0.0, 1.5] {
        let [same, ..] = drafts(world);
        let speculation = Speculation::Draft { model: same, proposals: 0..=4 };
        let mut engine = world.engine(EngineOptions { speculation, ..world.options() }).engine;
        let params =
            SamplingParams { temperature, max_tokens: Some(51), ignore_eos: true, ..Default::default() };
        engine.add(Request { prompt: prompt(1, 9), params }).unwrap();
        for _ in 0..10 {
            assert_eq!(engine.step().unwrap().len(), 5);
        }
        assert_eq!(engine.step().unwrap().len(), 1, "the last token needs no proposals");
        assert!(engine.is_idle());
        let stats = engine.stats();
        assert_eq!((stats.verifications, stats.accepted_tokens, stats.proposed_tokens), (10, 40, 40));
        assert_eq!(stats.accepted_length(), Some(4.0));
    }
    let idle = world.engine(world.options()).engine.stats();
    assert_eq!(idle.accepted_length(), None);
}

/// A sequence that nobody can foresee is given up: few rows are wasted.
#[test]
fn poor_proposers_are_given_up() {
    let world = &worlds()[0];
    let [.., stranger] = drafts(world);
    let proposed = |proposals| {
        let speculation = Speculation::Draft { model: stranger.clone(), proposals };
        let mut engine = world.engine(EngineOptions { speculation, ..world.options() });
        for seed in 0..10 {
            let (seed, max_tokens) = (Some(seed), Some(80));
            let params = SamplingParams { seed, max_tokens, ignore_eos: true, ..Default::default() };
            engine.answer(Request { prompt: prompt(1, 9), params });
        }
        let stats = engine.engine.stats();
        assert!(stats.accepted_tokens * 5 < stats.proposed_tokens, "no poor proposer: {stats:?}");
        stats.proposed_tokens
    };
    let (adaptive, fixed) = (proposed(0..=8), proposed(8..=8));
    assert!(adaptive * 5 < fixed, "{adaptive} proposals, {fixed} without giving up");
}

/// Ends that fall into the middle of an accepted run.
#[test]
fn sequences_stop_where_they_should() {
    let world = &worlds()[0];
    let [same, ..] = drafts(world);
    let request = |json: &str| {
        let params = SamplingParams { logprobs: Some(0), ..serde_json::from_str(json).unwrap() };
        Request { prompt: prompt(1, 9), params }
    };
    let answer = |speculation: &Speculation, json: &str| {
        let speculation = speculation.clone();
        world.engine(EngineOptions { speculation, ..world.options() }).answer(request(json))
    };
    let speculation = Speculation::Draft { model: same, proposals: 7..=7 };
    let check = |json: &str, tokens: usize, finished: FinishReason| {
        let got = answer(&speculation, json);
        assert_eq!((got.tokens.len(), &got.finished), (tokens, &Some(finished)), "{json}");
        assert_eq!(got, answer(&Speculation::Off, json), "{json}");
    };
    let free = answer(&Speculation::Off, r#"{"seed": 1, "max_tokens": 30, "ignore_eos": true}"#).tokens;
    for n in 1..=20 {
        check(&format!(r#"{{"seed": 1, "max_tokens": {n}, "ignore_eos": true}}"#), n, FinishReason::Length);
        let stop = free[n - 1];
        let at = free.iter().position(|&token| token == stop).unwrap() + 1;
        check(
            &format!(r#"{{"seed": 1, "max_tokens": 30, "ignore_eos": true, "stop_token_ids": [{stop}]}}"#),
            at,
            FinishReason::Stop,
        );
    }
    let eos = world.model.config.eos_token_ids[0];
    for min_tokens in 0..10 {
        let bias = format!(r#""temperature": 0, "max_tokens": 20, "logit_bias": {{"{eos}": 100}}"#);
        check(&format!(r#"{{{bias}, "min_tokens": {min_tokens}}}"#), min_tokens + 1, FinishReason::Stop);
    }
    let context = world.options().max_context;
    check(r#"{"seed": 1, "ignore_eos": true}"#, context - 9, FinishReason::Length);
}

/// A stop string that ends in the middle of a run: the caller cancels and ignores the rest of the step.
#[test]
fn cancelling_between_the_outputs_of_a_step_is_safe() {
    for world in worlds() {
        let expected = alone(&world);
        for (name, speculation) in speculations(&world) {
            let options = EngineOptions { speculation, max_batched_tokens: 90, ..world.options() };
            let mut engine = world.engine(options).engine;
            let mut doomed: BTreeMap<SequenceId, (usize, usize)> = BTreeMap::new();
            for (i, request) in all_requests().into_iter().enumerate() {
                doomed.insert(engine.add(request).unwrap(), (i, 2 + i));
            }
            let mut got: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
            while !engine.is_idle() {
                let outputs = engine.step().unwrap();
                for (at, output) in outputs.iter().enumerate() {
                    let (_, length) = doomed[&output.id];
                    let tokens = got.entry(output.id).or_default();
                    if tokens.len() == length {
                        continue;
                    }
                    tokens.extend(output.token);
                    if tokens.len() == length {
                        let ended = outputs[at..].iter().any(|o| o.id == output.id && o.finished.is_some());
                        assert_eq!(engine.cancel(output.id), !ended, "{name}");
                    }
                }
            }
            let stats = engine.stats();
            assert_eq!(stats.free_blocks, stats.num_blocks);
            for (id, (i, length)) in doomed {
                let expected = &expected[i].tokens;
                assert_eq!(got[&id], expected[..length.min(expected.len())], "{name}: request {i}");
            }
        }
    }
}

/// Whatever a draft model says, its sequence goes on; and what is wrong with the model itself is told as without.
#[test]
fn damaged_models_are_no_worse_than_without() {
    for world in worlds() {
        let good = world.model.clone();
        let world = world.poisoned();
        let damaged = Speculation::Draft { model: world.model.clone(), proposals: 2..=4 };
        let healthy = World { model: good.clone(), kernels: world.kernels.clone(), ..world };
        let poison = |request: Request| Request {
            prompt: [&[world::POISON], &request.prompt[..]].concat(),
            ..request
        };
        for request in all_requests() {
            let plain = healthy.engine(healthy.options()).answer(poison(request.clone()));
            let options = EngineOptions { speculation: damaged.clone(), ..healthy.options() };
            assert_eq!(healthy.engine(options).answer(poison(request)), plain, "{}", world.name);
        }
        let drafted = Speculation::Draft { model: good, proposals: 2..=4 };
        for (request, poisoned) in all_requests().into_iter().flat_map(|r| [(r.clone(), false), (r, true)]) {
            let request = if poisoned { poison(request) } else { request };
            let plain = world.engine(world.options()).answer(request.clone());
            let options = EngineOptions { speculation: drafted.clone(), ..world.options() };
            assert_eq!(world.engine(options).answer(request), plain, "{}", world.name);
        }
    }
}

/// Random arrivals, cancellations and steps in a pool that is too small.
#[test]
fn stress() {
    for world in worlds() {
        let expected = alone(&world);
        for (name, speculation) in speculations(&world) {
            let mut dice = 0;
            let mut roll = |sides: usize| {
                dice += 1;
                prompt(dice, 4).iter().fold(0, |sum, id| sum * 53 + *id as usize) % sides
            };
            let mut engine = world.engine(EngineOptions {
                block_size: 4,
                num_blocks: 20,
                max_batched_tokens: 30,
                max_sequences: 5,
                speculation,
                ..world.options()
            });
            let mut alive: BTreeMap<SequenceId, usize> = BTreeMap::new();
            for _ in 0..250 {
                match roll(12) {
                    0..2 => {
                        let which = roll(expected.len());
                        alive.insert(engine.engine.add(all_requests().swap_remove(which)).unwrap(), which);
                    }
                    2 if !alive.is_empty() => {
                        let id = *alive.keys().nth(roll(alive.len())).unwrap();
                        if engine.engine.cancel(id) {
                            alive.remove(&id);
                        }
                    }
                    _ => engine.step(),
                }
            }
            engine.finish(); // where every block has come back
            let stats = engine.engine.stats();
            assert!(alive.len() > 10 && stats.preemptions > 0, "{stats:?}");
            some_came_true(name, stats);
            for (id, which) in alive {
                assert_eq!(engine.answers[&id], expected[which], "{name}: request {which}, {}", world.name);
            }
        }
    }
}

/// Pairs of tokens come with the probability that the model gives them, when a bias leaves it the choice of three: a
/// check of the laws above that knows neither sampler nor seeds. Chi-square with 8 degrees of freedom stays below 26.12
/// in 999 of 1000 fair samplers, and these seeds are fixed.
#[test]
fn the_distribution_is_the_models() {
    let world = &worlds()[0];
    let prompt = prompt(1, 9);
    let choices = [12, 33, 59];
    let probabilities = |tokens: &[u32]| -> [(u32, f64); 3] {
        let hidden = world.model.forward(&*world.kernels, &Batch::packed(&[tokens], true), None).unwrap();
        let last = hidden.slice_rows(tokens.len() - 1..tokens.len()).unwrap();
        let logits = world.model.logits(&*world.kernels, &last).unwrap().to_f32_vec().unwrap();
        let weights = choices.map(|id| (f64::from(logits[id as usize]) / 0.5).exp());
        [0, 1, 2].map(|i| (choices[i], weights[i] / weights.iter().sum::<f64>()))
    };
    let mut pairs: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
    for (first, p) in probabilities(&prompt) {
        let then = probabilities(&[&prompt[..], &[first]].concat());
        pairs.extend(then.into_iter().map(|(second, q)| (vec![first, second], p * q)));
    }
    let [_, similar, stranger] = drafts(world);
    for (model, came_true) in [(similar, 0.9..=1.0), (stranger, 0.2..=0.9)] {
        let speculation = Speculation::Draft { model, proposals: 1..=3 };
        let options = EngineOptions { speculation, max_batched_tokens: 1024, ..world.options() };
        let mut engine = world.engine(options);
        let request = |seed| Request {
            prompt: prompt.clone(),
            params: SamplingParams {
                logit_bias: choices.map(|id| (id, 30.0)).into(),
                temperature: 0.5,
                max_tokens: Some(2),
                ignore_eos: true,
                seed: Some(seed),
                ..Default::default()
            },
        };
        let draws = 4_000u64;
        let mut seen: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
        for answer in engine.answers((0..draws).map(request).collect()) {
            *seen.entry(answer.tokens).or_default() += 1.0;
        }
        assert!(seen.keys().all(|pair| pairs.contains_key(pair)), "{seen:?}");
        let distance = |(pair, p): (&Vec<u32>, &f64)| {
            let expected = p * draws as f64;
            (seen.get(pair).unwrap_or(&0.0) - expected).powi(2) / expected
        };
        let chi_square: f64 = pairs.iter().map(distance).sum();
        assert!(chi_square < 26.12, "chi-square {chi_square}, seen {seen:?}, expected {pairs:?}");
        let stats = engine.engine.stats();
        assert!(stats.verifications > draws / 2, "{stats:?}");
        assert!(came_true.contains(&stats.accepted_length().unwrap()), "one proposal each: {stats:?}");
    }
}

#[test]
fn what_cannot_propose_is_refused() {
    let world = &worlds()[0];
    let refused = |speculation| {
        let options = EngineOptions { speculation, ..world.options() };
        Engine::new(world.model.clone(), world.kernels.clone(), options).err().expect("an error")
    };
    let field = |error| match error {
        EngineError::Parameter { field, .. } => field,
        other => panic!("{other}"),
    };
    let lookup = |ngram, proposals| refused(Speculation::PromptLookup { ngram, proposals });
    assert_eq!(field(lookup(0, 0..=4)), "speculation.ngram");
    assert_eq!(field(lookup(2, RangeInclusive::new(4, 3))), "speculation.proposals");

    let other = |config: Config, max_positions| {
        let options = LoadOptions { max_positions, ..load_options(DType::F32) };
        let model = Transformer::random(&config, &*world.kernels, &options, 1).unwrap();
        refused(Speculation::draft(Arc::new(model)))
    };
    let foreign = other(Config { vocab_size: 60, ..world.model.config.clone() }, 96);
    assert!(matches!(foreign, EngineError::DraftVocabulary { draft: 60, target: 61 }), "{foreign}");
    assert!(foreign.hint().is_some_and(|hint| hint.contains("tokenizer")));
    let short = other(world.model.config.clone(), 95);
    assert!(short.to_string().contains("draft model"), "{short}");
    assert_eq!(field(short), "max_context");
}

/// How well prompt lookup does on a really trained model: prints its figures.
///
/// The checkpoint is not part of this project: where `<workspace>/../shared` does not have it, the test says so.
#[test]
fn stories260k_repeats_itself() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/checkpoints/stories260K");
    if !dir.exists() {
        println!("skipped: no shared data");
        return;
    }
    let greedy = std::fs::read_to_string(dir.join("greedy.json")).unwrap();
    let greedy: serde_json::Value = serde_json::from_str(&greedy).unwrap();
    let ids = |key: &str| serde_json::from_value::<Vec<u32>>(greedy[key].clone()).unwrap();
    let (prompt, published) = (ids("prompt"), ids("greedy"));
    let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }));
    let config = Config::from_dir(&dir).unwrap();
    let options = LoadOptions { max_positions: 512, ..load_options(DType::F32) };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let model = Arc::new(Transformer::load(&checkpoint, &config, &*kernels, &options).unwrap());
    let run = |speculation| {
        let options = EngineOptions { speculation, ..EngineOptions::for_context(512, KvFormat::F32) };
        let mut engine = Engine::new(model.clone(), kernels.clone(), options).unwrap();
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy() };
        engine.add(Request { prompt: prompt.clone(), params }).unwrap();
        let (mut tokens, mut steps) = (prompt.clone(), 0);
        while !engine.is_idle() {
            tokens.extend(engine.step().unwrap().into_iter().filter_map(|output| output.token));
            steps += 1;
        }
        (tokens, steps, engine.stats())
    };
    let (plain, ..) = run(Speculation::Off);
    assert_eq!(plain[..published.len()], published);
    for proposals in [0..=4, 0..=10, 10..=10] {
        let (tokens, steps, stats) =
            run(Speculation::PromptLookup { ngram: 3, proposals: proposals.clone() });
        assert_eq!(tokens, plain);
        let (accepted, generated) = (stats.accepted_length().unwrap(), plain.len() - prompt.len());
        println!(
            "prompt lookup, {proposals:?} proposals: accepted length {accepted:.2}, {} of {} proposed tokens; \
             {generated} tokens in {steps} steps ({:.2} a step)",
            stats.accepted_tokens,
            stats.proposed_tokens,
            generated as f64 / steps as f64
        );
        assert!(accepted > 0.2 && steps < generated, "{stats:?}");
    }
}
