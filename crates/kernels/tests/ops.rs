//! Every op x dtype x shape on every implementation that this machine can run, against the reference.
//!
//! A [`Case`] is one call of one op on inputs drawn from a seed. To add an op: add its cases to [`cases`].
//! Each run uses one fixed seed and one fresh one, which a failure names.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod common;

use common::Inputs;
use kanana_kernels::runtime::Isa;
use kanana_kernels::{
    Cpu, CpuOptions, Expert, Format, Gate, Kernels, KeyValues, KvFormat, Reference, Result, RopeTable,
    RouterOptions, Spans,
};
use kanana_tensor::{DType, Tensor};

type Run = Box<dyn Fn(&dyn Kernels) -> Result<Vec<Tensor>>>;

struct Case {
    name: String,
    /// Largest difference allowed, as a share of the largest element of the reference's tensor.
    tolerance: f32,
    run: Run,
}

/// For attention. In f32, sums in other orders. Below, weights are rounded to bf16 relative to the largest score so far,
/// in the reference to the largest of all: where these differ by no power of two, each weight by half a unit (2^-9) twice.
/// Averages of many random values cancel, so that this counts for more of what is left.
fn tolerance_of_attention(format: KvFormat) -> f32 {
    match format {
        KvFormat::F32 => 5e-6,
        KvFormat::BF16 | KvFormat::Q8 => 1e-2,
    }
}

/// For two products with an activation between them, which all but f32 weights round: a last bit may fall either way.
fn tolerance_after_rounding(format: Format) -> f32 {
    match format {
        Format::F32 => 1e-5,
        Format::BF16 => 5e-3,
        Format::Q8 | Format::Q4 => 1e-2,
    }
}

fn cases(seed: u64) -> Vec<Case> {
    let mut list = List { cases: Vec::new(), inputs: Inputs(seed) };
    list.products();
    list.norms_and_rope();
    list.elementwise();
    list.rows_and_routing();
    list.attention();
    list.cases
}

struct List {
    cases: Vec<Case>,
    inputs: Inputs,
}

impl List {
    fn add(
        &mut self,
        name: String,
        tolerance: f32,
        run: impl Fn(&dyn Kernels) -> Result<Vec<Tensor>> + 'static,
    ) {
        self.cases.push(Case { name, tolerance, run: Box::new(run) });
    }

    fn products(&mut self) {
        let shapes = [
            (1, 1, 1),
            (1, 5, 7),
            (2, 16, 32),
            (3, 17, 33),
            (5, 77, 56),
            (13, 131, 77),
            (30, 48, 160),
            (1, 300, 96),
        ];
        for format in Format::ALL {
            for (t, n, k) in shapes {
                let (x, w) = (self.inputs.tensor(&[t, k]), self.inputs.tensor(&[n, k]));
                let (a, b, base) =
                    (self.inputs.tensor(&[3, k]), self.inputs.tensor(&[n, 3]), self.inputs.tensor(&[t, n]));
                let ids = self.inputs.ids(t, n);
                let (x2, w2) = (x.clone(), w.clone());
                self.add(format!("linear {format} {t}x{n}x{k}"), 2e-6, move |kernels| {
                    Ok(vec![kernels.linear(&x, &kernels.pack(&w, format)?)?])
                });
                let (x, w) = (x2.clone(), w2.clone());
                self.add(format!("linears {format} {t}x{n}x{k}"), 2e-6, move |kernels| {
                    let (first, second) = (kernels.pack(&w, format)?, kernels.pack(&a, format)?);
                    let mixed = kernels.pack(&w, Format::F32)?;
                    kernels.linears(&x, &[&first, &second, &mixed])
                });
                let a = self.inputs.tensor(&[3, k]);
                self.add(format!("low_rank {format} {t}x{n}x{k}"), 1e-5, move |kernels| {
                    let (a, b) = (kernels.pack(&a, Format::F32)?, kernels.pack(&b, Format::F32)?);
                    Ok(vec![kernels.low_rank(&base, &x2, &a, &b, 0.37)?])
                });
                self.add(format!("embedding {format} {t} of {n}x{k}"), 0.0, move |kernels| {
                    Ok(vec![kernels.embedding(&ids, &kernels.pack(&w2, format)?)?])
                });
            }
            let (x, gate, up, down) = (
                self.inputs.tensor(&[9, 40]),
                self.inputs.tensor(&[77, 40]),
                self.inputs.tensor(&[77, 40]),
                self.inputs.tensor(&[40, 77]),
            );
            let tolerance = tolerance_after_rounding(format);
            self.add(format!("swiglu {format}"), tolerance, move |kernels| {
                let pack = |w: &Tensor| kernels.pack(w, format);
                Ok(vec![kernels.swiglu(&x, &pack(&gate)?, &pack(&up)?, &pack(&down)?)?])
            });
        }
    }

    fn norms_and_rope(&mut self) {
        for shape in [vec![1, 1], vec![3, 7], vec![5, 64], vec![2, 1793], vec![4, 6, 10]] {
            let width = *shape.last().unwrap();
            let (x, y, weight) =
                (self.inputs.tensor(&shape), self.inputs.tensor(&shape), self.inputs.tensor(&[width]));
            self.add(format!("rms_norm {shape:?}"), 2e-6, {
                let (x, weight) = (x.clone(), weight.clone());
                move |kernels| Ok(vec![kernels.rms_norm(&x, &weight, 1e-5)?])
            });
            self.add(format!("add_rms_norm {shape:?}"), 2e-6, move |kernels| {
                let (sum, normed) = kernels.add_rms_norm(&x, &y, &weight, 1e-6)?;
                Ok(vec![sum, normed])
            });
        }
        for (t, n, h) in [(1, 1, 2), (4, 3, 10), (7, 6, 16), (20, 24, 128)] {
            let (x, positions) = (self.inputs.tensor(&[t, n, h]), self.inputs.ids(t, 40));
            let (cos, sin) = (self.inputs.tensor(&[40, h / 2]), self.inputs.tensor(&[40, h / 2]));
            self.add(format!("rope {t}x{n}x{h}"), 1e-6, move |kernels| {
                let table = RopeTable { cos: cos.clone(), sin: sin.clone() };
                Ok(vec![kernels.rope(&x, &table, &positions)?])
            });
        }
    }

    fn elementwise(&mut self) {
        for (t, d) in [(1, 1), (3, 5), (2, 16), (5, 131), (17, 2048)] {
            let (x, y) = (self.inputs.tensor(&[t, d]), self.inputs.tensor(&[t, d]));
            let (bias, gate) = (self.inputs.tensor(&[d]), self.inputs.tensor(&[t, 1]));
            self.add(format!("elementwise {t}x{d}"), 1e-6, move |kernels| {
                let narrow = kernels.cast(&x, DType::BF16)?;
                assert_eq!(narrow.dtype(), DType::BF16);
                Ok(vec![
                    kernels.silu_mul(&x, &y)?,
                    kernels.add(&x, &y)?,
                    kernels.add_bias(&x, &bias)?,
                    kernels.scale(&x, -0.3)?,
                    kernels.sigmoid_gate(&x, &gate)?,
                    kernels.cast(&narrow, DType::F32)?,
                    kernels.cast(&x, DType::F32)?,
                ])
            });
        }
        for (rows, width) in [(1, 1), (3, 7), (2, 64), (5, 1003)] {
            let x = self.inputs.tensor(&[rows, width]);
            self.add(format!("log_sum_exp {rows}x{width}"), 1e-6, move |kernels| {
                let large = kernels.scale(&x, 40.0)?;
                Ok(vec![kernels.log_sum_exp(&x)?, kernels.log_sum_exp(&large)?])
            });
        }
    }

    fn rows_and_routing(&mut self) {
        for (t, r, d) in [(1, 1, 1), (5, 9, 7), (33, 12, 48)] {
            let (base, x) = (self.inputs.tensor(&[t, d]), self.inputs.tensor(&[r, d]));
            let (indices, weights) = (self.inputs.ids(r, t), self.inputs.tensor(&[r]));
            self.add(format!("gather and scatter {t} {r}x{d}"), 1e-6, move |kernels| {
                let shared = kernels.scatter_add_rows(base.clone(), &x, &indices, &weights)?;
                let unique = kernels.scale(&base, 1.0)?;
                let in_place = kernels.scatter_add_rows(unique, &x, &indices, &weights)?;
                Ok(vec![kernels.gather_rows(&base, &indices)?, shared, in_place])
            });
        }
        for (gate, renormalise) in [(Gate::Softmax, true), (Gate::Softmax, false), (Gate::Sigmoid, true)] {
            for (t, x, top_k) in [(1, 1, 1), (7, 5, 2), (11, 64, 8), (3, 4, 4)] {
                let (logits, bias) = (self.inputs.tensor(&[t, x]), self.inputs.tensor(&[x]));
                let options = RouterOptions { gate, top_k, renormalise, scale: 1.5 };
                self.add(format!("route {gate:?} {renormalise} {t}x{x} top {top_k}"), 1e-6, move |kernels| {
                    let mut results = Vec::new();
                    for bias in [None, Some(&bias)] {
                        let routing = kernels.route(&logits, bias, options)?;
                        let ids: Vec<f32> =
                            routing.experts.as_slice::<u32>().unwrap().iter().map(|&e| e as f32).collect();
                        results.extend([Tensor::from_slice(&[t, top_k], &ids).unwrap(), routing.weights]);
                    }
                    Ok(results)
                });
            }
        }
        for format in Format::ALL {
            let (t, d, f, count) = (10, 24, 18, 6);
            let (x, logits) = (self.inputs.tensor(&[t, d]), self.inputs.tensor(&[t, count]));
            let weights: Vec<[Tensor; 3]> = (0..count)
                .map(|_| {
                    [self.inputs.tensor(&[f, d]), self.inputs.tensor(&[f, d]), self.inputs.tensor(&[d, f])]
                })
                .collect();
            let tolerance = tolerance_after_rounding(format);
            self.add(format!("experts {format}"), tolerance, move |kernels| {
                let options = RouterOptions { gate: Gate::Softmax, top_k: 2, renormalise: true, scale: 1.0 };
                let routing = kernels.route(&logits, None, options)?;
                let pack = |w: &Tensor| kernels.pack(w, format);
                let experts: Vec<Expert> = weights
                    .iter()
                    .map(|[gate, up, down]| {
                        Ok(Expert { gate: pack(gate)?, up: pack(up)?, down: pack(down)? })
                    })
                    .collect::<Result<_>>()?;
                Ok(vec![kernels.experts(&x, &routing, &experts)?])
            });
        }
    }

    fn attention(&mut self) {
        // (query heads, kv heads, head_dim), each with sequences of (new tokens, context).
        let heads = [(1, 1, 2), (6, 2, 10), (4, 4, 16), (3, 1, 48), (5, 1, 80), (8, 2, 128)];
        let packed: [&[usize]; 4] = [&[1], &[5, 1, 64], &[63, 65], &[150]];
        let paged: [&[(usize, usize)]; 4] =
            [&[(1, 1)], &[(1, 200), (1, 64), (1, 65)], &[(7, 70), (33, 33)], &[(40, 129)]];
        for format in KvFormat::ALL {
            for causal in [true, false] {
                for (n, kv, h) in heads {
                    for lens in packed {
                        self.packed_attention(format, causal, (n, kv, h), lens);
                    }
                    for (sequences, block_size) in paged.iter().zip([1, 16, 5, 64]) {
                        self.paged_attention(format, causal, (n, kv, h), sequences, block_size);
                    }
                }
            }
            // Several stretches: of one query, of queries to either side of a border, of documents.
            self.paged_attention(format, true, (6, 2, 20), &[(1, 3000)], 16);
            self.paged_attention(format, true, (2, 1, 32), &[(1, 513), (70, 1060), (3, 512)], 16);
            self.packed_attention(format, true, (2, 2, 16), &[530, 20]);
            self.packed_attention(format, false, (2, 1, 16), &[20, 600]);
        }
    }

    fn packed_attention(
        &mut self,
        format: KvFormat,
        causal: bool,
        (n, kv, h): (usize, usize, usize),
        lens: &[usize],
    ) {
        let t = lens.iter().sum();
        let q = self.inputs.tensor(&[t, n, h]);
        let (k, v) = (self.inputs.tensor(&[t, kv, h]), self.inputs.tensor(&[t, kv, h]));
        let spans = spans(&lens.iter().map(|&len| (len, len)).collect::<Vec<_>>(), causal);
        let name = format!("attention packed {format} causal={causal} {n}/{kv}x{h} {lens:?}");
        self.add(name, tolerance_of_attention(format), move |kernels| {
            let (k, v) = (kernels.round_kv(&k, format)?, kernels.round_kv(&v, format)?);
            let kv = KeyValues::Packed { k: &k, v: &v };
            Ok(vec![kernels.attention(&q, kv, &spans, 0.7 / (h as f32).sqrt())?])
        });
    }

    fn paged_attention(
        &mut self,
        format: KvFormat,
        causal: bool,
        (n, kv, h): (usize, usize, usize),
        sequences: &[(usize, usize)],
        block_size: usize,
    ) {
        let tokens: usize = sequences.iter().map(|s| s.0).sum();
        let q = self.inputs.tensor(&[tokens, n, h]);
        let keys: usize = sequences.iter().map(|s| s.1).sum();
        let (k, v) = (self.inputs.tensor(&[keys, kv, h]), self.inputs.tensor(&[keys, kv, h]));
        let used: Vec<usize> = sequences.iter().map(|s| s.1.div_ceil(block_size)).collect();
        let entries = used.iter().max().unwrap() + 1;
        let blocks = used.iter().sum::<usize>() + 3;
        // Blocks are dealt from the end, one to each sequence in turn, so that no sequence's are in order.
        let mut table = vec![u32::MAX; sequences.len() * entries];
        let mut free = blocks as u32;
        for entry in 0..entries {
            for (s, &used) in used.iter().enumerate() {
                if entry < used {
                    free -= 1;
                    table[s * entries + entry] = free;
                }
            }
        }
        let mut slots = Vec::new();
        for (s, &(_, context)) in sequences.iter().enumerate() {
            for p in 0..context {
                let block = table[s * entries + p / block_size];
                slots.push(block * block_size as u32 + (p % block_size) as u32);
            }
        }
        let slots = Tensor::from_slice(&[slots.len()], &slots).unwrap();
        let block_table = Tensor::from_slice(&[sequences.len(), entries], &table).unwrap();
        let spans = spans(sequences, causal);
        let name =
            format!("attention paged {format} causal={causal} {n}/{kv}x{h} {sequences:?} by {block_size}");
        self.add(name, tolerance_of_attention(format), move |kernels| {
            let shape = [blocks, kv, block_size, format.row_len(h)];
            let cache = || kernels.zeros(&shape, format.dtype());
            let (mut k_cache, mut v_cache) = (cache()?, cache()?);
            kernels.write_kv(&k, &mut k_cache, &slots)?;
            kernels.write_kv(&v, &mut v_cache, &slots)?;
            let kv = KeyValues::Paged { k: &k_cache, v: &v_cache, block_table: &block_table };
            Ok(vec![kernels.attention(&q, kv, &spans, 1.3 / (h as f32).sqrt())?])
        });
    }
}

fn spans(sequences: &[(usize, usize)], causal: bool) -> Spans {
    let mut starts = vec![0u32];
    starts.extend(sequences.iter().scan(0, |end, s| {
        *end += s.0 as u32;
        Some(*end)
    }));
    let contexts: Vec<u32> = sequences.iter().map(|s| s.1 as u32).collect();
    Spans {
        query_starts: Tensor::from_slice(&[starts.len()], &starts).unwrap(),
        context_lens: Tensor::from_slice(&[contexts.len()], &contexts).unwrap(),
        causal,
    }
}

fn implementations() -> Vec<(String, Cpu)> {
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx] {
        if !Isa::available().contains(&isa) {
            println!("skipped: no {}", isa.name());
        }
    }
    Isa::available()
        .into_iter()
        .flat_map(|isa| [1, 3].map(|threads| CpuOptions { isa: Some(isa), threads: Some(threads) }))
        .map(Cpu::new)
        .map(|cpu| (format!("{cpu:?}"), cpu))
        .collect()
}

fn values(kernels: &dyn Kernels, tensors: Vec<Tensor>) -> Vec<Vec<f32>> {
    tensors.iter().map(|tensor| kernels.download(tensor).unwrap().to_f32_vec().unwrap()).collect()
}

#[test]
fn every_op_agrees_with_the_reference() {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let implementations = implementations();
    for seed in [1, fresh] {
        for case in cases(seed) {
            let expected = values(&Reference, (case.run)(&Reference).unwrap());
            for (name, kernels) in &implementations {
                let got =
                    (case.run)(kernels).unwrap_or_else(|error| panic!("{} on {name}: {error}", case.name));
                for (i, (got, expected)) in values(kernels, got).iter().zip(&expected).enumerate() {
                    assert_eq!(got.len(), expected.len(), "{} on {name}", case.name);
                    let largest = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                    for (j, (g, e)) in got.iter().zip(expected).enumerate() {
                        assert!(
                            (g - e).abs() <= case.tolerance * largest,
                            "{} on {name}, seed {seed}: output {i}[{j}] is {g}, the reference says {e}",
                            case.name
                        );
                    }
                }
            }
        }
    }
}

/// Threads, and AVX2 or AVX-512 or AMX, change nothing: to the bit. `vdpbf16ps` has an order of its own, which threads do
/// not change either.
#[test]
fn bits_do_not_depend_on_threads_or_vector_width() {
    let (own_order, fused): (Vec<_>, Vec<_>) = implementations()
        .into_iter()
        .filter(|(_, cpu)| cpu.isa() != Isa::Portable)
        .partition(|(_, cpu)| cpu.isa() == Isa::Avx512Bf16);
    if fused.is_empty() {
        println!("skipped: no AVX2");
    }
    for (case, alike) in cases(2).iter().flat_map(|case| [(case, &fused), (case, &own_order)]) {
        let mut bits = alike.iter().map(|(name, kernels)| {
            let outputs = values(kernels, (case.run)(kernels).unwrap());
            (name, outputs.iter().flatten().map(|x| x.to_bits()).collect::<Vec<u32>>())
        });
        let Some((_, expected)) = bits.next() else { continue };
        bits.for_each(|(name, got)| assert!(got == expected, "{} on {name}", case.name));
    }
}

/// A row's product is the same to the bit whichever rows are beside it, at every count the blocks treat differently.
#[test]
fn products_do_not_depend_on_the_batch() {
    let mut inputs = Inputs(3);
    for format in Format::ALL {
        for (n, k) in [(131, 77), (200, 4000)] {
            let (x, w) = (inputs.tensor(&[61, k]), inputs.tensor(&[n, k]));
            for (name, kernels) in implementations() {
                let w = kernels.pack(&w, format).unwrap();
                let all = kernels.linear(&x, &w).unwrap();
                for count in [1, 2, 3, 4, 5, 11, 12, 13, 17, 60] {
                    let some = kernels.linear(&x.slice_rows(61 - count..61).unwrap(), &w).unwrap();
                    let expected = all.slice_rows(61 - count..61).unwrap();
                    assert!(
                        some.as_bytes() == expected.as_bytes(),
                        "{name} {format} {count} rows of {n}x{k}"
                    );
                }
            }
        }
    }
}

/// A query's result is the same to the bit alone, in chunks and in the whole prompt, beside other sequences, and whether
/// its keys are in blocks or in a row; over several stretches of keys, with values that are no numbers behind some.
#[test]
fn attention_does_not_depend_on_the_batch() {
    const CONTEXT: usize = 600;
    let (n, kv, h) = (6, 2, 40);
    let mut inputs = Inputs(4);
    let (q, k) = (inputs.tensor(&[CONTEXT, n, h]), inputs.tensor(&[CONTEXT, kv, h]));
    let mut v = inputs.tensor(&[CONTEXT, kv, h]).to_f32_vec().unwrap();
    v[560 * kv * h + 3] = f32::INFINITY;
    let v = Tensor::from_slice(&[CONTEXT, kv, h], &v).unwrap();
    let row_len = n * h;
    for format in KvFormat::ALL {
        for (name, kernels) in implementations() {
            let rounded = [&k, &v].map(|x| kernels.round_kv(x, format).unwrap());
            let whole = {
                let kv = KeyValues::Packed { k: &rounded[0], v: &rounded[1] };
                kernels.attention(&q, kv, &spans(&[(CONTEXT, CONTEXT)], true), 0.3).unwrap()
            };
            let whole = whole.as_slice::<f32>().unwrap();
            let finite = whole[..560 * row_len].iter().all(|x| x.is_finite());
            assert!(finite, "{name} {format}: a later value spoils an earlier query");
            // In a cache: blocks of 16 positions, the last first; every sequence of a batch is a beginning of the same one.
            let blocks = CONTEXT.div_ceil(16);
            let shape = [blocks, kv, 16, format.row_len(h)];
            let caches = [&k, &v].map(|x| {
                let mut cache = kernels.zeros(&shape, format.dtype()).unwrap();
                let slots: Vec<u32> =
                    (0..CONTEXT).map(|p| ((blocks - 1 - p / 16) * 16 + p % 16) as u32).collect();
                kernels.write_kv(x, &mut cache, &Tensor::from_slice(&[CONTEXT], &slots).unwrap()).unwrap();
                cache
            });
            let table: Vec<u32> = (0..blocks as u32).rev().collect();
            for batch in [vec![(1, 1)], vec![(1, 513), (1, 600)], vec![(3, 66), (100, 550), (37, 577)]] {
                let rows: Vec<Tensor> = batch
                    .iter()
                    .map(|&(queries, context)| q.slice_rows(context - queries..context).unwrap())
                    .collect();
                let values: Vec<f32> = rows.iter().flat_map(|q| q.to_f32_vec().unwrap()).collect();
                let tokens = values.len() / row_len;
                let tables = Tensor::from_slice(&[batch.len(), blocks], &table.repeat(batch.len())).unwrap();
                let kv = KeyValues::Paged { k: &caches[0], v: &caches[1], block_table: &tables };
                let q = Tensor::from_slice(&[tokens, n, h], &values).unwrap();
                let got = kernels.attention(&q, kv, &spans(&batch, true), 0.3).unwrap();
                let mut got = got.as_slice::<f32>().unwrap();
                for &(queries, context) in &batch {
                    let (rows, rest) = got.split_at(queries * row_len);
                    let expected = &whole[(context - queries) * row_len..context * row_len];
                    let same = rows.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{name} {format}: {queries} queries of {context} keys in {batch:?}");
                    got = rest;
                }
            }
        }
    }
}

/// Where two tokens name one slot, the later one stays.
#[test]
fn the_last_of_equal_slots_stays() {
    let x = Inputs(5).tensor(&[9, 3, 20]);
    let slots = Tensor::from_slice(&[9], &[4u32, 0, 4, 2, 0, 4, 5, 1, 5]).unwrap();
    for format in KvFormat::ALL {
        let written = |kernels: &dyn Kernels| {
            let mut cache = kernels.zeros(&[3, 3, 2, format.row_len(20)], format.dtype()).unwrap();
            kernels.write_kv(&x, &mut cache, &slots).unwrap();
            cache.as_bytes().unwrap().to_vec()
        };
        for (name, kernels) in implementations() {
            assert!(written(&kernels) == written(&Reference), "{name} {format}");
        }
    }
}

#[test]
fn weights_pack_from_every_float_dtype_to_every_format() {
    // Whole steps of four bits.
    let values = [0.5f32, -1.0, 3.5, 0.0, 2.0, -4.0];
    let x = Tensor::from_slice(&[1, 3], &[1.0f32, 2.0, 4.0]).unwrap();
    let f16: Vec<_> = values.iter().map(|&x| kanana_tensor::f16::from_f32(x)).collect();
    let bf16: Vec<_> = values.iter().map(|&x| kanana_tensor::bf16::from_f32(x)).collect();
    let sources = [
        Tensor::from_slice(&[2, 3], &values).unwrap(),
        Tensor::from_slice(&[2, 3], &f16).unwrap(),
        Tensor::from_slice(&[2, 3], &bf16).unwrap(),
    ];
    for source in &sources {
        for format in Format::ALL {
            let kernels = Cpu::default();
            let w = kernels.pack(source, format).unwrap();
            assert_eq!((w.out_features(), w.in_features(), w.format()), (2, 3, format));
            let y = kernels.linear(&x, &w).unwrap().to_f32_vec().unwrap();
            // Inputs beside quantised weights are rounded to 127 steps.
            let tolerance = if format.is_quantised() { 0.15 } else { 0.0 };
            assert!((y[0] - 12.5).abs() <= tolerance && (y[1] + 12.0).abs() <= tolerance, "{format}: {y:?}");
        }
    }
}

#[test]
fn not_a_number_stays_one() {
    let nan = Tensor::from_slice(&[1, 20], &[f32::NAN; 20]).unwrap();
    let ones = Tensor::from_slice(&[2, 20], &[1f32; 40]).unwrap();
    for (name, kernels) in implementations() {
        for format in Format::ALL {
            let y = kernels.linear(&nan, &kernels.pack(&ones, format).unwrap()).unwrap();
            assert!(y.to_f32_vec().unwrap().iter().all(|y| y.is_nan()), "{name} linear {format}");
        }
        let silu = kernels.silu_mul(&nan, &nan).unwrap();
        assert!(silu.to_f32_vec().unwrap().iter().all(|y| y.is_nan()), "{name} silu_mul");
        assert!(kernels.log_sum_exp(&nan).unwrap().to_f32_vec().unwrap()[0].is_nan(), "{name} log_sum_exp");
        let shape = |x: &Tensor| x.slice_rows(0..1).unwrap().reshape(&[1, 1, 20]).unwrap();
        for (q, k, v) in [(&nan, &ones, &ones), (&ones, &nan, &ones), (&ones, &ones, &nan)] {
            for format in KvFormat::ALL {
                let [k, v] = [k, v].map(|x| kernels.round_kv(&shape(x), format).unwrap());
                let kv = KeyValues::Packed { k: &k, v: &v };
                let y = kernels.attention(&shape(q), kv, &spans(&[(1, 1)], true), 1.0).unwrap();
                assert!(y.to_f32_vec().unwrap().iter().all(|y| y.is_nan()), "{name} attention {format}");
            }
        }
    }
}
