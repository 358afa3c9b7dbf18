//! Loops that do nothing but multiply and add, as fast as a unit can: chains of sums that do not wait for each other.

#![allow(unsafe_code)]

use std::hint::black_box;

use super::Unit;
use crate::runtime::simd::{BYTES, Isa, Kernel, LANES, Lanes, dispatch};

/// Products that one call makes on vectors, and on tiles.
const VECTOR_PRODUCTS: usize = 24_000_000;
const TILE_PRODUCTS: usize = 400_000;
/// Vectors that are loaded in turn: 7.5 KiB of the first-level cache.
const HELD: usize = 120;

/// On cache lines: a load that straddles two of them counts twice.
#[repr(C, align(64))]
struct Held<T>([T; HELD]);

/// What one call does.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) isa: Isa,
    pub(super) unit: Unit,
    /// Every product loads one of its operands.
    pub(super) loads: bool,
}

impl Work {
    /// Two for every multiply-add of one call.
    pub(super) fn operations(self) -> f64 {
        let of_product = match self.unit {
            Unit::F32Vectors => 2 * LANES,
            Unit::Bf16Vectors => 2 * 2 * LANES,
            Unit::Int8Vectors => 2 * 4 * LANES,
            Unit::Bf16Tiles => 2 * 16 * 16 * 32,
            Unit::Int8Tiles => 2 * 16 * 16 * 64,
        };
        (self.products() * of_product) as f64
    }

    fn products(self) -> usize {
        match self.unit {
            Unit::Bf16Tiles | Unit::Int8Tiles => TILE_PRODUCTS,
            _ if self.isa < Isa::Avx512 => VECTOR_PRODUCTS / 8,
            _ => VECTOR_PRODUCTS,
        }
    }

    /// Makes the products of one call. The instruction set must be one that this processor has.
    pub(super) fn run(self) {
        assert!(Unit::available(self.isa).contains(&self.unit), "{self:?} was not detected: this is a bug");
        match self.unit {
            Unit::F32Vectors | Unit::Int8Vectors => match self.isa {
                // As many chains as there are registers for: four, two or one to a vector of sixteen lanes.
                Isa::Portable => dispatch(self.isa, Chains::<3>(self)),
                Isa::Avx2 => dispatch(self.isa, Chains::<6>(self)),
                _ => dispatch(self.isa, Chains::<12>(self)),
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the unit is there only where the processor has the instruction.
            Unit::Bf16Vectors => unsafe {
                match self.loads {
                    true => dot_pairs::<true>(self.products()),
                    false => dot_pairs::<false>(self.products()),
                }
            },
            #[cfg(target_arch = "x86_64")]
            Unit::Bf16Tiles => tiles::bf16(self.products() / 4, self.loads),
            #[cfg(target_arch = "x86_64")]
            Unit::Int8Tiles => tiles::int8(self.products() / 4, self.loads),
            #[cfg(not(target_arch = "x86_64"))]
            _ => {}
        }
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.unit.name(), self.isa.name())
    }
}

/// Products in the lanes that the kernels use.
struct Chains<const N: usize>(Work);

impl<const N: usize> Kernel for Chains<N> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Work { unit, loads, .. } = self.0;
        let steps = self.0.products() / N;
        match (unit, loads) {
            (Unit::Int8Vectors, false) => {
                let x = L::load_bytes(&black_box([3; BYTES]));
                let mut sums = [L::splat_int(0); N];
                for _ in 0..steps {
                    let quad = black_box([1, -1, 2, -2]); // else the product would be made once
                    for sum in &mut sums {
                        *sum = L::add_quads(*sum, x, quad);
                    }
                }
                keep::<L>(sums.map(L::from_ints));
            }
            (Unit::Int8Vectors, true) => {
                let held = black_box(Held([[3; BYTES]; HELD]));
                let mut sums = [L::splat_int(0); N];
                for _ in 0..steps * N / HELD {
                    let quad = black_box([1, -1, 2, -2]);
                    for x in held.0.as_chunks::<N>().0 {
                        for i in 0..N {
                            sums[i] = L::add_quads(sums[i], L::load_bytes(&x[i]), quad);
                        }
                    }
                }
                keep::<L>(sums.map(L::from_ints));
            }
            (_, false) => {
                let x = L::splat(black_box(0.999_999));
                let mut sums = [L::splat(0.0); N];
                for _ in 0..steps {
                    let y = L::splat(black_box(1.000_001));
                    for sum in &mut sums {
                        *sum = sum.fma(x, y);
                    }
                }
                keep::<L>(sums);
            }
            (_, true) => {
                let held = black_box(Held([[0.999_999; LANES]; HELD]));
                let mut sums = [L::splat(0.0); N];
                for _ in 0..steps * N / HELD {
                    let y = L::splat(black_box(1.000_001));
                    for x in held.0.as_chunks::<N>().0 {
                        for i in 0..N {
                            sums[i] = sums[i].fma(L::load(&x[i]), y);
                        }
                    }
                }
                keep::<L>(sums);
            }
        }
    }
}

/// Makes the sums seem to be used.
#[inline(always)]
fn keep<L: Lanes>(sums: impl IntoIterator<Item = L>) {
    for sum in sums {
        black_box(sum.sum());
    }
}

/// bf16 pairs in vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_pairs<const LOADS: bool>(products: usize) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_reduce_add_ps, _mm512_setzero_ps,
    };
    const CHAINS: usize = 12;
    const ONE: u16 = 0x3f80;
    let held = black_box(Held([[ONE; 2 * LANES]; HELD]));
    let load = |x: &[u16; 2 * LANES]| -> __m512bh {
        // SAFETY: the reference is to the 64 bytes that are read, which are 32 bf16 numbers whatever the bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(x.as_ptr().cast())) }
    };
    let x = load(&held.0[0]);
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..products / HELD {
        for y in held.0.as_chunks::<CHAINS>().0 {
            for i in 0..CHAINS {
                let y = if LOADS { load(&y[i]) } else { x };
                sums[i] = _mm512_dpbf16_ps(sums[i], x, y);
            }
        }
    }
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
}

/// Two by two tiles of sums, as the kernels keep them.
#[cfg(target_arch = "x86_64")]
mod tiles {
    use std::arch::asm;

    use crate::runtime::amx::Tiles;

    /// Four tiles of operands, on cache lines.
    #[repr(C, align(64))]
    struct Operands([u8; 4 * 1024]);

    macro_rules! products {
        ($name:ident, $instruction:literal) => {
            /// `steps` times four products of four operands, which stay in registers or are loaded anew.
            pub(super) fn $name(steps: usize, loads: bool) {
                let operands = Operands([0; 4 * 1024]);
                let _tiles = Tiles::configure();
                let steps = steps.max(1);
                if loads {
                    // SAFETY: the tile registers are set up, and every load reads 1 KiB inside of `operands`.
                    unsafe {
                        asm!(
                            "2:",
                            "tileloadd tmm4, [{at} + {stride}]",
                            "tileloadd tmm6, [{at} + {stride} + 1024]",
                            concat!($instruction, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{at} + {stride} + 2048]",
                            concat!($instruction, " tmm1, tmm4, tmm7"),
                            "tileloadd tmm5, [{at} + {stride} + 3072]",
                            concat!($instruction, " tmm2, tmm5, tmm6"),
                            concat!($instruction, " tmm3, tmm5, tmm7"),
                            "dec {steps}",
                            "jnz 2b",
                            at = in(reg) operands.0.as_ptr(),
                            stride = in(reg) 64usize,
                            steps = inout(reg) steps => _,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack, readonly),
                        );
                    }
                } else {
                    // SAFETY: the tile registers are set up, all zeros, and no memory is touched.
                    unsafe {
                        asm!(
                            "2:",
                            concat!($instruction, " tmm0, tmm4, tmm6"),
                            concat!($instruction, " tmm1, tmm4, tmm7"),
                            concat!($instruction, " tmm2, tmm5, tmm6"),
                            concat!($instruction, " tmm3, tmm5, tmm7"),
                            "dec {steps}",
                            "jnz 2b",
                            steps = inout(reg) steps => _,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack, nomem),
                        );
                    }
                }
            }
        };
    }
    products!(bf16, "tdpbf16ps");
    products!(int8, "tdpbusd");
}
