//! What a stage reads: documents of several sources in the proportions of their weights, at every point of the stage.
//!
//! The order follows from a seed; a position in it is a few numbers, from which it goes on bit by bit. Activations have no
//! batch axis, so there are no rows to fill and no padding: a batch is sequences, one after the other, up to a number
//! of tokens. A document that is longer than a sequence goes on in the next one, and the token before the cut still
//! predicts the one behind it. Tests: `cargo test -p kanana-data mixture`.

use serde::{Deserialize, Serialize};

use crate::{DataError, IGNORED, Result, Shards};

/// A source of a mixture.
pub struct Source {
    /// The tokens.
    pub shards: Shards,
    /// Its share of the stage's tokens, relative to the others.
    pub weight: f64,
    /// How often it may be read.
    pub max_epochs: f64,
}

/// Where a mixture stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureState {
    sources: Vec<Position>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    /// Times the source was read through.
    epoch: u64,
    /// Documents of this epoch that were read.
    document: usize,
    /// Tokens of the next document that were read.
    offset: usize,
    /// Tokens read in all.
    tokens: u64,
}

/// Tokens of one document, and what follows each.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The ids.
    pub ids: Vec<u32>,
    /// The next id, or [`IGNORED`] where it is not learnt.
    pub targets: Vec<u32>,
}

/// Draws sequences from sources.
pub struct Mixture {
    sources: Vec<Source>,
    orders: Vec<Vec<u32>>, // of each source's epoch
    state: MixtureState,
    seed: u64,
    /// Documents are never cut: conversations.
    whole: bool,
}

impl Mixture {
    /// A mixture at its beginning. `tokens`: how many the stage will take; `whole`: conversations, which are not cut.
    ///
    /// Errors: no source, weights that are not positive, a source that would be read more often than allowed.
    pub fn new(stage: &str, sources: Vec<Source>, tokens: u64, seed: u64, whole: bool) -> Result<Self> {
        let failed = |problem: String| DataError::Mixture { stage: stage.to_owned(), problem };
        let total: f64 = sources.iter().map(|source| source.weight).sum();
        if sources.iter().any(|source| !(source.weight > 0.0 && source.weight.is_finite()))
            || sources.is_empty()
        {
            return Err(failed("expected sources with weights above zero".to_owned()));
        }
        for source in &sources {
            let needed = tokens as f64 * source.weight / total;
            let (has, name) = (source.shards.info().tokens, source.shards.dir().display());
            // A limit that is no number allows nothing.
            let allowed = needed <= has as f64 * source.max_epochs;
            if !allowed || has == 0 {
                return Err(failed(format!(
                    "{name} would be read {:.1} times for {needed:.0} of its {has} tokens, and max_epochs is {}: \
                     lower its weight or the stage's tokens, or raise max_epochs",
                    needed / has as f64,
                    source.max_epochs
                )));
            }
        }
        let state = MixtureState { sources: vec![Position::default(); sources.len()] };
        let mut mixture = Mixture { orders: Vec::new(), sources, state, seed, whole };
        mixture.orders = (0..mixture.sources.len()).map(|i| mixture.order(i, 0)).collect();
        Ok(mixture)
    }

    /// Where it stands.
    pub fn state(&self) -> &MixtureState {
        &self.state
    }

    /// Goes on from where another stood.
    ///
    /// Errors: the state is of other sources.
    pub fn restore(&mut self, stage: &str, state: MixtureState) -> Result<()> {
        let failed = || {
            let problem = "the state was saved with other sources".to_owned();
            Err(DataError::Mixture { stage: stage.to_owned(), problem })
        };
        if state.sources.len() != self.sources.len() {
            return failed();
        }
        let orders: Vec<_> =
            state.sources.iter().enumerate().map(|(i, at)| self.order(i, at.epoch)).collect();
        for ((at, order), source) in state.sources.iter().zip(&orders).zip(&self.sources) {
            let document = order.get(at.document).map(|&document| document as usize);
            if document.is_none_or(|document| at.offset >= source.shards.document_len(document)) {
                return failed();
            }
        }
        (self.state, self.orders) = (state, orders);
        Ok(())
    }

    /// The sources.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Times that each source was read, with what was read of it.
    pub fn epochs(&self) -> impl Iterator<Item = f64> {
        let of = |(at, source): (&Position, &Source)| at.tokens as f64 / source.shards.info().tokens as f64;
        self.state.sources.iter().zip(&self.sources).map(of)
    }

    /// Sequences of at most `longest` tokens, `tokens` of them in all; fewer where only whole conversations fit. A
    /// conversation that is longer than a sequence is cut at its end.
    pub fn next(&mut self, tokens: usize, longest: usize) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut room = tokens;
        while room > 0 {
            let i = self.most_owed();
            let at = &self.state.sources[i];
            let document = self.orders[i][at.document] as usize;
            let left = self.sources[i].shards.document_len(document) - at.offset;
            let count = left.min(longest);
            if self.whole && count > room {
                break;
            }
            let count = count.min(room);
            // One more, which the last of them predicts.
            let read = self.sources[i].shards.read(document, at.offset, count + 1)?;
            let target = |j: usize| match read.learnt.get(j + 1) {
                Some(true) => read.ids[j + 1],
                _ => IGNORED,
            };
            let piece = Piece { ids: read.ids[..count].to_vec(), targets: (0..count).map(target).collect() };
            room -= count;
            self.advance(i, count, left);
            // The last token of a document, cut off from the others, predicts nothing.
            if piece.targets.iter().any(|&target| target != IGNORED) {
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }

    /// The source that is the furthest behind its share.
    fn most_owed(&self) -> usize {
        let share = |i: usize| self.state.sources[i].tokens as f64 / self.sources[i].weight;
        (0..self.sources.len()).min_by(|&a, &b| share(a).total_cmp(&share(b))).unwrap_or(0)
    }

    fn advance(&mut self, i: usize, count: usize, left: usize) {
        let documents = self.orders[i].len();
        let at = &mut self.state.sources[i];
        at.tokens += count as u64;
        if count < left && !self.whole {
            at.offset += count;
            return;
        }
        (at.offset, at.document) = (0, at.document + 1);
        if at.document == documents {
            (at.document, at.epoch) = (0, at.epoch + 1);
            self.orders[i] = self.order(i, self.state.sources[i].epoch);
        }
    }

    /// The documents of a source in the order of an epoch. (Fisher and Yates; numbers of SplitMix64.)
    fn order(&self, i: usize, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.sources[i].shards.info().documents as u32).collect();
        let mut state = self.seed ^ (i as u64) << 32 ^ epoch;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        for last in (1..order.len()).rev() {
            order.swap(last, (next() % (last as u64 + 1)) as usize);
        }
        order
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{ShardWriter, Tokens};

    /// Documents of these lengths; token j of document i is 100·i + j.
    fn source(root: &std::path::Path, name: &str, lengths: &[usize], weight: f64, max_epochs: f64) -> Source {
        std::fs::write(root.join("tokenizer.json"), "{}").unwrap();
        let dir = root.join(name);
        if !dir.exists() {
            let mut writer = ShardWriter::create(&dir, root, 100_000).unwrap();
            for (i, &n) in lengths.iter().enumerate() {
                let ids = (0..n as u32).map(|j| 100 * i as u32 + j).collect();
                writer.push(&Tokens { ids, learnt: (0..n).map(|j| j > 0).collect() }, i as u64, n).unwrap();
            }
            writer.finish().unwrap();
        }
        Source { shards: Shards::open(&dir).unwrap(), weight, max_epochs }
    }

    const LENGTHS: [usize; 5] = [7, 2, 30, 11, 5];

    fn mixture(root: &std::path::Path, whole: bool) -> Mixture {
        let sources =
            vec![source(root, "a", &LENGTHS, 1.0, 100.0), source(root, "b", &[9, 9, 9, 40], 3.0, 100.0)];
        Mixture::new("test", sources, 400, 5, whole).unwrap()
    }

    #[test]
    fn every_token_but_the_first_is_a_target_once_an_epoch() {
        let root = tempfile::tempdir().unwrap();
        let mut mixture =
            Mixture::new("test", vec![source(root.path(), "a", &LENGTHS, 1.0, 1.0)], 55, 3, false).unwrap();
        let mut targets: Vec<u32> = Vec::new();
        for _ in 0..11 {
            let pieces = mixture.next(5, 4).unwrap();
            assert!(
                pieces.iter().all(|piece| piece.ids.len() <= 4 && piece.ids.len() == piece.targets.len())
            );
            targets.extend(pieces.iter().flat_map(|piece| &piece.targets).filter(|&&t| t != IGNORED));
        }
        targets.sort_unstable();
        let mut expected: Vec<u32> =
            (0..5).flat_map(|i| (1..LENGTHS[i] as u32).map(move |j| 100 * i as u32 + j)).collect();
        expected.sort_unstable();
        assert_eq!(targets, expected);
        assert_eq!(mixture.epochs().collect::<Vec<_>>(), [1.0]);
    }

    #[test]
    fn nothing_is_lost_whatever_the_sizes() {
        let root = tempfile::tempdir().unwrap();
        let (learnt, epochs) = (LENGTHS.iter().map(|n| n - 1).sum::<usize>(), 3);
        for longest in [1, 2, 7, 29, 30, 31, 100] {
            for tokens in [1, 3, 55, 64] {
                let sources = vec![source(root.path(), "a", &LENGTHS, 1.0, 3.0)];
                let mut mixture = Mixture::new("test", sources, 165, 9, false).unwrap();
                let mut pieces = Vec::new();
                // The last batch ends where the epoch does.
                for left in (1..=epochs * 55).rev().step_by(tokens) {
                    pieces.extend(mixture.next(tokens.min(left), longest).unwrap());
                }
                let mut times = std::collections::BTreeMap::new();
                for piece in &pieces {
                    assert!(piece.ids.len() <= longest);
                    for (id, target) in piece.ids.iter().zip(&piece.targets) {
                        if *target != IGNORED {
                            assert_eq!(*target, id + 1, "the next of the same document");
                            *times.entry(*target).or_insert(0) += 1;
                        }
                    }
                }
                let what = format!("sequences of {longest}, batches of {tokens}");
                assert_eq!(times.len(), learnt, "{what}");
                assert!(times.values().all(|&count| count == epochs), "{what}");
            }
        }
    }

    #[test]
    fn an_order_follows_from_the_seed_and_the_epoch() {
        let root = tempfile::tempdir().unwrap();
        let lengths = [3; 40];
        let firsts = |seed| -> Vec<u32> {
            let sources = vec![source(root.path(), "a", &lengths, 1.0, 2.0)];
            let mut mixture = Mixture::new("test", sources, 240, seed, false).unwrap();
            mixture.next(240, 3).unwrap().iter().map(|piece| piece.ids[0]).collect()
        };
        let order = firsts(1);
        assert_eq!(order, firsts(1));
        assert_ne!(order, firsts(2));
        assert_ne!(order[..40], order[40..], "another epoch, another order");
        for epoch in order.chunks(40) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..40).map(|i| 100 * i).collect::<Vec<u32>>(), "each document once");
        }
    }

    #[test]
    fn positions_of_other_sources_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut mixture = mixture(root.path(), false);
        let whole: serde_json::Value = serde_json::to_value(mixture.state()).unwrap();
        let mut check = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut state = whole.clone();
            change(&mut state["sources"]);
            let error = mixture.restore("test", serde_json::from_value(state).unwrap()).unwrap_err();
            assert!(error.to_string().contains("other sources"), "{error}");
            assert_eq!(serde_json::to_value(mixture.state()).unwrap(), whole, "nothing changes");
        };
        check(&|sources| drop(sources.as_array_mut().unwrap().pop()));
        check(&|sources| sources[0]["document"] = 5.into());
        check(&|sources| sources[1]["offset"] = 40.into());
    }

    #[test]
    fn a_restored_mixture_goes_on_bit_by_bit() {
        for whole in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let mut straight = mixture(root.path(), whole);
            for step in 0..20 {
                let text = serde_json::to_string(straight.state()).unwrap();
                let mut resumed = mixture(root.path(), whole);
                resumed.restore("test", serde_json::from_str(&text).unwrap()).unwrap();
                assert_eq!(straight.next(50, 16).unwrap(), resumed.next(50, 16).unwrap(), "step {step}");
            }
        }
    }

    #[test]
    fn proportions_hold_all_along() {
        let root = tempfile::tempdir().unwrap();
        let mut mixture = mixture(root.path(), false);
        for step in 1..30 {
            mixture.next(64, 16).unwrap();
            let [a, b] = [0, 1].map(|i| mixture.state.sources[i].tokens as f64);
            assert!((b - 3.0 * a).abs() <= 4.0 * 16.0, "step {step}: {a}, {b}");
        }
    }

    #[test]
    fn conversations_stay_whole() {
        let root = tempfile::tempdir().unwrap();
        let mut mixture = mixture(root.path(), true);
        for _ in 0..20 {
            let pieces = mixture.next(60, 40).unwrap();
            assert!(pieces.iter().all(|piece| piece.ids[0] % 100 == 0), "each begins at its beginning");
            assert!(pieces.iter().map(|piece| piece.ids.len()).sum::<usize>() <= 60);
        }
    }

    #[test]
    fn a_stage_that_would_run_out_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let error = |weight, max_epochs, tokens| {
            let sources = vec![source(root.path(), "a", &LENGTHS, weight, max_epochs)];
            Mixture::new("broad", sources, tokens, 1, false).err().expect("an error").to_string()
        };
        let text = error(1.0, 2.0, 200);
        assert!(
            text.contains("broad") && text.contains("3.6 times") && text.contains("max_epochs"),
            "{text}"
        );
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(error(weight, 2.0, 10).contains("above zero"));
        }
        assert!(error(1.0, f64::NAN, 10).contains("max_epochs"));
        let empty = vec![source(root.path(), "empty", &[], 1.0, 2.0)];
        assert!(Mixture::new("broad", empty, 0, 1, false).is_err(), "nothing can be drawn from it");
    }
}
