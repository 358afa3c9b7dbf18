//! Shapes at the edge: nothing of something, and more than one block of everything. Nothing panics, and where there is a
//! result it is the one that other paths give.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

use kanana_kernels::runtime::Isa;
use kanana_kernels::{
    Cpu, CpuOptions, Expert, Format, Gate, Kernels, KeyValues, Reference, Result, RouterOptions, Routing,
    Spans,
};
use kanana_tensor::{DType, Tensor};

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32)
}

fn u32s(values: &[u32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

/// Values between -1 and 1 (Knuth's multiplicative hash of the place).
fn values(shape: &[usize]) -> Tensor {
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) })
}

/// The reference, and the CPU with every instruction set.
fn implementations() -> Vec<Box<dyn Kernels>> {
    let mut all: Vec<Box<dyn Kernels>> = vec![Box::new(Reference)];
    all.extend(Isa::available().into_iter().map(|isa| -> Box<dyn Kernels> { Box::new(cpu(isa, 3)) }));
    all
}

fn refused<T>(expected: &str, call: impl Fn(&dyn Kernels) -> Result<T>) {
    for kernels in implementations() {
        let message = call(&*kernels).err().expect("an error").to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn a_product_over_nothing_is_zero() {
    for kernels in implementations() {
        for format in Format::ALL {
            let no_inputs = kernels.pack(&zeros(&[5, 0]), format).unwrap();
            let no_outputs = kernels.pack(&zeros(&[0, 5]), format).unwrap();
            for rows in [0, 1, 2, 40, 600] {
                let y = kernels.linear(&zeros(&[rows, 0]), &no_inputs).unwrap();
                assert_eq!(y.shape(), [rows, 5]);
                assert!(y.to_f32_vec().unwrap().iter().all(|&y| y == 0.0), "{format} {rows}");
                assert_eq!(kernels.linear(&zeros(&[rows, 5]), &no_outputs).unwrap().shape(), [rows, 0]);
            }
        }
    }
}

#[test]
fn a_batch_of_no_tokens_is_a_batch() {
    for k in implementations() {
        let (x, none) = (zeros(&[0, 4]), u32s(&[]));
        let w = k.pack(&zeros(&[7, 4]), Format::BF16).unwrap();
        let back = k.pack(&zeros(&[4, 7]), Format::BF16).unwrap();
        assert_eq!(k.embedding(&none, &w).unwrap().shape(), [0, 4]);
        assert_eq!(k.linears(&x, &[&w, &w]).unwrap()[1].shape(), [0, 7]);
        assert_eq!(k.rms_norm(&x, &zeros(&[4]), 1e-5).unwrap().shape(), [0, 4]);
        assert_eq!(k.silu_mul(&x, &x).unwrap().shape(), [0, 4]);
        assert_eq!(k.add_bias(&x, &zeros(&[4])).unwrap().shape(), [0, 4]);
        assert_eq!(k.sigmoid_gate(&x, &zeros(&[0, 1])).unwrap().shape(), [0, 4]);
        assert_eq!(k.cast(&x, DType::BF16).unwrap().shape(), [0, 4]);
        assert_eq!(k.gather_rows(&x, &none).unwrap().shape(), [0, 4]);
        assert_eq!(k.log_sum_exp(&x).unwrap().shape(), [0]);
        let router = RouterOptions { gate: Gate::Softmax, top_k: 2, renormalise: true, scale: 1.0 };
        let routing = k.route(&x, None, router).unwrap();
        let expert = Expert { gate: w.clone(), up: w, down: back };
        assert_eq!(k.experts(&x, &routing, &vec![expert; 4]).unwrap().shape(), [0, 4]);
        for (starts, contexts) in [(&[0][..], &[][..]), (&[0, 0, 0], &[0, 0])] {
            let spans = Spans { query_starts: u32s(starts), context_lens: u32s(contexts), causal: true };
            let kv = KeyValues::Packed { k: &zeros(&[0, 1, 4]), v: &zeros(&[0, 1, 4]) };
            assert_eq!(k.attention(&zeros(&[0, 2, 4]), kv, &spans, 1.0).unwrap().shape(), [0, 2, 4]);
        }
    }
}

#[test]
fn sizes_of_zero_that_mean_nothing_are_refused() {
    let spans = Spans { query_starts: u32s(&[0, 3]), context_lens: u32s(&[3]), causal: true };
    refused("attention: q has shape [3, 2, 0]", |k| {
        let kv = KeyValues::Packed { k: &zeros(&[3, 1, 0]), v: &zeros(&[3, 1, 0]) };
        k.attention(&zeros(&[3, 2, 0]), kv, &spans, 1.0)
    });
    refused("attention: q has shape [3, 0, 4]", |k| {
        let kv = KeyValues::Packed { k: &zeros(&[3, 1, 4]), v: &zeros(&[3, 1, 4]) };
        k.attention(&zeros(&[3, 0, 4]), kv, &spans, 1.0)
    });
    refused("attention: k has shape [3, 1, 0, 4]", |k| {
        let (cache, block_table) = (zeros(&[3, 1, 0, 4]), u32s(&[0, 1, 2]).reshape(&[1, 3])?);
        let kv = KeyValues::Paged { k: &cache, v: &cache, block_table: &block_table };
        k.attention(&zeros(&[3, 2, 4]), kv, &spans, 1.0)
    });
    refused("rms_norm: x has shape []", |k| k.rms_norm(&zeros(&[]), &zeros(&[0]), 1e-5));
}

#[test]
fn a_routing_of_other_tokens_is_refused() {
    let expert = |k: &dyn Kernels| -> Result<[Expert; 1]> {
        let w = k.pack(&zeros(&[4, 4]), Format::F32)?;
        Ok([Expert { gate: w.clone(), up: w.clone(), down: w }])
    };
    let routing = |experts: usize, weights: usize| Routing {
        experts: Tensor::zeros(&[experts, 1], DType::U32),
        weights: zeros(&[weights, 1]),
    };
    refused("experts: routing has shape [1, 1]", |k| k.experts(&zeros(&[2, 4]), &routing(1, 1), &expert(k)?));
    refused("experts: routing weights has shape [1, 1]", |k| {
        k.experts(&zeros(&[2, 4]), &routing(2, 1), &expert(k)?)
    });
}

/// Several blocks of rows, several stretches along k, groups of panels with an odd one at the end: whatever the number
/// of threads makes of them, the bits of a row are those of one thread on the vector unit that has only this row.
#[test]
fn large_products_have_the_bits_of_small_ones() {
    for isa in [Isa::Avx512, Isa::Avx512Bf16, Isa::Amx] {
        if !Isa::available().contains(&isa) {
            println!("skipped: no {}", isa.name());
            continue;
        }
        // The matrix unit sums like the vectors of AVX-512; pairs of bf16 have their own order.
        let alone = cpu(if isa == Isa::Amx { Isa::Avx512 } else { isa }, 1);
        for (rows, outputs, inputs) in
            [(530, 16 * 37 + 5, 600), (1100, 40, 1200), (33, 2000, 33), (2, 2003, 1025)]
        {
            let (x, w) = (values(&[rows, inputs]), values(&[outputs, inputs]));
            for format in Format::ALL {
                let packed = alone.pack(&w, format).unwrap();
                let row = |t| alone.linear(&x.slice_rows(t..t + 1).unwrap(), &packed).unwrap();
                let rows_alone: Vec<Tensor> = (0..rows).map(row).collect();
                for threads in [1, 3] {
                    let kernels = cpu(isa, threads);
                    let w = kernels.pack(&w, format).unwrap();
                    for y in kernels.linears(&x, &[&w, &w]).unwrap() {
                        let bytes = y.as_bytes().unwrap();
                        for (t, (row, alone)) in bytes.chunks(4 * outputs).zip(&rows_alone).enumerate() {
                            let same = row == alone.as_bytes().unwrap();
                            assert!(same, "{format} {rows}x{outputs}x{inputs}, row {t} on {kernels:?}");
                        }
                    }
                }
            }
        }
    }
}

/// The matrix unit takes denormal numbers for zeros, so every path must: alone or in a batch, a row has the same bits.
#[test]
fn denormal_numbers_do_not_depend_on_the_batch() {
    for kernels in implementations() {
        for (weight, input) in [(1e-39, 1.0), (-1.0, 1e-39), (1e-39, -1e-39)] {
            let w = Tensor::from_slice(&[16, 64], &[weight; 1024]).unwrap();
            let w = kernels.pack(&w, Format::BF16).unwrap();
            let x = Tensor::from_slice(&[40, 64], &[input; 40 * 64]).unwrap();
            let all = kernels.linear(&x, &w).unwrap();
            let alone = kernels.linear(&x.slice_rows(0..1).unwrap(), &w).unwrap();
            let in_the_batch = all.slice_rows(0..1).unwrap();
            assert_eq!(alone.as_bytes().unwrap(), in_the_batch.as_bytes().unwrap(), "{weight} by {input}");
        }
    }
}

/// The matrix unit takes several rows at once; what is not a number in one of them stays there.
#[test]
fn a_row_that_is_not_finite_spoils_no_other() {
    for kernels in implementations() {
        for format in Format::ALL {
            let w = kernels.pack(&values(&[40, 70]), format).unwrap();
            let mut x = values(&[20, 70]).to_f32_vec().unwrap();
            let clean = kernels.linear(&Tensor::from_slice(&[20, 70], &x).unwrap(), &w).unwrap();
            (x[3 * 70 + 5], x[17 * 70]) = (f32::NAN, f32::INFINITY);
            let spoilt = kernels.linear(&Tensor::from_slice(&[20, 70], &x).unwrap(), &w).unwrap();
            let (clean, spoilt) = (clean.to_f32_vec().unwrap(), spoilt.to_f32_vec().unwrap());
            for (t, (spoilt, clean)) in spoilt.chunks(40).zip(clean.chunks(40)).enumerate() {
                match t {
                    3 => assert!(spoilt.iter().all(|y| y.is_nan()), "{format}"),
                    17 => assert!(spoilt.iter().all(|y| !y.is_finite()), "{format}"),
                    _ => assert_eq!(spoilt, clean, "{format}: row {t}"),
                }
            }
        }
    }
}
