//! New keys and values into a paged cache.

use kanana_tensor::{Element, Tensor, bf16};

use super::kv_format::quantise;
use super::{KvFormat, check_write_kv};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, Lanes, dispatch, to_bf16};
use crate::runtime::threads::SharedMut;

/// A task writes one head of all tokens: where two tokens name one slot, the later one stays, as if one thread wrote.
pub(crate) fn write_kv(machine: Machine<'_>, x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()> {
    match KvFormat::of(cache.dtype()) {
        Some(KvFormat::BF16) => write::<bf16>(machine, x, cache, slots),
        Some(KvFormat::Q8) => write::<u8>(machine, x, cache, slots),
        _ => write::<f32>(machine, x, cache, slots),
    }
}

fn write<E: Rounded>(machine: Machine<'_>, x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()> {
    let ([_, kv_heads, block_size, row_len], slots) = check_write_kv(x, cache, slots)?;
    let head_dim = x.row_len() / kv_heads.max(1);
    let x = check::slice::<f32>("write_kv", x)?;
    let cache = SharedMut::new(check::slice_mut::<E>("write_kv", cache)?);
    machine.threads.run(kv_heads, &|head| {
        let head = Head { x, slots, cache: &cache, head, kv_heads, block_size, row_len, head_dim };
        dispatch(machine.isa, head);
    });
    Ok(())
}

/// An element of a cache.
trait Rounded: Element {
    fn round(x: &[f32], to: &mut [Self]);
}

impl Rounded for f32 {
    #[inline(always)]
    fn round(x: &[f32], to: &mut [f32]) {
        to.copy_from_slice(x);
    }
}

impl Rounded for bf16 {
    #[inline(always)]
    fn round(x: &[f32], to: &mut [bf16]) {
        for (to, &x) in to.iter_mut().zip(x) {
            *to = to_bf16(x);
        }
    }
}

impl Rounded for u8 {
    #[inline(always)]
    fn round(x: &[f32], to: &mut [u8]) {
        quantise(x, to);
    }
}

/// One head of all tokens.
struct Head<'a, E> {
    x: &'a [f32], // [T, K, H]
    slots: &'a [u32],
    cache: &'a SharedMut<'a, E>, // [B, K, P, W]
    head: usize,
    kv_heads: usize,
    block_size: usize,
    row_len: usize,
    head_dim: usize,
}

impl<E: Rounded> Kernel for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    #[allow(unsafe_code)]
    fn run<L: Lanes>(self) {
        for (t, &slot) in self.slots.iter().enumerate() {
            let (block, offset) = (slot as usize / self.block_size, slot as usize % self.block_size);
            let place = ((block * self.kv_heads + self.head) * self.block_size + offset) * self.row_len;
            // SAFETY: the rows of a head belong to one task, which holds one at a time.
            let to = unsafe { self.cache.range(place, self.row_len) };
            E::round(&self.x[(t * self.kv_heads + self.head) * self.head_dim..][..self.head_dim], to);
        }
    }
}
