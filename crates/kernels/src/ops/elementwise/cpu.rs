//! Elements in vectors of sixteen; the last vector of a chunk is padded.

use kanana_tensor::{DType, Tensor, bf16};

use super::{check_bias, check_gate, check_pair};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch, to_bf16};

/// Elements in a task.
const CHUNK: usize = 16 << 10;

pub(crate) fn silu_mul(machine: Machine<'_>, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    pairs(machine, "silu_mul", gate, up, SiluMul)
}

pub(crate) fn silu_mul_backward(
    machine: Machine<'_>,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "silu_mul_backward";
    let by_up = pairs(machine, OP, dy, up, Mul)?;
    Ok((pairs(machine, OP, gate, &by_up, SiluSlope)?, pairs(machine, OP, gate, dy, SiluMul)?))
}

pub(crate) fn add(machine: Machine<'_>, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    pairs(machine, "add", x, y, Add)
}

pub(crate) fn scale(machine: Machine<'_>, x: &Tensor, factor: f32) -> Result<Tensor> {
    pairs(machine, "scale", x, x, Scale(factor))
}

pub(crate) fn add_bias(machine: Machine<'_>, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let width = check_bias(x, bias)?;
    let bias = check::slice::<f32>("add_bias", bias)?;
    rows(machine, "add_bias", x, width, |_, from, to| {
        dispatch(machine.isa, Zip { op: Add, x: from, y: bias, to })
    })
}

pub(crate) fn sigmoid_gate(machine: Machine<'_>, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let width = check_gate(x, gate)?;
    let gate = check::slice::<f32>("sigmoid_gate", gate)?;
    rows(machine, "sigmoid_gate", x, width, |t, from, to| {
        let factor = 1.0 / (1.0 + (-gate[t]).exp());
        dispatch(machine.isa, Zip { op: Scale(factor), x: from, y: from, to });
    })
}

pub(crate) fn cast(machine: Machine<'_>, x: &Tensor, dtype: DType) -> Result<Tensor> {
    check::storable("cast", "dtype", dtype)?;
    check::storable("cast", "x", x.dtype())?;
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let mut y = machine.pool.tensor(x.shape(), dtype);
    match dtype {
        DType::BF16 => {
            let from = check::slice::<f32>("cast", x)?;
            machine.threads.chunks_mut(check::slice_mut::<bf16>("cast", &mut y)?, CHUNK, |i, to| {
                dispatch(machine.isa, Narrow { from: &from[i * CHUNK..][..to.len()], to });
            });
        }
        _ => {
            let from = check::slice::<bf16>("cast", x)?;
            machine.threads.chunks_mut(check::slice_mut::<f32>("cast", &mut y)?, CHUNK, |i, to| {
                dispatch(machine.isa, Widen { from: &from[i * CHUNK..][..to.len()], to });
            });
        }
    }
    Ok(y)
}

fn pairs(
    machine: Machine<'_>,
    op: &'static str,
    x: &Tensor,
    y: &Tensor,
    f: impl Pair + Sync,
) -> Result<Tensor> {
    check_pair(op, x, y)?;
    let (x_values, y_values) = (check::slice::<f32>(op, x)?, check::slice::<f32>(op, y)?);
    let mut out = machine.pool.tensor(x.shape(), DType::F32);
    machine.threads.chunks_mut(check::slice_mut::<f32>(op, &mut out)?, CHUNK, |i, to| {
        let (x, y) = (&x_values[i * CHUNK..][..to.len()], &y_values[i * CHUNK..][..to.len()]);
        dispatch(machine.isa, Zip { op: f, x, y, to });
    });
    Ok(out)
}

fn rows(
    machine: Machine<'_>,
    op: &'static str,
    x: &Tensor,
    width: usize,
    f: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Result<Tensor> {
    let from = check::slice::<f32>(op, x)?;
    let mut out = machine.pool.tensor(x.shape(), DType::F32);
    let to = check::slice_mut::<f32>(op, &mut out)?;
    machine.threads.rows_mut(to, width, |t, to| f(t, &from[t * width..][..width], to));
    Ok(out)
}

/// A function of two elements.
trait Pair: Copy {
    fn apply<L: Lanes>(self, x: L, y: L) -> L;
}

#[derive(Clone, Copy)]
struct SiluMul;
impl Pair for SiluMul {
    #[inline(always)]
    fn apply<L: Lanes>(self, gate: L, up: L) -> L {
        let negated = L::splat(0.0).sub(gate);
        gate.div(L::splat(1.0).add(negated.exp())).mul(up)
    }
}

/// The derivative of `silu(gate)`, times `y`.
#[derive(Clone, Copy)]
struct SiluSlope;
impl Pair for SiluSlope {
    #[inline(always)]
    fn apply<L: Lanes>(self, gate: L, y: L) -> L {
        let one = L::splat(1.0);
        let sigmoid = one.div(one.add(L::splat(0.0).sub(gate).exp()));
        sigmoid.mul(one.fma(gate, one.sub(sigmoid))).mul(y)
    }
}

#[derive(Clone, Copy)]
struct Mul;
impl Pair for Mul {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, y: L) -> L {
        x.mul(y)
    }
}

#[derive(Clone, Copy)]
struct Add;
impl Pair for Add {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, y: L) -> L {
        x.add(y)
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);
impl Pair for Scale {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, _: L) -> L {
        x.mul(L::splat(self.0))
    }
}

struct Zip<'a, F> {
    op: F,
    x: &'a [f32],
    y: &'a [f32],
    to: &'a mut [f32],
}

impl<F: Pair> Kernel for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let ((x, x_tail), (y, y_tail)) = (self.x.as_chunks::<LANES>(), self.y.as_chunks::<LANES>());
        let (to, to_tail) = self.to.as_chunks_mut::<LANES>();
        for ((to, x), y) in to.iter_mut().zip(x).zip(y) {
            self.op.apply(L::load(x), L::load(y)).store(to);
        }
        if !to_tail.is_empty() {
            self.op.apply(L::load_partial(x_tail, 0.0), L::load_partial(y_tail, 0.0)).store_partial(to_tail);
        }
    }
}

struct Narrow<'a> {
    from: &'a [f32],
    to: &'a mut [bf16],
}
impl Kernel for Narrow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to = to_bf16(from);
        }
    }
}

struct Widen<'a> {
    from: &'a [bf16],
    to: &'a mut [f32],
}
impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}
