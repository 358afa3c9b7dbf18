//! Quantised weights as bytes: taken up again they are the same weight, and the same everywhere.
//! Tests: `cargo test -p kanana-kernels --test packed`.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

use std::sync::Arc;

use kanana_kernels::runtime::Isa;
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels, Packed, Reference, Weight};
use kanana_tensor::{DType, Tensor};

/// Values in -1..1 that look random.
fn matrix(n: usize, k: usize) -> Tensor {
    let mut state = (n * 1000 + k) as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    Tensor::from_slice(&[n, k], &Vec::from_iter((0..n * k).map(|_| next()))).unwrap()
}

fn quantised() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| format.is_quantised())
}

fn bytes(weight: &Weight) -> Vec<u8> {
    weight.packed().unwrap().panels.as_bytes().unwrap().to_vec()
}

/// Every row of a weight, as numbers.
fn rows(kernels: &dyn Kernels, weight: &Weight) -> Vec<f32> {
    let ids = Vec::from_iter(0..weight.out_features() as u32);
    let ids = Tensor::from_slice(&[ids.len()], &ids).unwrap();
    kernels.embedding(&ids, weight).unwrap().to_f32_vec().unwrap()
}

/// Bitwise: the bytes, the products, and what the oracle reads out of the bytes is what it makes of the matrix itself.
#[test]
fn packed_bytes_are_the_weight_again() {
    let cpu = Cpu::default();
    // The last one is copied in several pieces.
    for (n, k) in [(1, 1), (16, 64), (33, 129), (5, 256), (48, 515), (17, 700), (630, 1100)] {
        let (matrix, x) = (matrix(n, k), matrix(3, k));
        for format in quantised() {
            let name = format!("{format} {n}x{k}");
            let weight = cpu.pack(&matrix, format).unwrap();
            let packed = weight.packed().unwrap();
            assert_eq!(packed.panels.shape(), Packed::shape(format, n, k).unwrap(), "{name}");
            assert_eq!(packed.panels.bytes(), weight.bytes(), "{name}");

            let adopted = cpu.adopt(&packed).unwrap();
            assert!(adopted.format() == format && bytes(&adopted) == bytes(&weight), "{name}");
            let product = |weight: &Weight| cpu.linear(&x, weight).unwrap().as_bytes().unwrap().to_vec();
            assert!(product(&adopted) == product(&weight), "{name}");

            let oracle = rows(&Reference, &Reference.pack(&matrix, format).unwrap());
            assert_eq!(rows(&Reference, &Reference.adopt(&packed).unwrap()), oracle, "{name}");
            assert_eq!(rows(&cpu, &adopted), oracle, "{name}");
        }
    }
}

/// A file is written on one machine and read on another.
#[test]
fn packed_bytes_depend_on_neither_instructions_nor_threads() {
    let matrix = matrix(83, 321);
    for format in quantised() {
        let expected = bytes(&Cpu::default().pack(&matrix, format).unwrap());
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) });
                assert!(bytes(&cpu.pack(&matrix, format).unwrap()) == expected, "{cpu:?} {format}");
            }
        }
    }
}

/// Where a tensor starts in a file is up to whoever wrote the file.
#[test]
fn packed_bytes_may_start_anywhere() {
    let matrix = matrix(20, 300);
    for format in quantised() {
        let packed = Cpu::default().pack(&matrix, format).unwrap().packed().unwrap();
        let shifted = [&[0; 1], packed.panels.as_bytes().unwrap()].concat();
        let panels = Tensor::from_shared(packed.panels.shape(), DType::U8, Arc::new(shifted), 1).unwrap();
        let shifted = Packed { panels, ..packed };
        let oracle = rows(&Reference, &Reference.pack(&matrix, format).unwrap());
        let implementations: [&dyn Kernels; 2] = [&Reference, &Cpu::default()];
        for kernels in implementations {
            assert_eq!(rows(kernels, &kernels.adopt(&shifted).unwrap()), oracle, "{format}");
        }
    }
}

/// Bytes mean these numbers in this version. When it fails, files that exist would be read as other models: raise
/// [`Packed::VERSION`] and note the new sums.
#[test]
fn the_version_stands_for_this_layout() {
    assert_eq!(Packed::VERSION, 1);
    for (format, expected) in [(Format::Q8, 0x4b13_ed1c_526e_f6a0), (Format::Q4, 0x4c10_ec3f_e654_7363)] {
        let shape = Packed::shape(format, 21, 600).unwrap();
        let pattern = Vec::from_iter((0..shape[0] * shape[1]).map(|i| (i * i % 61) as u8));
        let panels = Tensor::from_slice(&shape, &pattern).unwrap();
        let packed = Packed { format, out_features: 21, in_features: 600, panels };
        let numbers = rows(&Reference, &Reference.adopt(&packed).unwrap());
        // FNV-1a.
        let sum = numbers
            .iter()
            .flat_map(|x| x.to_bits().to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(sum, expected, "{format}: {sum:#x}");
    }
}

#[test]
fn only_panels_of_codes_have_packed_bytes() {
    let matrix = matrix(3, 20);
    for format in Format::ALL {
        let packed = Cpu::default().pack(&matrix, format).unwrap().packed();
        assert_eq!(packed.is_some(), format.is_quantised(), "{format}");
        assert_eq!(Packed::shape(format, 3, 20).is_some(), format.is_quantised(), "{format}");
        assert!(Reference.pack(&matrix, format).unwrap().packed().is_none(), "the oracle has rows");
    }
}
