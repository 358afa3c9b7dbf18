//! The laws of the engine, bitwise: tokens and log-probabilities of a sequence do not depend on what else the engine
//! does. Every law is checked on each of [`worlds`]. Run: `cargo test -p kanana-engine --test laws`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use std::collections::BTreeMap;

use kanana_engine::{
    Engine, EngineError, EngineOptions, FinishReason, Request, SamplingParams, SequenceError, SequenceId,
};
use kanana_model::Batch;
use world::{POISON, alone, prompt, requests, worlds};

/// All requests at once, in engines that `change` sets up, answer like each request alone.
fn check(what: &str, change: impl Fn(&mut EngineOptions), inspect: impl Fn(&Engine)) {
    for world in worlds() {
        let mut options = world.options();
        change(&mut options);
        let mut engine = world.engine(options);
        let answers = engine.answers(requests());
        for (i, (got, expected)) in answers.iter().zip(alone(&world)).enumerate() {
            assert_eq!(*got, expected, "{what}: request {i} on {}", world.name);
        }
        inspect(&engine.engine);
    }
}

#[test]
fn batch_is_single() {
    check("batch", |options| options.prefix_cache = false, |_| ());
}

#[test]
fn chunked_is_whole() {
    for budget in [1, 7, 512] {
        check("chunked", |options| options.max_batched_tokens = budget, |_| ());
    }
}

#[test]
fn cache_hit_is_miss() {
    check("at once", |_| (), |engine| assert!(engine.stats().cached_tokens == 0, "nothing was known yet"));
    for world in worlds() {
        let mut engine = world.engine(world.options());
        let first = engine.answers(requests());
        let hits = engine.engine.stats().cached_tokens;
        assert_eq!(engine.answers(requests()), first, "{}", world.name);
        assert!(engine.engine.stats().cached_tokens >= hits + 2 * 32, "{:?}", engine.engine.stats());
    }
}

/// What a bench measures behind a context that was filled: the prefix is not computed, and the rest depends on it.
#[test]
fn a_filled_prefix_is_a_cache_hit() {
    for world in worlds() {
        let params = SamplingParams { max_tokens: Some(9), logprobs: Some(0), ..SamplingParams::greedy() };
        let request = Request { prompt: prompt(3, 60), params };
        let filled = |seed: u64| {
            let mut engine = world.engine(world.options());
            engine.engine.fill_prefix(&request.prompt[..50], seed).unwrap();
            let stats = engine.engine.stats();
            assert_eq!(stats.free_blocks, stats.num_blocks);
            let answer = engine.answer(request.clone());
            assert_eq!(engine.engine.stats().cached_tokens, 48, "three whole blocks");
            answer
        };
        assert_eq!(filled(1), filled(1), "{}", world.name);
        assert_ne!(filled(1), filled(2), "{}", world.name);
        assert_ne!(filled(1), world.engine(world.options()).answer(request.clone()), "{}", world.name);
    }
}

#[test]
fn a_prefix_that_cannot_be_filled_is_refused() {
    let world = worlds().remove(0);
    let mut engine = world.engine(EngineOptions { prefix_cache: false, ..world.options() });
    let refused = engine.engine.fill_prefix(&prompt(1, 16), 0);
    assert!(matches!(refused, Err(EngineError::Parameter { field: "prefix_cache", .. })), "{refused:?}");
    let mut engine = world.engine(EngineOptions { num_blocks: 2, ..world.options() });
    let refused = engine.engine.fill_prefix(&prompt(1, 48), 0);
    assert!(matches!(refused, Err(EngineError::KvMemory { needed: 3, num_blocks: 2, .. })), "{refused:?}");
    engine.engine.fill_prefix(&prompt(1, 47), 0).unwrap();
}

#[test]
fn preempted_is_uninterrupted() {
    let preempted = |engine: &Engine| assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
    for prefix_cache in [true, false] {
        check(
            "preempted",
            |options| {
                // Room for little more than the longest request alone.
                (options.block_size, options.num_blocks, options.prefix_cache) = (3, 22, prefix_cache);
            },
            preempted,
        );
    }
}

#[test]
fn block_size_is_of_no_consequence() {
    for block_size in [1, 5, 64] {
        let blocks = 512usize.div_ceil(block_size);
        check(
            "block size",
            |options| (options.block_size, options.num_blocks) = (block_size, blocks),
            |_| (),
        );
    }
}

#[test]
fn threads_are_of_no_consequence() {
    for world in worlds() {
        let expected = alone(&world);
        for threads in [1, 3] {
            let world = world.with_threads(threads);
            let answers = world.engine(world.options()).answers(requests());
            assert_eq!(answers, expected, "{threads} threads on {}", world.name);
        }
    }
}

#[test]
fn cancelled_neighbours_change_nothing() {
    for world in worlds() {
        let mut engine = world.engine(EngineOptions { max_batched_tokens: 40, ..world.options() });
        let noise: Vec<Request> = requests().into_iter().rev().collect();
        let doomed: Vec<_> =
            noise.iter().map(|request| engine.engine.add(request.clone()).unwrap()).collect();
        let ids: Vec<_> = requests().into_iter().map(|request| engine.engine.add(request).unwrap()).collect();
        for id in doomed {
            engine.step();
            engine.engine.cancel(id);
            assert!(!engine.engine.cancel(id), "cancelled twice");
        }
        engine.finish();
        for (i, (id, expected)) in ids.into_iter().zip(alone(&world)).enumerate() {
            assert_eq!(engine.answers[&id], expected, "request {i} on {}", world.name);
        }
    }
}

/// The engine is a loop of packed forward passes over everything so far: paged == packed, and what is sampled is what
/// the model says, to the bit.
#[test]
fn engine_is_a_loop_of_forward_passes() {
    for world in worlds() {
        let params = SamplingParams { max_tokens: Some(12), logprobs: Some(0), ..SamplingParams::greedy() };
        let answer = world.engine(world.options()).answer(Request { prompt: prompt(9, 70), params });
        let mut tokens = prompt(9, 70);
        for (token, logprobs) in answer.tokens.iter().zip(&answer.logprobs) {
            let batch = Batch::packed(&[&tokens], true);
            let hidden = world.model.forward(&*world.kernels, &batch, None).unwrap();
            let last = hidden.slice_rows(tokens.len() - 1..tokens.len()).unwrap();
            let logits = world.model.logits(&*world.kernels, &last).unwrap();
            let log_sum_exp = world.kernels.log_sum_exp(&logits).unwrap().to_f32_vec().unwrap()[0];
            let logits = logits.to_f32_vec().unwrap();
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(*token, best as u32, "{}", world.name);
            assert_eq!(logprobs.chosen.logprob, logits[best] - log_sum_exp, "{}", world.name);
            tokens.push(*token);
        }
    }
}

/// What the engine says of the tokens it generates is what it says of them in a prompt.
#[test]
fn generated_logprobs_are_prompt_logprobs() {
    for world in worlds() {
        let params =
            SamplingParams { seed: Some(3), max_tokens: Some(30), logprobs: Some(2), ..Default::default() };
        let mut engine = world.engine(world.options());
        let generated = engine.answer(Request { prompt: prompt(1, 21), params });
        let whole = [prompt(1, 21), generated.tokens].concat();
        let params = SamplingParams { max_tokens: Some(0), prompt_logprobs: Some(2), ..Default::default() };
        let scored = engine.answer(Request { prompt: whole, params });
        assert_eq!((scored.tokens.len(), scored.finished), (0, Some(FinishReason::Length)));
        let scored: Vec<_> = scored.prompt_logprobs.unwrap();
        assert_eq!(scored[0], None);
        let scored: Vec<_> = scored[21..].iter().map(|logprobs| logprobs.clone().unwrap()).collect();
        assert_eq!(scored, generated.logprobs, "{}", world.name);
    }
}

/// Scoring only the end of a prompt, with its start from the cache, and asking for a token that was not chosen, say what
/// scoring the whole prompt says.
#[test]
fn part_of_a_prompt_scores_as_in_the_whole() {
    for world in worlds() {
        let (context, rest) = (prompt(1, 41), [3, 1, 2]);
        let whole = [&context[..], &rest].concat();
        let scored = |start| SamplingParams {
            max_tokens: Some(0),
            prompt_logprobs: Some(1),
            prompt_logprobs_start: start,
            ..Default::default()
        };
        let mut engine = world.engine(world.options());
        let all =
            engine.answer(Request { prompt: whole.clone(), params: scored(0) }).prompt_logprobs.unwrap();
        let part =
            engine.answer(Request { prompt: whole.clone(), params: scored(41) }).prompt_logprobs.unwrap();
        assert!(engine.engine.stats().cached_tokens > 0, "{}", world.name);
        assert_eq!((&part[..41], &part[41..]), (&vec![None; 41][..], &all[41..]), "{}", world.name);

        let asked = SamplingParams {
            logprobs: Some(1),
            logprob_token_ids: vec![2, 4],
            max_tokens: Some(1),
            ..scored(41)
        };
        let answer = engine.answer(Request { prompt: whole[..43].to_vec(), params: asked });
        let last = all[43].as_ref().unwrap();
        assert_eq!(answer.logprobs[0].asked[0], last.chosen, "{}", world.name);
        assert_eq!(
            (answer.logprobs[0].asked[1].token, &answer.logprobs[0].top),
            (4, &last.top),
            "{}",
            world.name
        );
    }
}

#[test]
fn seeds_repeat_and_differ() {
    let world = &worlds()[0];
    let mut engine = world.engine(world.options());
    let mut sampled = |seed| {
        let params = SamplingParams { seed, max_tokens: Some(20), ..SamplingParams::default() };
        engine.answer(Request { prompt: prompt(1, 9), params }).tokens
    };
    assert_eq!(sampled(Some(1)), sampled(Some(1)));
    assert_ne!(sampled(Some(1)), sampled(Some(2)));
    assert_ne!(sampled(None), sampled(None));
}

#[test]
fn sequences_stop_where_they_should() {
    let world = &worlds()[0];
    let run = |json: &str| {
        let params: SamplingParams = serde_json::from_str(json).unwrap();
        world.engine(world.options()).answer(Request { prompt: prompt(1, 9), params })
    };
    let free = run(r#"{"seed": 1, "max_tokens": 30, "ignore_eos": true}"#).tokens;
    let (stop, at) = (free[6], free.iter().position(|&token| token == free[6]).unwrap());
    let stopped =
        run(&format!(r#"{{"seed": 1, "max_tokens": 30, "ignore_eos": true, "stop_token_ids": [{stop}]}}"#));
    assert_eq!((&stopped.tokens[..], stopped.finished), (&free[..=at], Some(FinishReason::Stop)));
    let later = run(&format!(
        r#"{{"seed": 1, "max_tokens": 30, "ignore_eos": true, "stop_token_ids": [{stop}], "min_tokens": 30}}"#
    ));
    assert_eq!((later.tokens.len(), later.finished), (30, Some(FinishReason::Length)));
    assert!(!later.tokens.contains(&stop));

    let eos = world.model.config.eos_token_ids[0];
    let bias = format!(r#""logit_bias": {{"{eos}": 100}}, "max_tokens": 8, "temperature": 0"#);
    let ended = run(&format!("{{{bias}}}"));
    assert_eq!((&ended.tokens[..], ended.finished), (&[eos][..], Some(FinishReason::Stop)));
    let ignored = run(&format!(r#"{{{bias}, "ignore_eos": true}}"#));
    assert_eq!((&ignored.tokens[..], ignored.finished), (&[eos; 8][..], Some(FinishReason::Length)));
    let delayed = run(&format!(r#"{{{bias}, "min_tokens": 5}}"#));
    assert_eq!((delayed.tokens.len(), delayed.finished), (6, Some(FinishReason::Stop)));

    let context = world.options().max_context;
    let full = run(r#"{"seed": 1, "ignore_eos": true}"#);
    assert_eq!((full.tokens.len(), full.finished), (context - 9, Some(FinishReason::Length)));
}

/// A token whose embedding is NaN ruins the sequence that holds it and no other.
#[test]
fn non_finite_logits_end_one_sequence() {
    for world in worlds() {
        let world = world.poisoned();
        // Few blocks and no prefix cache: the good ones get blocks that held NaN before.
        let mut engine =
            world.engine(EngineOptions { num_blocks: 6, prefix_cache: false, ..world.options() });
        let good = Request { prompt: prompt(2, 12), params: requests()[0].params.clone() };
        let bias = [(POISON, -100.0)].into(); // nor may it be generated
        let good = Request { params: SamplingParams { logit_bias: bias, ..good.params }, ..good };
        let expected = engine.answer(good.clone());
        assert_eq!(expected.tokens.len(), 20);

        let bad = [&prompt(3, 4)[..], &[POISON, 9]].concat();
        let plain = Request { prompt: bad.clone(), params: SamplingParams::greedy() };
        let scored = SamplingParams { prompt_logprobs: Some(1), ..SamplingParams::greedy() };
        let requests = vec![good.clone(), plain, Request { prompt: bad, params: scored }, good];
        let answers = engine.answers(requests.clone());
        assert_eq!((&answers[0], &answers[3]), (&expected, &expected), "{}", world.name);
        assert_eq!(engine.answers(requests), answers, "{}", world.name);
        for (answer, position) in answers[1..3].iter().zip([5, 4]) {
            let error = SequenceError::NonFiniteLogits { position };
            assert_eq!((answer.tokens.len(), &answer.finished), (0, &Some(FinishReason::Error(error))));
        }
        let stats = engine.engine.stats();
        assert_eq!(stats.free_blocks, stats.num_blocks);
    }
}

/// Random arrivals, cancellations and steps: everything that is not cancelled ends as it does alone, in a bounded
/// number of steps, and every block comes back.
#[test]
fn stress() {
    for world in worlds() {
        let expected = alone(&world);
        let mut dice = 0;
        let mut roll = |sides: usize| {
            dice += 1;
            prompt(dice, 4).iter().fold(0, |sum, id| sum * 53 + *id as usize) % sides
        };
        let options =
            EngineOptions { block_size: 4, num_blocks: 20, max_batched_tokens: 24, ..world.options() };
        let mut engine = world.engine(EngineOptions { max_sequences: 5, ..options });
        let mut alive: BTreeMap<SequenceId, usize> = BTreeMap::new();
        for _ in 0..300 {
            match roll(12) {
                0..2 => {
                    let which = roll(expected.len());
                    alive.insert(engine.engine.add(requests().swap_remove(which)).unwrap(), which);
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
        engine.finish();
        assert!(alive.len() > 10 && engine.engine.stats().preemptions > 0, "{:?}", engine.engine.stats());
        for (id, which) in alive {
            assert_eq!(engine.answers[&id], expected[which], "request {which} on {}", world.name);
        }
    }
}

#[test]
fn what_cannot_be_served_is_refused() {
    let world = &worlds()[0];
    let options = EngineOptions { max_context: 64, num_blocks: 3, block_size: 16, ..world.options() };
    let mut engine = world.engine(options.clone()).engine;
    let mut add = |n: usize, json: &str| {
        let params = serde_json::from_str(json).unwrap();
        engine.add(Request { prompt: prompt(1, n), params })
    };
    assert!(matches!(add(0, "{}"), Err(EngineError::EmptyPrompt)));
    assert!(matches!(
        add(64, "{}"),
        Err(EngineError::PromptTooLong { prompt: 64, generated: 1, context: 64 })
    ));
    assert!(matches!(add(65, "{}"), Err(EngineError::PromptTooLong { .. })));
    assert!(matches!(add(49, "{}"), Err(EngineError::KvMemory { needed: 4, num_blocks: 3, block_size: 16 })));
    assert!(add(40, r#"{"max_tokens": 9}"#).is_ok(), "48 tokens are computed");
    assert!(matches!(add(40, r#"{"max_tokens": 10}"#), Err(EngineError::KvMemory { .. })));
    assert!(matches!(add(1, r#"{"top_p": 2}"#), Err(EngineError::Parameter { field: "top_p", .. })));
    let foreign = Request { prompt: vec![1, 61], params: SamplingParams::default() };
    assert!(matches!(
        engine.add(foreign),
        Err(EngineError::TokenOutOfRange { field: "prompt", token: 61, .. })
    ));
    let refused = |options| Engine::new(world.model.clone(), world.kernels.clone(), options).err();
    let error = refused(EngineOptions { max_batched_tokens: 0, ..options.clone() });
    assert!(matches!(error, Some(EngineError::Parameter { field: "max_batched_tokens", .. })));
    let error = refused(EngineOptions { max_context: 97, ..options });
    assert!(matches!(error, Some(EngineError::Parameter { field: "max_context", .. })));
}
