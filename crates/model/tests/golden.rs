//! Parity with transformers on tiny random models of every family and rotary scaling, sizes awkward on purpose.
//!
//! The folders under `tests/goldens` are made by `goldens/make_models.py`, which says what is in them. Compared are
//! named intermediates, logits and greedy continuations, packed and paged, with the reference kernels and the fast
//! ones. `cargo test -p kanana-model --test golden -- --nocapture` prints the worst error of every folder.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Chunk, block_tables, continue_greedily, paged_batch};
use kanana_checkpoint::Checkpoint;
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels, KvFormat, Reference};
use kanana_model::{Batch, Config, KvCache, LoadOptions, RopeScaling, Transformer};
use kanana_tensor::Tensor;

/// Largest error of a tensor in f32, as a share of its largest element.
const F32_TOLERANCE: f32 = 1e-4;
/// The same of logits in bf16, against the f32 run of transformers on the same weights.
const BF16_TOLERANCE: f32 = 0.05;

/// Tensors by name, `{sequence}.{tensor}`.
type Traced = BTreeMap<String, Vec<f32>>;

/// One folder: a model and what transformers computes with it.
struct Golden {
    name: String,
    dir: PathBuf,
    config: Config,
    sequences: Vec<Vec<u32>>,
    positions: Vec<Vec<u32>>,
    greedy: Vec<u32>,
    expected: Traced,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// Every folder that has expectations.
fn goldens() -> Vec<Golden> {
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    let goldens: Vec<Golden> =
        dirs.iter().filter(|dir| dir.join("expected.json").exists()).map(|dir| Golden::read(dir)).collect();
    assert_eq!(goldens.len(), 13, "folders in {}", root().display());
    goldens
}

impl Golden {
    fn read(dir: &Path) -> Self {
        let expected = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
        Golden {
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            dir: dir.to_path_buf(),
            config: Config::from_dir(dir).unwrap(),
            sequences: serde_json::from_value(expected["sequences"].clone()).unwrap(),
            positions: serde_json::from_value(expected["positions"].clone()).unwrap(),
            greedy: serde_json::from_value(expected["greedy"].clone()).unwrap(),
            expected: read_safetensors(&dir.join("expected.safetensors")),
        }
    }

    fn load(&self, kernels: &dyn Kernels, format: Format, max_positions: usize) -> Transformer {
        let options = LoadOptions { format, max_positions };
        Transformer::load(&Checkpoint::open(&self.dir).unwrap(), &self.config, kernels, &options).unwrap()
    }

    /// The sequences in groups that can share one rotary table: all, unless the frequencies follow the length.
    fn groups(&self) -> Vec<Vec<usize>> {
        match self.config.rope_scaling {
            RopeScaling::Dynamic { .. } => (0..self.sequences.len()).map(|s| vec![s]).collect(),
            _ => vec![(0..self.sequences.len()).collect()],
        }
    }

    fn max_positions(&self, group: &[usize]) -> usize {
        group.iter().flat_map(|&s| &self.positions[s]).max().map_or(0, |&last| last as usize + 1)
    }

    fn run(&self, kernels: &dyn Kernels, format: Format, way: Way) -> Traced {
        let mut got = Traced::new();
        for group in self.groups() {
            let model = self.load(kernels, format, self.max_positions(&group));
            let mut pass = Pass { golden: self, model: &model, kernels, got: &mut got };
            match way {
                Way::Packed => pass.packed(&group),
                Way::Paged => pass.paged(&group, format.kv_format()),
            }
        }
        got
    }

    fn check(&self, got: &Traced, what: &str) {
        let expected: Vec<(&String, &Vec<f32>)> =
            self.expected.iter().filter(|(name, _)| is_f32_trace(name)).collect();
        let names: Vec<&String> = expected.iter().map(|(name, _)| *name).collect();
        assert_eq!(got.keys().collect::<Vec<_>>(), names, "{} {what}: names", self.name);
        let mut worst = (0.0, "");
        for (name, expected) in expected {
            let error = relative_error(&got[name], expected);
            assert!(error <= F32_TOLERANCE, "{} {what}: {name} is {error:.1e} off", self.name);
            if error > worst.0 {
                worst = (error, name);
            }
        }
        println!("{:22} {what}: worst {:.1e} in {}", self.name, worst.0, worst.1);
    }
}

fn is_f32_trace(name: &str) -> bool {
    !name.ends_with("logits_bf16") && !name.contains("bidirectional")
}

/// `max |got - expected| / max |expected|`; infinite when something is not a number.
fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len(), "number of elements");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    off.fold(0f32, |m, x| if x.is_nan() { f32::INFINITY } else { m.max(x) }) / largest
}

impl Golden {
    /// Tokens that went to another expert than in f32: what a mixture makes of them is far off, though what it was given
    /// is not.
    fn rerouted(&self, got: &Traced, s: usize) -> Vec<usize> {
        let off = |name: String, t: usize| {
            let rows = self.sequences[s].len();
            let [got, expected] = [got, &self.expected].map(|tensors| &tensors[&name]);
            let width = expected.len() / rows;
            let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            let pairs = got.iter().zip(expected).skip(t * width).take(width);
            pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
        };
        let sparse = |&i: &usize| self.config.is_sparse(i);
        let moved = |t: usize, i: usize| {
            off(format!("{s}.layers.{i}.self_attn"), t) <= BF16_TOLERANCE
                && off(format!("{s}.layers.{i}.mlp"), t) > 5.0 * BF16_TOLERANCE
        };
        let layers = || (0..self.config.num_hidden_layers).filter(sparse);
        (0..self.sequences[s].len()).filter(|&t| layers().any(|i| moved(t, i))).collect()
    }
}

/// Reads f32 and bf16 tensors, independently of the crate that reads the checkpoints.
fn read_safetensors(path: &Path) -> Traced {
    let bytes = std::fs::read(path).unwrap();
    let (header_len, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*header_len) as usize);
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(name, info)| {
            let offset = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
            let data = &data[offset(0)..offset(1)];
            let values = match info["dtype"].as_str().unwrap() {
                "F32" => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                "BF16" => data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
                other => panic!("{name}: {other}"),
            };
            (name, values)
        })
        .collect()
}

/// How sequences are fed.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// All in one packed batch without a cache.
    Packed,
    /// Side by side in chunks, over a paged cache.
    Paged,
}

/// Sequences on their way through a model, and the rows of every tensor that was traced, by expected name.
struct Pass<'a> {
    golden: &'a Golden,
    model: &'a Transformer,
    kernels: &'a dyn Kernels,
    got: &'a mut Traced,
}

impl Pass<'_> {
    fn packed(&mut self, group: &[usize]) {
        let sequences: Vec<&[u32]> = group.iter().map(|&s| &self.golden.sequences[s][..]).collect();
        let mut batch = Batch::packed(&sequences, true);
        batch.positions = group.iter().flat_map(|&s| self.golden.positions[s].clone()).collect();
        self.step(&batch, None, group);
    }

    fn paged(&mut self, group: &[usize], kv_format: KvFormat) {
        const BLOCK_SIZE: usize = 4;
        const CHUNK: usize = 6;
        let golden = self.golden;
        let lengths: Vec<usize> = group.iter().map(|&s| golden.sequences[s].len()).collect();
        let (tables, num_blocks) = block_tables(&lengths, BLOCK_SIZE, true);
        let mut cache =
            KvCache::new(self.kernels, &golden.config, num_blocks, BLOCK_SIZE, kv_format).unwrap();
        for start in (0..*lengths.iter().max().unwrap()).step_by(CHUNK) {
            let unfinished: Vec<usize> = (0..group.len()).filter(|&i| start < lengths[i]).collect();
            let chunk = |&i: &usize| {
                let range = start..lengths[i].min(start + CHUNK);
                Chunk {
                    token_ids: &golden.sequences[group[i]][range.clone()],
                    positions: &golden.positions[group[i]][range],
                    start,
                    block_table: &tables[i],
                }
            };
            let batch = paged_batch(&unfinished.iter().map(chunk).collect::<Vec<_>>(), BLOCK_SIZE);
            let fed: Vec<usize> = unfinished.iter().map(|&i| group[i]).collect();
            self.step(&batch, Some(&mut cache), &fed);
        }
    }

    /// One traced forward pass; every tensor's rows are added to what their sequence has.
    fn step(&mut self, batch: &Batch, cache: Option<&mut KvCache>, sequences: &[usize]) {
        let mut note = |name: &str, tensor: &Tensor| {
            for (s, span) in sequences.iter().zip(batch.query_starts.windows(2)) {
                let rows = tensor.slice_rows(span[0] as usize..span[1] as usize).unwrap();
                self.got.entry(format!("{s}.{name}")).or_default().extend(rows.to_f32_vec().unwrap());
            }
        };
        let hidden = self.model.forward_traced(self.kernels, batch, cache, &mut note).unwrap();
        note("logits", &self.model.logits(self.kernels, &hidden).unwrap());
    }
}

/// Both implementations, the fast one on a number of threads that divides nothing.
fn all_kernels() -> [(&'static str, Box<dyn Kernels>); 2] {
    [
        ("Reference", Box::new(Reference)),
        ("Cpu", Box::new(Cpu::new(CpuOptions { threads: Some(3), ..CpuOptions::default() }))),
    ]
}

#[test]
fn intermediates_and_logits_packed_and_paged() {
    for golden in goldens() {
        for (name, kernels) in all_kernels() {
            for way in [Way::Packed, Way::Paged] {
                golden.check(&golden.run(&*kernels, Format::F32, way), &format!("{name} {way:?}"));
            }
        }
    }
}

/// bf16 rounds weights, inputs of products, keys and values here, and every result in transformers. Each run is
/// bounded, and all together must be nearer to f32 than those of transformers. A token whose router is undecided may go
/// to another expert and is then another token: one of all may.
#[test]
fn bf16_stays_within_its_tolerance() {
    for (name, kernels) in all_kernels() {
        for way in [Way::Packed, Way::Paged] {
            let (mut ours, mut theirs, mut rerouted) = (vec![], vec![], 0);
            for golden in goldens() {
                let got = golden.run(&*kernels, Format::BF16, way);
                for s in 0..golden.sequences.len() {
                    let elsewhere = golden.rerouted(&got, s);
                    rerouted += elsewhere.len();
                    let rows = golden.sequences[s].len();
                    let kept = |logits: &Vec<f32>| -> Vec<f32> {
                        let rows = logits.chunks_exact(logits.len() / rows).enumerate();
                        rows.filter(|(t, _)| !elsewhere.contains(t))
                            .flat_map(|(_, row)| row.to_vec())
                            .collect()
                    };
                    let logits = |suffix: &str| kept(&golden.expected[&format!("{s}.logits{suffix}")]);
                    let error = relative_error(&kept(&got[&format!("{s}.logits")]), &logits(""));
                    assert!(
                        error <= BF16_TOLERANCE,
                        "{} {name} {way:?}: logits {s} are {error:.1e} off",
                        golden.name
                    );
                    ours.push(error);
                    theirs.push(relative_error(&logits("_bf16"), &logits("")));
                }
            }
            let mean = |errors: &[f32]| errors.iter().sum::<f32>() / errors.len() as f32;
            let worst = |errors: &[f32]| errors.iter().copied().fold(0.0, f32::max);
            println!(
                "{name} {way:?}: mean {:.1e}, worst {:.1e}, {rerouted} tokens rerouted",
                mean(&ours),
                worst(&ours)
            );
            println!("transformers: mean {:.1e}, worst {:.1e}", mean(&theirs), worst(&theirs));
            assert!(mean(&ours) < mean(&theirs), "{name} {way:?}: further from f32 than transformers");
            assert!(rerouted <= 1, "{name} {way:?}: {rerouted} tokens went to other experts");
        }
    }
}

#[test]
fn greedy_continuations_are_equal() {
    for golden in goldens() {
        let (prompt, positions) = (&golden.sequences[0], &golden.positions[0]);
        let last = positions[positions.len() - 1] as usize;
        for (name, kernels) in all_kernels() {
            let kernels = &*kernels;
            let chosen = match golden.config.rope_scaling {
                // The frequencies follow the length: every token is computed anew, as the golden script does.
                RopeScaling::Dynamic { .. } => (0..golden.greedy.len()).fold(vec![], |mut chosen, step| {
                    let text = [&prompt[..], &chosen].concat();
                    let positions: Vec<u32> = (0..text.len() as u32).collect();
                    let model = golden.load(kernels, Format::F32, last + 1 + step);
                    chosen.extend(continue_greedily(&model, kernels, &text, &positions, 1));
                    chosen
                }),
                _ => {
                    let model = golden.load(kernels, Format::F32, last + 1 + golden.greedy.len());
                    continue_greedily(&model, kernels, prompt, positions, golden.greedy.len())
                }
            };
            assert_eq!(chosen, golden.greedy, "{} {name}", golden.name);
        }
    }
}

#[test]
fn without_a_causal_mask_every_token_sees_every_other() {
    let golden = Golden::read(&root().join("llama-tied"));
    for (name, kernels) in all_kernels() {
        let model = golden.load(&*kernels, Format::F32, golden.max_positions(&[0, 1]));
        let sequences: Vec<&[u32]> = golden.sequences.iter().map(|ids| &ids[..]).collect();
        let hidden = model.forward(&*kernels, &Batch::packed(&sequences, false), None).unwrap();
        let expected = ["0", "1"].map(|s| &golden.expected[&format!("{s}.bidirectional.norm")][..]).concat();
        let error = relative_error(&hidden.to_f32_vec().unwrap(), &expected);
        assert!(error <= F32_TOLERANCE, "{name}: {error:.1e} off");
    }
}

#[test]
fn shards_give_the_same_model() {
    let mut golden = Golden::read(&root().join("llama-biased"));
    golden.dir = root().join("llama-biased-sharded");
    golden.check(&golden.run(&Reference, Format::F32, Way::Packed), "in shards");
}
