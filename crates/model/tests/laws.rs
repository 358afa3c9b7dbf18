//! The laws of the model, each bit by bit: the hidden state and logits of a token do not depend on its neighbours, on
//! how its sequence is chunked, cached and laid out in blocks, or on the number of threads.
//!
//! Sequences are long enough for several tiles of attention and for more than one block of every size; widths leave
//! remainders in every vector register. `cargo test -p kanana-model --test laws`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{Chunk, block_tables, paged_batch};
use kanana_kernels::runtime::Isa;
use kanana_kernels::{Cpu, CpuOptions, Format, KvFormat};
use kanana_model::{Batch, Config, KvCache, LoadOptions, Transformer};

const LENGTHS: [usize; 4] = [1, 150, 37, 64];
const MAX_POSITIONS: usize = 160;
const VOCAB_SIZE: usize = 211;

/// A model of random weights on the fast kernels, and the sequences it is fed.
struct Subject {
    name: String,
    model: Transformer,
    kernels: Cpu,
    kv_format: KvFormat,
    sequences: Vec<Vec<u32>>,
    positions: Vec<u32>,
}

/// How a law feeds the sequences to a paged cache.
#[derive(Clone, Copy)]
struct Paging {
    block_size: usize,
    scattered: bool,
    chunk: usize,
    /// All sequences in every step, or one sequence after the other.
    together: bool,
}

/// Hidden state and logits of every token of every sequence, as bits.
type Bits = Vec<Vec<Vec<u32>>>;

const WHOLE: Paging = Paging { block_size: 16, scattered: false, chunk: usize::MAX, together: true };

/// One subject for every architecture and format, and one architecture on every instruction set.
fn subjects(threads: usize) -> Vec<Subject> {
    let mut subjects = vec![];
    for family in ["llama-biased", "llama-yarn", "mixtral", "qwen2-moe", "qwen3-moe", "qwen3-tied"] {
        let isas = if family == "qwen2-moe" { Isa::available() } else { vec![Isa::best()] };
        // Keys and values as usual beside the weights, and 8 bits of them beside bf16.
        let mut formats: Vec<_> =
            Format::ALL.into_iter().map(|format| (format, format.kv_format())).collect();
        formats.push((Format::BF16, KvFormat::Q8));
        for (&isa, &(format, kv_format)) in isas.iter().flat_map(|isa| formats.iter().map(move |f| (isa, f)))
        {
            let kernels = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa) });
            let options = LoadOptions { format, max_positions: MAX_POSITIONS };
            subjects.push(Subject {
                name: format!("{family} {format}, cache {kv_format}, {threads} threads, {}", isa.name()),
                model: Transformer::random(&widened(family), &kernels, &options, 7)
                    .unwrap()
                    .with_kv_format(kv_format),
                kernels,
                kv_format,
                sequences: LENGTHS.iter().map(|&length| token_ids(length)).collect(),
                positions: (0..MAX_POSITIONS as u32).collect(),
            });
        }
    }
    subjects
}

/// The config of a golden folder, wide enough that threads have something to share.
fn widened(folder: &str) -> Config {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let mut config = Config::from_dir(&goldens.join(folder)).unwrap();
    config.hidden_size = 104;
    config.num_attention_heads = 6;
    config.num_key_value_heads = 2;
    config.head_dim = 22;
    config.intermediate_size = 147;
    config.vocab_size = VOCAB_SIZE;
    config.max_position_embeddings = MAX_POSITIONS;
    if let Some(mixture) = &mut config.mixture {
        mixture.moe_intermediate_size = 61;
    }
    config
}

/// Token ids that differ from sequence to sequence (Knuth's multiplicative hash of length and position).
fn token_ids(length: usize) -> Vec<u32> {
    let hash = |i: usize| ((i * 1000 + length) as u32).wrapping_mul(2_654_435_761) >> 8;
    (0..length).map(|i| hash(i) % VOCAB_SIZE as u32).collect()
}

impl Subject {
    /// The sequences of a range of numbers in one packed batch.
    fn packed(&self, which: std::ops::Range<usize>) -> Bits {
        let sequences: Vec<&[u32]> = self.sequences[which.clone()].iter().map(|ids| &ids[..]).collect();
        let mut out = vec![vec![]; self.sequences.len()];
        self.step(&Batch::packed(&sequences, true), None, &which.collect::<Vec<_>>(), &mut out);
        out
    }

    fn paged(&self, paging: Paging) -> Bits {
        let (tables, num_blocks) = block_tables(&LENGTHS, paging.block_size, paging.scattered);
        let config = &self.model.config;
        let mut cache =
            KvCache::new(&self.kernels, config, num_blocks, paging.block_size, self.kv_format).unwrap();
        let all: Vec<usize> = (0..self.sequences.len()).collect();
        let groups: Vec<&[usize]> = if paging.together { vec![&all] } else { all.chunks(1).collect() };
        let mut out = vec![vec![]; self.sequences.len()];
        for group in groups {
            let longest = group.iter().map(|&s| LENGTHS[s]).max().unwrap();
            for start in (0..longest).step_by(paging.chunk) {
                let fed: Vec<usize> = group.iter().copied().filter(|&s| start < LENGTHS[s]).collect();
                let chunk = |&s: &usize| {
                    let range = start..LENGTHS[s].min(start.saturating_add(paging.chunk));
                    Chunk {
                        token_ids: &self.sequences[s][range.clone()],
                        positions: &self.positions[range],
                        start,
                        block_table: &tables[s],
                    }
                };
                let batch = paged_batch(&fed.iter().map(chunk).collect::<Vec<_>>(), paging.block_size);
                self.step(&batch, Some(&mut cache), &fed, &mut out);
            }
        }
        out
    }

    fn step(&self, batch: &Batch, cache: Option<&mut KvCache>, fed: &[usize], out: &mut Bits) {
        let hidden = self.model.forward(&self.kernels, batch, cache).unwrap();
        let logits = self.model.logits(&self.kernels, &hidden).unwrap().to_f32_vec().unwrap();
        let hidden = hidden.to_f32_vec().unwrap();
        let rows = hidden.chunks(self.model.config.hidden_size).zip(logits.chunks(VOCAB_SIZE));
        let rows: Vec<[&[f32]; 2]> = rows.map(|(hidden, logits)| [hidden, logits]).collect();
        for (&s, span) in fed.iter().zip(batch.query_starts.windows(2)) {
            let rows = rows[span[0] as usize..span[1] as usize].iter();
            out[s].extend(rows.map(|row| row.concat().iter().map(|x| x.to_bits()).collect::<Vec<u32>>()));
        }
    }

    /// Fails at the first token whose hidden state or logits differ.
    fn assert_same(&self, got: &Bits, expected: &Bits, law: &str) {
        for (s, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.len(), expected.len(), "{}: {law}: tokens of sequence {s}", self.name);
            let differs = got.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{}: {law}: sequence {s} differs from this token on", self.name);
        }
    }

    /// A subject must not be blind: its values are finite and differ from token to token.
    fn assert_alive(&self, bits: &Bits) {
        let finite = bits.iter().flatten().flatten().all(|&x| f32::from_bits(x).is_finite());
        assert!(finite, "{}: a value is not finite", self.name);
        let different: std::collections::BTreeSet<&[u32]> = bits[1].iter().map(|row| &row[..]).collect();
        assert_eq!(different.len(), LENGTHS[1], "{}: tokens with equal hidden states", self.name);
    }
}

#[test]
fn batch_equals_single() {
    for subject in subjects(2) {
        let batch = subject.packed(0..LENGTHS.len());
        subject.assert_alive(&batch);
        let single: Bits = (0..LENGTHS.len()).map(|s| subject.packed(s..s + 1).swap_remove(s)).collect();
        subject.assert_same(&single, &batch, "packed batch == single");

        let batch = subject.paged(WHOLE);
        subject.assert_same(
            &subject.paged(Paging { together: false, ..WHOLE }),
            &batch,
            "paged batch == single",
        );
    }
}

#[test]
fn whole_equals_chunked_equals_token_by_token() {
    for subject in subjects(2) {
        let whole = subject.paged(WHOLE);
        for chunk in [100, 7, 1] {
            subject.assert_same(
                &subject.paged(Paging { chunk, ..WHOLE }),
                &whole,
                &format!("chunks of {chunk}"),
            );
        }
    }
}

#[test]
fn paged_equals_packed() {
    for subject in subjects(2) {
        subject.assert_same(&subject.paged(WHOLE), &subject.packed(0..LENGTHS.len()), "paged == packed");
    }
}

#[test]
fn block_sizes_and_places_do_not_matter() {
    for subject in subjects(2) {
        let expected = subject.paged(WHOLE);
        for block_size in [1, 16, 64] {
            for scattered in [false, true] {
                let paging = Paging { block_size, scattered, chunk: 40, ..WHOLE };
                let law = format!("blocks of {block_size}, scattered: {scattered}");
                subject.assert_same(&subject.paged(paging), &expected, &law);
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let run =
        |subject: &Subject| (subject.packed(0..LENGTHS.len()), subject.paged(Paging { chunk: 50, ..WHOLE }));
    let alone: Vec<(Bits, Bits)> = subjects(1).iter().map(run).collect();
    for threads in [2, 3] {
        for (subject, (packed, paged)) in subjects(threads).iter().zip(&alone) {
            subject.assert_same(&subject.packed(0..LENGTHS.len()), packed, "packed, one thread");
            subject.assert_same(&subject.paged(Paging { chunk: 50, ..WHOLE }), paged, "paged, one thread");
        }
    }
}
