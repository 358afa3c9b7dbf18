//! Which tokens run in the next step.
//!
//! There is no prefill phase and no decode phase: every sequence has some tokens and some of them computed, and each step
//! lets the computed ones catch up under one budget of tokens. A prompt that does not fit the budget is cut into
//! chunks; a sequence that generates is one whose computed tokens lag by one. Those always run; the rest of the budget,
//! less of it while they wait for the step, is shared by those that lag by more: each gets an equal part, so that a
//! short prompt does not wait for a long one, and what is left goes to the oldest.
//!
//! `running` and then `waiting` are always in the order of arrival. When blocks run out, the youngest running sequence
//! gives up its own and waits, to be recomputed; so the oldest always goes on, and every sequence becomes the oldest.
//!
//! What is left of the budget and of the blocks is room for proposals, tokens that may follow a sequence's own: they
//! are part of a chunk, never of the sequence, and count as computed once they have come true.
//!
//! It knows no model: blocks are numbers here, and predictions come from outside. Tests: `cargo test -p kanana-engine
//! scheduler`.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};

use crate::block_pool::{BlockId, BlockPool, PrefixId};
use crate::sequence::Sequence;
use crate::{EngineError, Result, SequenceId, Stats};

/// What may run at once.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub block_size: usize,
    pub max_batched_tokens: usize,
    pub prefill_beside_decode: usize,
    pub max_sequences: usize,
    pub prefix_cache: bool,
    /// Tokens proposed to one sequence in one step.
    pub proposals: RangeInclusive<usize>,
}

/// Positions of one sequence to compute in a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Index into [`Scheduler::running`].
    pub sequence: usize,
    /// Of the sequence's tokens, and behind all of them of those proposed.
    pub positions: Range<usize>,
    /// How many tokens may be proposed: their blocks are there.
    pub room: usize,
    /// Tokens that may follow the sequence's own.
    pub proposed: Vec<u32>,
}

impl Chunk {
    /// Appends a token that may follow.
    pub(crate) fn propose(&mut self, token: u32) {
        self.proposed.push(token);
        self.positions.end += 1;
    }

    /// Whether another token may be proposed: there is room, and the last one does not end the sequence.
    pub(crate) fn wants_more(&self, sequence: &Sequence) -> bool {
        let ends = |token| sequence.stop_ids.contains(token);
        self.proposed.len() < self.room && !self.proposed.last().is_some_and(ends)
    }

    /// Where the sequence's own tokens end in this chunk, and the proposals begin.
    pub(crate) fn own_end(&self) -> usize {
        self.positions.end - self.proposed.len()
    }

    /// The proposals up to a position: what is generated before the next token, if they come true.
    pub(crate) fn proposed_up_to(&self, position: usize) -> &[u32] {
        &self.proposed[..(position + 1).saturating_sub(self.own_end())]
    }

    /// The token at a position. It is the sequence's, or proposed.
    pub(crate) fn token(&self, sequence: &Sequence, position: usize) -> u32 {
        match position.checked_sub(self.own_end()) {
            Some(n) => self.proposed[n],
            None => sequence.tokens[position],
        }
    }
}

/// What a step has for its tokens.
struct Budget {
    /// Of all tokens, what nobody took.
    left: usize,
    /// For sequences that lag by one.
    generating: usize,
    /// For all others together.
    lagging: usize,
    /// Of that, for each of them.
    part: usize,
}

impl Budget {
    fn new(limits: &Limits, running: &[Sequence], waiting: bool) -> Self {
        let total = limits.max_batched_tokens;
        let generating = running.iter().filter(|sequence| sequence.lag() == 1).count().min(total);
        let most = if generating > 0 { limits.prefill_beside_decode } else { total };
        let lagging = most.min(total - generating);
        let sharing = running.len() - generating.min(running.len()) + usize::from(waiting);
        Budget { left: total, generating, lagging, part: lagging.div_ceil(sharing.max(1)) }
    }

    /// Takes from it for a sequence that lags by so much.
    fn take(&mut self, lag: usize) -> usize {
        if lag == 1 && self.generating > 0 {
            self.generating -= 1;
            self.left -= 1;
            return 1;
        }
        let taken = lag.min(self.part).min(self.lagging);
        self.lagging -= taken;
        self.left -= taken;
        taken
    }

    /// Lets a chunk grow by what nobody took.
    fn extend(&mut self, chunk: &mut Chunk, sequence: &Sequence) {
        let more = self.lagging.min(sequence.tokens.len() - chunk.positions.end);
        chunk.positions.end += more;
        self.lagging -= more;
        self.left -= more;
    }
}

pub(crate) struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    /// What was counted since the beginning; the rest of it is found out when asked for.
    counts: Stats,
}

impl Scheduler {
    pub(crate) fn new(num_blocks: usize, limits: Limits) -> Self {
        Scheduler {
            limits,
            pool: BlockPool::new(num_blocks),
            running: Vec::new(),
            waiting: VecDeque::new(),
            counts: Stats::default(),
        }
    }

    pub(crate) fn set_prefill_beside_decode(&mut self, tokens: usize) {
        self.limits.prefill_beside_decode = tokens;
    }

    /// Queues a sequence, which must fit the pool when it is alone.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Chooses the tokens of the next step and sees that their blocks are there, and those for proposals.
    pub(crate) fn schedule(&mut self) -> Vec<Chunk> {
        let mut budget = Budget::new(&self.limits, &self.running, !self.waiting.is_empty());
        let (mut chunks, mut index) = (Vec::new(), 0);
        while index < self.running.len() {
            match self.reserve(index, self.running[index].tokens.len()) {
                true => {
                    chunks.extend(self.chunk(index, &mut budget));
                    index += 1;
                }
                false => self.preempt_youngest(), // perhaps the one that asked, which ends the loop
            }
        }
        while budget.lagging > 0 && self.admit() {
            chunks.extend(self.chunk(self.running.len() - 1, &mut budget));
        }
        for chunk in &mut chunks {
            budget.extend(chunk, &self.running[chunk.sequence]);
        }
        for chunk in &mut chunks {
            if chunk.positions.end == self.running[chunk.sequence].tokens.len() {
                chunk.room = self.room(chunk.sequence, budget.left);
                budget.left -= chunk.room;
            }
        }
        chunks
    }

    /// Makes a prefix findable that no sequence has computed: takes blocks for it, as far as it fills them whole, lets
    /// `fill` write them, and lets them go. Errors: too few blocks are free; those of `fill`.
    pub(crate) fn fill_prefix(
        &mut self,
        tokens: &[u32],
        fill: impl FnOnce(&[BlockId]) -> Result<()>,
    ) -> Result<()> {
        let block_size = self.limits.block_size;
        let (needed, num_blocks) = (tokens.len() / block_size, self.pool.num_free());
        if needed > num_blocks {
            return Err(EngineError::KvMemory { needed, num_blocks, block_size });
        }
        let mut blocks: Vec<BlockId> = (0..needed).map_while(|_| self.pool.allocate()).collect();
        let filled = fill(&blocks);
        if filled.is_ok() {
            let mut prefix = PrefixId::ROOT;
            for (block, tokens) in blocks.iter_mut().zip(tokens.chunks_exact(block_size)) {
                (*block, prefix) = self.pool.publish(*block, prefix, tokens);
            }
        }
        blocks.into_iter().rev().for_each(|block| self.pool.release(block));
        filled
    }

    /// The running sequences, in the order of arrival: what [`Chunk::sequence`] points into until [`Self::retire`].
    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    pub(crate) fn running_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    /// Notes that the chunks' keys and values are in the cache, those of the proposals as far as they have come true,
    /// and makes the blocks they filled findable. The sequences have been given their new tokens.
    pub(crate) fn mark_computed(&mut self, chunks: &[Chunk]) {
        let block_size = self.limits.block_size;
        for chunk in chunks {
            let sequence = &mut self.running[chunk.sequence];
            let came_true = chunk.proposed.iter().zip(&sequence.tokens[chunk.own_end()..]);
            let accepted = came_true.take_while(|(proposed, token)| proposed == token).count();
            sequence.computed = chunk.own_end() + accepted;
            self.counts.computed_tokens += chunk.positions.len() as u64;
            sequence.pace.note(chunk.proposed.len(), accepted);
            self.counts.verifications += u64::from(!chunk.proposed.is_empty());
            self.counts.proposed_tokens += chunk.proposed.len() as u64;
            self.counts.accepted_tokens += accepted as u64;
            while self.limits.prefix_cache && (sequence.published + 1) * block_size <= sequence.computed {
                let n = sequence.published;
                let tokens = &sequence.tokens[n * block_size..(n + 1) * block_size];
                (sequence.block_table[n], sequence.prefix) =
                    self.pool.publish(sequence.block_table[n], sequence.prefix, tokens);
                sequence.published += 1;
            }
        }
    }

    /// Lets finished sequences go, and their blocks.
    pub(crate) fn retire(&mut self) {
        let (finished, running): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(|sequence| sequence.finished.is_some());
        self.running = running;
        finished.into_iter().for_each(|mut sequence| self.release(&mut sequence));
    }

    /// Forgets a sequence and frees its blocks; false when there is none of that name.
    pub(crate) fn cancel(&mut self, id: SequenceId) -> bool {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|sequence| sequence.id != id);
        self.waiting.len() < before
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            num_blocks: self.pool.num_blocks(),
            free_blocks: self.pool.num_free(),
            ..self.counts.clone()
        }
    }

    /// The next positions of a running sequence, as far as its part of the budget goes.
    fn chunk(&self, sequence: usize, budget: &mut Budget) -> Option<Chunk> {
        let Sequence { computed, ref tokens, .. } = self.running[sequence];
        let taken = budget.take(tokens.len() - computed);
        let positions = computed..computed + taken;
        (taken > 0).then_some(Chunk { sequence, positions, room: 0, proposed: Vec::new() })
    }

    /// How many tokens to propose behind those of a running sequence, with blocks for them: none that could not be used.
    fn room(&mut self, index: usize, budget: usize) -> usize {
        let sequence = &self.running[index];
        let len = sequence.tokens.len();
        let usable = sequence.max_tokens.saturating_sub(sequence.generated() + 1);
        let wanted = sequence.pace.proposals(&self.limits.proposals).min(usable).min(budget);
        self.reserve(index, len + wanted);
        wanted.min(self.running[index].block_table.len() * self.limits.block_size - len)
    }

    /// Gives a running sequence the blocks for so many tokens; false, with as many as there are, when that is too few.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        let sequence = &mut self.running[index];
        while sequence.block_table.len() < tokens.div_ceil(self.limits.block_size) {
            let Some(block) = self.pool.allocate() else { return false };
            sequence.block_table.push(block);
        }
        true
    }

    fn preempt_youngest(&mut self) {
        let mut sequence = self.running.pop().expect("preempted with nobody running: this is a bug");
        tracing::debug!(
            sequence = sequence.id.0,
            tokens = sequence.computed,
            "preempted: the KV cache is full"
        );
        self.release(&mut sequence);
        self.waiting.push_front(sequence);
        self.counts.preemptions += 1;
    }

    /// Moves the sequence that has waited longest to the running ones, with the blocks for all of its tokens, those
    /// of a known prefix computed already; false when there is none or no room for it.
    fn admit(&mut self) -> bool {
        if self.running.len() == self.limits.max_sequences {
            return false;
        }
        let Some(sequence) = self.waiting.front() else { return false };
        let block_size = self.limits.block_size;
        let cached = self.cached_prefix(sequence);
        let fresh = sequence.tokens.len().div_ceil(block_size) - cached.len();
        let revived = cached.iter().filter(|(block, _)| self.pool.is_free(*block)).count();
        if fresh + revived > self.pool.num_free() {
            return false;
        }
        let mut sequence = self.waiting.pop_front().expect("the front was just seen: this is a bug");
        for &(block, prefix) in &cached {
            self.pool.share(block);
            sequence.block_table.push(block);
            sequence.prefix = prefix;
        }
        sequence.published = cached.len();
        sequence.computed = cached.len() * block_size;
        self.counts.looked_up_tokens += sequence.tokens.len() as u64;
        self.counts.cached_tokens += sequence.computed as u64;
        if sequence.generated() == 0 {
            sequence.cached_tokens = sequence.computed;
        }
        let tokens = sequence.tokens.len();
        self.running.push(sequence);
        let reserved = self.reserve(self.running.len() - 1, tokens);
        debug_assert!(reserved, "the blocks were counted before");
        true
    }

    /// The published blocks that a sequence's tokens begin with, up to the first position whose logits are wanted: that
    /// one has to be computed, known or not.
    fn cached_prefix(&self, sequence: &Sequence) -> Vec<(BlockId, PrefixId)> {
        let mut cached = Vec::new();
        if !self.limits.prefix_cache {
            return cached;
        }
        let mut parent = PrefixId::ROOT;
        for tokens in sequence.tokens[..sequence.next_row].chunks_exact(self.limits.block_size) {
            let Some((block, prefix)) = self.pool.find(parent, tokens) else { break };
            cached.push((block, prefix));
            parent = prefix;
        }
        cached
    }

    /// Takes a sequence's blocks back, last first; none of its tokens are computed then.
    fn release(&mut self, sequence: &mut Sequence) {
        sequence.block_table.drain(..).rev().for_each(|block| self.pool.release(block));
        sequence.computed = 0;
        sequence.published = 0;
        sequence.prefix = PrefixId::ROOT;
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
