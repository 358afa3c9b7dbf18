//! Single operations on the shapes of the 2.1B: `cargo bench -p kanana-kernels`; a part of a name behind `--` chooses
//! some (`-- linear/q4`), and `--quick` is short. `KANANA_ISA` chooses the instruction set.
//!
//! Weights and caches together are larger than the processor's caches, and taken in turns, as the layers of a model are.
//! Throughput: bytes of what must be read (GB/s) where memory bounds, else FLOPs, which are shown as elements (Gelem/s).
//!
//! Legend: T tokens, D hidden, F ffn, V vocabulary, N query heads, K kv heads, H head_dim.

#![allow(missing_docs)] // What criterion's macros make.
#![allow(clippy::unwrap_used)] // As in tests: the arguments are our own.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kanana_kernels::runtime::Isa;
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels, KeyValues, RopeTable, Spans, Weight};
use kanana_tensor::{DType, Tensor};

/// On what `KANANA_ISA` names, and on nothing else.
fn cpu() -> Cpu {
    let isa = Some(Isa::chosen().unwrap());
    Cpu::new(CpuOptions { isa, ..CpuOptions::default() })
}

const D: usize = 1792;
const F: usize = 8064;
const V: usize = 128_256;
const N: usize = 24;
const K: usize = 8;
const H: usize = 128;
const BLOCK_SIZE: usize = 16;

/// More than the last-level cache of a server's processor.
const COLD_BYTES: usize = 256 << 20;

criterion_group!(ops, linear, attention, elementwise, embedding, log_sum_exp);
criterion_main!(ops);

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

/// Values around zero that look random.
fn values(shape: &[usize]) -> Tensor {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = std::iter::repeat_with(next).take(shape.iter().product()).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

fn indices(values: impl Iterator<Item = usize>) -> Tensor {
    let values: Vec<u32> = values.map(|x| x as u32).collect();
    Tensor::from_slice(&[values.len()], &values).unwrap()
}

/// The weight again and again, until it is larger than any cache.
fn cold_weights(cpu: &Cpu, shape: [usize; 2], format: Format) -> Vec<Weight> {
    let matrix = values(&shape);
    let first = cpu.pack(&matrix, format).unwrap();
    let more = (1..COLD_BYTES.div_ceil(first.bytes())).map(|_| cpu.pack(&matrix, format).unwrap());
    std::iter::once(first.clone()).chain(more).collect()
}

fn linear(criterion: &mut Criterion) {
    let cpu = cpu();
    for format in Format::ALL {
        let mut group = group(criterion, &format!("linear/{format}"));
        for [outputs, inputs] in [[F, D], [D, F]] {
            let weights = LazyCell::new(|| cold_weights(&cpu, [outputs, inputs], format));
            for tokens in [1, 8, 32, 512] {
                group.throughput(match tokens {
                    1 => Throughput::BytesDecimal(format.bytes((outputs * inputs) as u64)),
                    _ => Throughput::Elements((2 * tokens * outputs * inputs) as u64),
                });
                let id = BenchmarkId::new(format!("{outputs}x{inputs}"), tokens);
                let x = LazyCell::new(|| values(&[tokens, inputs]));
                group.bench_function(id, |bencher| {
                    let (x, mut in_turns) = (&*x, weights.iter().cycle());
                    bencher.iter(|| cpu.linear(x, in_turns.next().unwrap()).unwrap());
                });
            }
        }
    }
}

/// The keys and values of one sequence in the blocks of a cache.
struct Cache {
    k: Tensor,           // [B, K, P, H] bf16
    v: Tensor,           // [B, K, P, H] bf16
    block_table: Tensor, // [1, B]
}

impl Cache {
    fn new(cpu: &Cpu, positions: usize) -> Self {
        let blocks = positions.div_ceil(BLOCK_SIZE);
        let slots = indices(0..positions);
        let filled = || {
            let mut cache = Tensor::zeros(&[blocks, K, BLOCK_SIZE, H], DType::BF16);
            cpu.write_kv(&values(&[positions, K, H]), &mut cache, &slots).unwrap();
            cache
        };
        let block_table = indices(0..blocks).reshape(&[1, blocks]).unwrap();
        Cache { k: filled(), v: filled(), block_table }
    }
}

fn attention(criterion: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(criterion, "attention");
    for (name, queries, positions) in [("prefill", 512, 512), ("decode", 1, 8192)] {
        let bytes = 2 * positions * K * H * DType::BF16.size();
        let visible: usize = (positions - queries + 1..=positions).sum();
        group.throughput(match queries {
            1 => Throughput::BytesDecimal(bytes as u64),
            _ => Throughput::Elements((4 * N * H * visible) as u64),
        });
        let layers: LazyCell<Vec<Cache>, _> = LazyCell::new(|| {
            (0..COLD_BYTES.div_ceil(bytes).min(32)).map(|_| Cache::new(&cpu, positions)).collect()
        });
        let q = values(&[queries, N, H]);
        let spans = Spans {
            query_starts: indices([0, queries].into_iter()),
            context_lens: indices([positions].into_iter()),
            causal: true,
        };
        group.bench_function(BenchmarkId::new(name, positions), |bencher| {
            let mut in_turns = layers.iter().cycle();
            bencher.iter(|| {
                let Cache { k, v, block_table } = in_turns.next().unwrap();
                cpu.attention(&q, KeyValues::Paged { k, v, block_table }, &spans, 0.088).unwrap()
            });
        });
    }
}

fn elementwise(criterion: &mut Criterion) {
    const T: usize = 512;
    let cpu = cpu();
    let mut group = group(criterion, "elementwise");
    let bytes = |elements: usize| Throughput::BytesDecimal((elements * DType::F32.size()) as u64);

    let (x, weight) = (values(&[T, D]), values(&[D]));
    group.throughput(bytes(2 * T * D));
    group.bench_function("rms_norm", |bencher| bencher.iter(|| cpu.rms_norm(&x, &weight, 1e-5).unwrap()));

    let q = values(&[T, N, H]);
    let table = RopeTable { cos: values(&[T, H / 2]), sin: values(&[T, H / 2]) };
    let positions = indices(0..T);
    group.throughput(bytes(2 * T * N * H));
    group.bench_function("rope", |bencher| bencher.iter(|| cpu.rope(&q, &table, &positions).unwrap()));

    let (gate, up) = (values(&[T, F]), values(&[T, F]));
    group.throughput(bytes(3 * T * F));
    group.bench_function("silu_mul", |bencher| bencher.iter(|| cpu.silu_mul(&gate, &up).unwrap()));
}

fn embedding(criterion: &mut Criterion) {
    const T: usize = 512;
    let cpu = cpu();
    let mut group = group(criterion, "embedding");
    let ids = indices((0..T).map(|t| t * 48_271 % V));
    for format in [Format::BF16, Format::Q8] {
        let table = LazyCell::new(|| cpu.pack(&values(&[V, D]), format).unwrap());
        group.throughput(Throughput::BytesDecimal(format.bytes((T * D) as u64)));
        group.bench_function(format.name(), |bencher| {
            let table = &*table;
            bencher.iter(|| cpu.embedding(&ids, table).unwrap());
        });
    }
}

fn log_sum_exp(criterion: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(criterion, "log_sum_exp");
    for tokens in [1, 32] {
        let logits = values(&[tokens, V]);
        group.throughput(Throughput::BytesDecimal(logits.bytes() as u64));
        group.bench_function(BenchmarkId::from_parameter(tokens), |bencher| {
            bencher.iter(|| cpu.log_sum_exp(black_box(&logits)).unwrap());
        });
    }
}
