//! Wrong arguments are errors that name the op, on every implementation alike: nothing panics, nothing reads outside.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

use kanana_kernels::{
    Cpu, Format, Gate, Kernels, KeyValues, Packed, Reference, Result, RopeTable, RouterOptions, Spans,
};
use kanana_tensor::{DType, Tensor};

fn f32s(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32)
}

fn u32s(values: &[u32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

fn check<T>(expected: &str, call: impl Fn(&dyn Kernels) -> Result<T>) {
    let implementations: [&dyn Kernels; 2] = [&Reference, &Cpu::default()];
    for kernels in implementations {
        let message = call(kernels).err().expect("an error").to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn shapes_are_checked() {
    check("linear: x has shape [2, 3], expected [T, 4]", |k| {
        k.linear(&f32s(&[2, 3]), &k.pack(&f32s(&[5, 4]), Format::F32)?)
    });
    check("pack: matrix has shape [4]", |k| k.pack(&f32s(&[4]), Format::F32));
    check("rms_norm: weight has shape [3], expected [4]", |k| k.rms_norm(&f32s(&[2, 4]), &f32s(&[3]), 1e-5));
    check("add: second argument has shape [3, 2]", |k| k.add(&f32s(&[2, 3]), &f32s(&[3, 2])));
    check("add_bias: bias", |k| k.add_bias(&f32s(&[2, 3]), &f32s(&[2])));
    check("sigmoid_gate: gate", |k| k.sigmoid_gate(&f32s(&[2, 3]), &f32s(&[3, 1])));
    check("scatter_add_rows: x", |k| {
        k.scatter_add_rows(f32s(&[2, 3]), &f32s(&[1, 4]), &u32s(&[0]), &f32s(&[1]))
    });
    let table = RopeTable { cos: f32s(&[10, 4]), sin: f32s(&[10, 4]) };
    check("rope: x has shape [1, 1, 6]", |k| k.rope(&f32s(&[1, 1, 6]), &table, &u32s(&[0])));
    let router = RouterOptions { gate: Gate::Softmax, top_k: 5, renormalise: true, scale: 1.0 };
    check("route: logits", |k| k.route(&f32s(&[1, 4]), None, router));
    let router = RouterOptions { top_k: 2, ..router };
    check("route: bias", |k| k.route(&f32s(&[1, 4]), Some(&f32s(&[3])), router));
}

#[test]
fn dtypes_are_checked() {
    check("got u32", |k| k.pack(&Tensor::zeros(&[2, 2], DType::U32), Format::F32));
    check("cast: dtype is f16", |k| k.cast(&f32s(&[2]), DType::F16));
    check("expected a f32 tensor, got bf16", |k| k.add(&Tensor::zeros(&[2], DType::BF16), &f32s(&[2])));
}

#[test]
fn indices_are_checked() {
    check("embedding: index 5 is out of range, there are 5", |k| {
        k.embedding(&u32s(&[5]), &k.pack(&f32s(&[5, 2]), Format::F32)?)
    });
    check("gather_rows: index 2", |k| k.gather_rows(&f32s(&[2, 3]), &u32s(&[0, 2])));
    let table = RopeTable { cos: f32s(&[10, 2]), sin: f32s(&[10, 2]) };
    check("rope: index 10", |k| k.rope(&f32s(&[1, 1, 4]), &table, &u32s(&[10])));
    check("write_kv: index 8", |k| k.write_kv(&f32s(&[1, 1, 2]), &mut f32s(&[2, 1, 4, 2]), &u32s(&[8])));
}

#[test]
fn spans_are_checked() {
    let attend = |starts: &[u32], contexts: &[u32], expected: &str| {
        let spans = Spans { query_starts: u32s(starts), context_lens: u32s(contexts), causal: true };
        check(expected, |kernels| {
            let (q, k, v) = (f32s(&[3, 2, 4]), f32s(&[3, 1, 4]), f32s(&[3, 1, 4]));
            kernels.attention(&q, KeyValues::Packed { k: &k, v: &v }, &spans, 1.0)
        });
    };
    attend(&[0, 2], &[2], "attention: query_starts");
    attend(&[0, 2, 1, 3], &[2, 0, 2], "attention: query_starts");
    attend(&[0, 3], &[3, 1], "attention: query_starts");
    attend(&[0, 3], &[4], "attention: index");
}

#[test]
fn block_tables_are_checked() {
    let attend = |context: u32, table: &[u32], expected: &str| {
        let spans = Spans { query_starts: u32s(&[0, 1]), context_lens: u32s(&[context]), causal: true };
        let block_table = u32s(table).reshape(&[1, table.len()]).unwrap();
        check(expected, |kernels| {
            let (q, k, v) = (f32s(&[1, 2, 4]), f32s(&[3, 1, 2, 4]), f32s(&[3, 1, 2, 4]));
            let kv = KeyValues::Paged { k: &k, v: &v, block_table: &block_table };
            kernels.attention(&q, kv, &spans, 1.0)
        });
    };
    attend(5, &[0, 1], "attention: index 3");
    attend(3, &[0, 3], "attention: index 3");
    attend(0, &[0], "attention: index 1");
}

#[test]
fn a_weight_of_another_implementation_is_refused() {
    let (foreign, cpu) = (Reference.pack(&f32s(&[2, 2]), Format::F32).unwrap(), Cpu::default());
    assert!(cpu.linear(&f32s(&[1, 2]), &foreign).unwrap_err().to_string().contains("pack it with"));
}

#[test]
fn packed_bytes_are_checked() {
    let attempt = |format: Format, [n, k]: [usize; 2], panels: Tensor, expected: &str| {
        let packed = Packed { format, out_features: n, in_features: k, panels };
        check(expected, |kernels| kernels.adopt(&packed));
    };
    let [panels, bytes] = Packed::shape(Format::Q4, 17, 70).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::U8);
    attempt(Format::BF16, [17, 70], zeros(&[panels, bytes]), "adopt: bf16 is not quantised");
    attempt(Format::Q4, [17, 70], f32s(&[panels, bytes]), "adopt: panels is f32, expected u8");
    let expected = format!("adopt: panels has shape [{panels}, {}], expected [{panels}, {bytes}]", bytes - 1);
    attempt(Format::Q4, [17, 70], zeros(&[panels, bytes - 1]), &expected);
    attempt(Format::Q8, [17, 70], zeros(&[panels, bytes]), "adopt: panels has shape");
    attempt(Format::Q4, [33, 70], zeros(&[panels, bytes]), "adopt: panels has shape");
    attempt(Format::Q4, [17, 70], zeros(&[panels * bytes]), "adopt: panels has shape");
    for huge in [[17, usize::MAX], [usize::MAX, 70], [usize::MAX, usize::MAX]] {
        attempt(Format::Q8, huge, zeros(&[0]), "adopt: panels has shape");
    }
}

#[test]
fn a_shared_cache_is_not_written() {
    let mut cache = f32s(&[1, 1, 4, 2]);
    let _other = cache.clone();
    assert!(Cpu::default().write_kv(&f32s(&[1, 1, 2]), &mut cache, &u32s(&[0])).is_err());
}
