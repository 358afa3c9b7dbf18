//! The book-keeping of the paged KV cache: which blocks are held, which are free, and which hold a known prefix.
//!
//! A block is `block_size` consecutive positions of a sequence. Sequences with the same prefix hold the same blocks, so
//! a block has a reference count. A full block may be published: from then on it is found by what it holds, that is the
//! prefix before it and its own tokens, and stays findable after it was released until its memory is needed for
//! something else, least recently released first.
//!
//! It knows numbers only, no tensors: the cache's memory is the runner's. Tests: `cargo test -p kanana-engine block_pool`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The number of a block of the cache.
pub(crate) type BlockId = u32;

/// Stands for everything from the first token to the end of one published block. Never reused: two different prefixes
/// never have the same id, so a match is exact, where chained hashes could collide and hand out somebody else's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PrefixId(u64);

impl PrefixId {
    /// The empty prefix.
    pub(crate) const ROOT: PrefixId = PrefixId(0);
}

/// What a published block holds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Content {
    parent: PrefixId,
    tokens: Vec<u32>, // [block_size]
}

#[derive(Default)]
struct Block {
    references: u32,
    /// When it was last released: its key in `free` while there are no references.
    released: u64,
    published: Option<(Arc<Content>, PrefixId)>,
}

/// All blocks of a cache.
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Blocks without references, by the time they were released: the first is taken first.
    free: BTreeMap<u64, BlockId>,
    index: HashMap<Arc<Content>, BlockId>,
    clock: u64,
    prefixes: u64,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize) -> Self {
        let mut pool = BlockPool {
            blocks: Vec::new(),
            free: BTreeMap::new(),
            index: HashMap::new(),
            clock: 0,
            prefixes: 0,
        };
        pool.blocks.resize_with(num_blocks, Block::default);
        (0..num_blocks as BlockId).for_each(|id| pool.make_free(id));
        pool
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds, the published among them included.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn is_free(&self, id: BlockId) -> bool {
        self.blocks[id as usize].references == 0
    }

    /// A block to write to, with one reference; what it held is forgotten. None when all are held.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let (_, id) = self.free.pop_first()?;
        let block = &mut self.blocks[id as usize];
        block.references = 1;
        if let Some((content, _)) = block.published.take() {
            self.index.remove(&content);
        }
        Some(id)
    }

    /// Adds a reference to a published block.
    pub(crate) fn share(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if block.references == 0 {
            self.free.remove(&block.released);
        }
        block.references += 1;
    }

    /// Gives up one reference. A sequence releases its last block first, so that a prefix is never forgotten before
    /// its continuations.
    pub(crate) fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.references =
            block.references.checked_sub(1).expect("released a block that nobody holds: this is a bug");
        if block.references == 0 {
            self.make_free(id);
        }
    }

    /// The block that holds `tokens` after the prefix `parent`, and the prefix it completes.
    pub(crate) fn find(&self, parent: PrefixId, tokens: &[u32]) -> Option<(BlockId, PrefixId)> {
        let id = *self.index.get(&Content { parent, tokens: tokens.to_vec() })?;
        let (_, prefix) = self.blocks[id as usize].published.as_ref()?;
        Some((id, *prefix))
    }

    /// Makes a full block findable, and says which block to hold from now on: where another holds the same already,
    /// the caller's reference moves to that one, and the copy is given up.
    pub(crate) fn publish(&mut self, id: BlockId, parent: PrefixId, tokens: &[u32]) -> (BlockId, PrefixId) {
        if let Some((original, prefix)) = self.find(parent, tokens) {
            self.share(original);
            self.release(id);
            return (original, prefix);
        }
        self.prefixes += 1;
        let prefix = PrefixId(self.prefixes);
        let content = Arc::new(Content { parent, tokens: tokens.to_vec() });
        self.blocks[id as usize].published = Some((content.clone(), prefix));
        self.index.insert(content, id);
        (id, prefix)
    }

    fn make_free(&mut self, id: BlockId) {
        self.clock += 1;
        self.blocks[id as usize].released = self.clock;
        self.free.insert(self.clock, id);
    }

    /// Panics unless the books agree with each other and with `held`, the block tables of all sequences.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, held: impl Iterator<Item = &'a [BlockId]>) {
        let mut references = vec![0; self.blocks.len()];
        held.flatten().for_each(|&id| references[id as usize] += 1);
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, references[id], "references of block {id}");
            let in_free = self.free.get(&block.released) == Some(&(id as BlockId));
            assert_eq!(in_free, block.references == 0, "block {id} free");
            if let Some((content, _)) = &block.published {
                assert_eq!(self.index.get(content), Some(&(id as BlockId)), "index of block {id}");
                let known =
                    |p| self.blocks.iter().any(|b| b.published.as_ref().is_some_and(|(_, q)| *q == p));
                assert!(
                    content.parent == PrefixId::ROOT || known(content.parent),
                    "the prefix of block {id} is gone"
                );
            }
        }
        assert_eq!(self.index.len(), self.blocks.iter().filter(|b| b.published.is_some()).count());
        assert_eq!(self.free.len(), references.iter().filter(|&&r| r == 0).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pool: &BlockPool, held: &[BlockId]) {
        pool.check([held].into_iter());
    }

    #[test]
    fn blocks_run_out_and_come_back() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        assert_ne!(a, b);
        assert_eq!((pool.allocate(), pool.num_free()), (None, 0));
        check(&pool, &[a, b]);
        pool.release(a);
        assert_eq!(pool.allocate(), Some(a));
    }

    #[test]
    fn a_published_block_is_found_until_its_memory_is_needed() {
        let mut pool = BlockPool::new(2);
        let a = pool.allocate().unwrap();
        let (same, prefix) = pool.publish(a, PrefixId::ROOT, &[1, 2]);
        assert_eq!(same, a);
        pool.release(a);
        assert_eq!(pool.find(PrefixId::ROOT, &[1, 2]), Some((a, prefix)));
        pool.share(a);
        check(&pool, &[a]);
        pool.release(a);
        assert_ne!(pool.allocate(), Some(a), "the block released last is taken last");
        assert_eq!(pool.allocate(), Some(a));
        assert_eq!(pool.find(PrefixId::ROOT, &[1, 2]), None);
    }

    #[test]
    fn the_same_tokens_after_another_prefix_are_another_content() {
        let mut pool = BlockPool::new(4);
        let ids: Vec<_> = (0..3).map(|_| pool.allocate().unwrap()).collect();
        let (_, one) = pool.publish(ids[0], PrefixId::ROOT, &[1, 1]);
        let (_, two) = pool.publish(ids[1], PrefixId::ROOT, &[2, 2]);
        pool.publish(ids[2], one, &[3, 3]);
        assert!(pool.find(one, &[3, 3]).is_some());
        assert_eq!(pool.find(two, &[3, 3]), None);
        assert_eq!(pool.find(PrefixId::ROOT, &[3, 3]), None);
    }

    #[test]
    fn a_second_copy_gives_way_to_the_first() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let first = pool.publish(a, PrefixId::ROOT, &[5]);
        assert_eq!(pool.publish(b, PrefixId::ROOT, &[5]), first);
        check(&pool, &[a, a]);
        assert!(pool.is_free(b));
    }

    #[test]
    fn a_prefix_outlives_its_continuations() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let (_, prefix) = pool.publish(a, PrefixId::ROOT, &[1]);
        pool.publish(b, prefix, &[2]);
        [b, a].into_iter().for_each(|id| pool.release(id));
        assert_eq!(pool.allocate(), Some(b));
        check(&pool, &[b]);
    }

    #[test]
    #[should_panic(expected = "this is a bug")]
    fn releasing_twice_is_caught() {
        let mut pool = BlockPool::new(1);
        let a = pool.allocate().unwrap();
        pool.release(a);
        pool.release(a);
    }
}
