use std::collections::BTreeMap;

use super::*;
use crate::sequence::{FinishReason, Prediction, Resolved, StepOutput};
use crate::{Logprobs, Request, SamplingParams, TokenLogprob};

/// A scheduler whose model is arithmetic: the next token is a hash of all tokens before it, read through the block
/// tables from a cache that holds token ids, so that a wrong block gives a wrong token.
struct World {
    scheduler: Scheduler,
    guesses: Dice,
    /// Of five proposals.
    wrong: usize,
    cache: Vec<Option<u32>>, // [num_blocks * block_size]
    outputs: BTreeMap<SequenceId, Vec<StepOutput>>,
    next_id: u64,
}

fn hash(tokens: impl IntoIterator<Item = u32>) -> u32 {
    tokens.into_iter().fold(7, |h: u32, token| h.wrapping_mul(31).wrapping_add(token)) % 5
}

impl World {
    fn new(num_blocks: usize, limits: Limits) -> Self {
        let cache = vec![None; num_blocks * limits.block_size];
        let scheduler = Scheduler::new(num_blocks, limits);
        World { scheduler, guesses: Dice(0), wrong: 1, cache, outputs: BTreeMap::new(), next_id: 0 }
    }

    fn add(&mut self, prompt: &[u32], max_tokens: usize) -> SequenceId {
        self.add_with(prompt, max_tokens, SamplingParams::default())
    }

    fn add_with(&mut self, prompt: &[u32], max_tokens: usize, params: SamplingParams) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let resolved = Resolved { seed: 0, max_tokens, eos_token_ids: vec![] };
        self.scheduler.add(Sequence::new(id, Request { prompt: prompt.to_vec(), params }, resolved));
        id
    }

    fn step(&mut self) -> Vec<Chunk> {
        let mut chunks = self.scheduler.schedule();
        let rows: usize = chunks.iter().map(|chunk| chunk.positions.len() + chunk.room).sum();
        assert!(rows <= self.scheduler.limits.max_batched_tokens);
        chunks.iter_mut().for_each(|chunk| self.propose(chunk));
        let block_size = self.scheduler.limits.block_size;
        let mut predictions = Vec::new();
        for chunk in &chunks {
            let sequence = &self.scheduler.running[chunk.sequence];
            assert!(!chunk.positions.is_empty());
            assert_eq!(chunk.positions.start, sequence.computed);
            let slot = |p: usize| sequence.block_table[p / block_size] as usize * block_size + p % block_size;
            for p in chunk.positions.clone() {
                self.cache[slot(p)] = Some(chunk.token(sequence, p));
            }
            for p in sequence.rows(&chunk.positions) {
                if chunk.proposed_up_to(p) != self.truth(chunk, p) {
                    break; // it builds on a proposal that was wrong
                }
                let token = hash((0..=p).map(|q| self.cache[slot(q)].expect("a key that was never written")));
                predictions.push((
                    chunk.sequence,
                    match sequence.tokens.get(p + 1) {
                        None => Prediction::Token { token, logprobs: None },
                        Some(&next) => {
                            let chosen = TokenLogprob { token: next, logprob: token as f32 };
                            Prediction::Prompt(Logprobs { chosen, top: vec![], asked: vec![] })
                        }
                    },
                ));
            }
        }
        for (index, prediction) in predictions {
            if let Some(output) = self.scheduler.running_mut()[index].accept(prediction) {
                self.outputs.entry(output.id).or_default().push(output);
            }
        }
        self.scheduler.mark_computed(&chunks);
        self.scheduler.retire();
        self.check();
        chunks
    }

    /// Fills a chunk's room with guesses.
    fn propose(&mut self, chunk: &mut Chunk) {
        for _ in 0..chunk.room {
            let right = *self.truth(chunk, chunk.positions.end).last().expect("the token after the chunk");
            let wrong = self.guesses.below(5) < self.wrong;
            chunk.propose(if wrong { right + 1 } else { right });
        }
    }

    /// What [`Chunk::proposed_up_to`] would be if all of it came true.
    fn truth(&self, chunk: &Chunk, position: usize) -> Vec<u32> {
        let own = &self.scheduler.running[chunk.sequence].tokens[..chunk.own_end()];
        alone(own, (position + 1).saturating_sub(own.len()))
    }

    /// The books agree, nobody runs over the limits, and the order of arrival is kept.
    fn check(&self) {
        let Scheduler { pool, running, waiting, limits, .. } = &self.scheduler;
        pool.check(running.iter().chain(waiting).map(|sequence| &sequence.block_table[..]));
        assert!(running.len() <= limits.max_sequences);
        assert!(waiting.iter().all(|sequence| sequence.computed == 0 && sequence.block_table.is_empty()));
        let ids: Vec<_> = running.iter().chain(waiting).map(|sequence| sequence.id).collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }

    /// Steps until nothing is left; how many it took.
    fn finish(&mut self, at_most: usize) -> usize {
        for steps in 0..=at_most {
            if self.scheduler.is_idle() {
                assert_eq!(self.scheduler.stats().free_blocks, self.scheduler.stats().num_blocks);
                return steps;
            }
            self.step();
        }
        panic!("not finished after {at_most} steps");
    }

    fn tokens(&self, id: SequenceId) -> Vec<u32> {
        self.outputs[&id].iter().filter_map(|output| output.token).collect()
    }
}

fn limits(block_size: usize, max_batched_tokens: usize, max_sequences: usize) -> Limits {
    Limits {
        block_size,
        max_batched_tokens,
        prefill_beside_decode: max_batched_tokens,
        max_sequences,
        prefix_cache: true,
        proposals: 0..=0,
    }
}

/// What a sequence must get, whatever else happens.
fn alone(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    (0..max_tokens).for_each(|_| tokens.push(hash(tokens.iter().copied())));
    tokens.split_off(prompt.len())
}

fn chunk(sequence: usize, positions: Range<usize>) -> Chunk {
    Chunk { sequence, positions, room: 0, proposed: vec![] }
}

#[test]
fn a_step_mixes_newest_tokens_and_chunks_of_prompts() {
    let mut world = World::new(32, limits(2, 6, 4));
    world.add(&[1, 2], 4);
    assert_eq!(world.step(), [chunk(0, 0..2)]);
    world.add(&[1, 1, 1, 1, 1, 1, 1], 1);
    world.add(&[3], 1);
    assert_eq!(world.step(), [chunk(0, 2..3), chunk(1, 0..5)]);
    assert_eq!(world.step(), [chunk(0, 3..4), chunk(1, 5..7), chunk(2, 0..1)]);
    assert_eq!(world.step(), [chunk(0, 4..5)]);
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_known_prefix_is_not_computed_again_except_for_its_last_token() {
    let mut world = World::new(32, limits(2, 64, 4));
    world.add(&[1, 2, 3, 4, 5], 1);
    world.step();
    world.add(&[1, 2, 3, 4, 9], 1);
    world.add(&[1, 2, 3, 4], 1); // whole: its last token is computed for its logits
    world.add(&[2, 2, 3, 4, 5], 1);
    assert_eq!(world.step(), [chunk(0, 4..5), chunk(1, 2..4), chunk(2, 0..5)]);
    assert_eq!((world.scheduler.stats().looked_up_tokens, world.scheduler.stats().cached_tokens), (19, 6));
}

#[test]
fn prompt_logprobs_need_every_position_computed() {
    let mut world = World::new(32, limits(2, 3, 4));
    let prompt = [1, 2, 3, 4, 5];
    world.add(&prompt, 1);
    world.finish(9);
    let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::default() };
    let id = world.add_with(&prompt, 1, params);
    assert_eq!(world.step(), [chunk(0, 0..3)]);
    assert_eq!(world.step(), [chunk(0, 3..5)]);
    let expected: Vec<_> = (1..5).map(|n| hash(prompt[..n].iter().copied()) as f32).collect();
    let got = world.outputs[&id][0].prompt_logprobs.as_ref().unwrap();
    assert_eq!(got[1..].iter().map(|p| p.as_ref().unwrap().chosen.logprob).collect::<Vec<_>>(), expected);
    assert_eq!(world.tokens(id), alone(&prompt, 1));
}

#[test]
fn the_youngest_gives_way_and_is_recomputed() {
    // Two sequences of two blocks fill four blocks; the fifth token of either needs another.
    let mut world = World::new(4, limits(2, 64, 4));
    let ids = [world.add(&[1, 2, 3], 5), world.add(&[3, 2, 1], 5)];
    world.finish(20);
    assert!(world.scheduler.stats().preemptions > 0);
    assert_eq!(world.tokens(ids[0]), alone(&[1, 2, 3], 5));
    assert_eq!(world.tokens(ids[1]), alone(&[3, 2, 1], 5));
    let finished = world.outputs[&ids[0]].last().unwrap().finished.clone();
    assert_eq!(finished, Some(FinishReason::Length));
}

#[test]
fn cancelling_frees_blocks_at_once() {
    let mut world = World::new(4, limits(2, 64, 1));
    let (first, second) = (world.add(&[1, 2, 3], 9), world.add(&[1, 2, 3], 1));
    world.step();
    assert!(world.scheduler.cancel(first));
    assert_eq!(world.scheduler.stats().free_blocks, 4);
    assert!(!world.scheduler.cancel(first), "gone already");
    assert!(world.scheduler.cancel(second), "while waiting");
    assert!(world.scheduler.is_idle());
}

#[test]
fn without_a_prefix_cache_nothing_is_looked_up() {
    let mut world = World::new(8, Limits { prefix_cache: false, ..limits(2, 64, 4) });
    for _ in 0..2 {
        world.add(&[1, 2, 3, 4, 5], 1);
        assert_eq!(world.step(), [chunk(0, 0..5)]);
    }
    assert_eq!(world.scheduler.stats().cached_tokens, 0);
}

/// SplitMix-like numbers for the stress test below.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (crate::sampler::uniform(self.0, n) * n as f64) as usize
    }
}

/// Random arrivals, cancellations and steps in a pool that is too small: every sequence that is not cancelled gets
/// exactly its tokens, in a bounded number of steps, and every block comes back.
fn check_stress(seed: u64, num_blocks: usize, limits: Limits) -> Stats {
    let mut dice = Dice(seed << 32);
    let capacity = num_blocks * limits.block_size;
    let mut world = World::new(num_blocks, limits);
    let mut wanted: BTreeMap<SequenceId, (Vec<u32>, usize)> = BTreeMap::new();
    for _ in 0..400 {
        match dice.below(8) {
            0..2 => {
                // Two symbols and short prompts: prefixes are often shared.
                let prompt: Vec<u32> =
                    (0..1 + dice.below(capacity / 2)).map(|_| dice.below(2) as u32).collect();
                let max_tokens = 1 + dice.below(capacity - prompt.len() + 1);
                let prompt_logprobs = (dice.below(4) == 0).then_some(0);
                let params = SamplingParams { prompt_logprobs, ..SamplingParams::default() };
                wanted.insert(world.add_with(&prompt, max_tokens, params), (prompt, max_tokens));
            }
            2 if !wanted.is_empty() => {
                let id = SequenceId(dice.below(world.next_id as usize) as u64);
                if world.scheduler.cancel(id) {
                    wanted.remove(&id);
                }
                world.check();
            }
            _ => drop(world.step()),
        }
    }
    let work: usize = wanted.values().map(|(prompt, max_tokens)| (prompt.len() + max_tokens) * 2).sum();
    world.finish(work);
    for (id, (prompt, max_tokens)) in wanted {
        assert_eq!(world.tokens(id), alone(&prompt, max_tokens), "seed {seed}, sequence {id}");
    }
    world.scheduler.stats()
}

#[test]
fn stress() {
    for seed in 0..40 {
        for stats in [
            check_stress(seed, 6, limits(4, 7, 3)),
            check_stress(seed, 12, limits(2, 64, 8)),
            check_stress(seed, 9, limits(3, 2, 4)),
        ] {
            assert!(
                stats.preemptions > 0 && stats.cached_tokens > 0,
                "seed {seed} stressed nothing: {stats:?}"
            );
        }
        check_stress(seed, 9, Limits { prefix_cache: false, ..limits(3, 16, 5) });
        let proposing = |limits| Limits { proposals: 1..=5, ..limits };
        for stats in [
            check_stress(seed, 6, proposing(limits(4, 7, 3))),
            check_stress(seed, 12, proposing(limits(2, 64, 8))),
            check_stress(seed, 30, proposing(limits(1, 9, 3))),
        ] {
            let Stats { preemptions, cached_tokens, proposed_tokens, accepted_tokens, .. } = stats;
            assert!(preemptions > 0 && cached_tokens > 0, "seed {seed} stressed nothing: {stats:?}");
            assert!(accepted_tokens > 0 && proposed_tokens > accepted_tokens, "seed {seed}: {stats:?}");
        }
    }
}

#[test]
fn only_proposals_that_came_true_are_computed() {
    let check = |wrong, next: Range<usize>| {
        let mut world = World::new(32, Limits { proposals: 4..=4, ..limits(2, 64, 4) });
        world.wrong = wrong;
        world.add(&[1, 2], 20);
        world.step();
        let chunk = world.step().remove(0);
        assert_eq!(chunk.positions.start..chunk.own_end(), next);
    };
    check(0, 6..7);
    check(5, 2..3);
}

#[test]
fn proposals_take_what_is_left() {
    let proposing = |limits| Limits { proposals: 0..=4, ..limits };
    let rooms = |world: &mut World| -> Vec<(Range<usize>, usize)> {
        world.step().into_iter().map(|chunk| (chunk.positions.start..chunk.own_end(), chunk.room)).collect()
    };
    // Of the budget of 8, the prompts take theirs first; the oldest is served first with the rest.
    let mut world = World::new(32, proposing(limits(2, 8, 4)));
    world.add(&[1, 2], 9);
    world.add(&[3], 2);
    world.add(&[4], 1);
    assert_eq!(rooms(&mut world), [(0..2, 4), (0..1, 0), (0..1, 0)]);
    // A chunk that does not reach the end of its tokens has no room.
    let mut world = World::new(32, proposing(limits(2, 3, 4)));
    world.add(&[1, 2, 3, 4], 9);
    assert_eq!(rooms(&mut world), [(0..3, 0)]);
    assert_eq!(rooms(&mut world), [(3..4, 2)]);
    // Blocks: two sequences of three tokens fill four of five; there is one more for the oldest.
    let mut world = World::new(5, proposing(limits(2, 64, 4)));
    world.add(&[1, 2, 3], 5);
    world.add(&[3, 2, 1], 5);
    assert_eq!(rooms(&mut world), [(0..3, 3), (0..3, 1)]);
}

#[test]
fn a_long_prompt_does_not_hold_up_a_stream() {
    let limits = Limits { prefill_beside_decode: 3, ..limits(4, 16, 4) };
    let mut world = World::new(40, limits);
    let stream = world.add(&[1, 2], 20);
    world.step();
    let long = world.add(&[3; 40], 2);
    for step in 1..=13 {
        let lengths: Vec<usize> = world.step().iter().map(|chunk| chunk.positions.len()).collect();
        assert_eq!(lengths, [1, 3]);
        assert_eq!(world.outputs[&stream].len(), 1 + step, "a token at every step");
    }
    assert!(!world.outputs.contains_key(&long));
    world.finish(40);
    assert_eq!(world.outputs[&long].len(), 2);
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut world = World::new(40, limits(4, 8, 4));
    world.add(&[1; 60], 1);
    world.step();
    let short = world.add(&[2, 3, 4], 1);
    world.step();
    assert_eq!(world.outputs[&short].len(), 1);
    assert_eq!(world.finish(20), 6, "and the long one gets what is left: 8, 5, then 8 at every step");
}

#[test]
fn what_was_in_the_prefix_cache_is_told_once() {
    let mut world = World::new(20, limits(4, 16, 4));
    let first = world.add(&[1, 2, 3, 4, 5, 6], 3);
    world.finish(10);
    let second = world.add(&[1, 2, 3, 4, 5, 7], 3);
    world.finish(10);
    let told =
        |id: SequenceId| -> Vec<usize> { world.outputs[&id].iter().map(|o| o.cached_tokens).collect() };
    assert_eq!((told(first), told(second)), (vec![0, 0, 0], vec![4, 0, 0]));
}
