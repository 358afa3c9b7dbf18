//! The oracles: one expression each.

use kanana_tensor::{DType, Tensor, bf16};

use super::{check_bias, check_gate, check_pair};
use crate::Result;
use crate::ops::check;

pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    zip("silu_mul", gate, up, |g, u| g / (1.0 + (-g).exp()) * u)
}

pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    zip("add", x, y, |x, y| x + y)
}

pub(crate) fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    zip("scale", x, x, |x, _| x * factor)
}

pub(crate) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let width = check_bias(x, bias)?;
    let bias = check::slice::<f32>("add_bias", bias)?;
    map("add_bias", x, |i, x| x + bias[i % width])
}

pub(crate) fn sigmoid_gate(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let width = check_gate(x, gate)?;
    let gate = check::slice::<f32>("sigmoid_gate", gate)?;
    map("sigmoid_gate", x, |i, x| x / (1.0 + (-gate[i / width]).exp()))
}

pub(crate) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    check::storable("cast", "dtype", dtype)?;
    let values = check::in_op("cast", x.to_f32_vec())?;
    let cast = match dtype {
        DType::BF16 => {
            Tensor::from_slice(x.shape(), &values.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
        }
        _ => Tensor::from_slice(x.shape(), &values),
    };
    check::in_op("cast", cast)
}

fn zip(op: &'static str, x: &Tensor, y: &Tensor, f: impl Fn(f32, f32) -> f32) -> Result<Tensor> {
    check_pair(op, x, y)?;
    let y = check::slice::<f32>(op, y)?;
    map(op, x, |i, x| f(x, y[i]))
}

fn map(op: &'static str, x: &Tensor, f: impl Fn(usize, f32) -> f32) -> Result<Tensor> {
    let values: Vec<f32> = check::slice::<f32>(op, x)?.iter().enumerate().map(|(i, &x)| f(i, x)).collect();
    check::in_op(op, Tensor::from_slice(x.shape(), &values))
}

pub(crate) fn silu_mul_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "silu_mul_backward";
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let by_up = zip(OP, dy, up, |dy, u| dy * u)?;
    let dgate = zip(OP, &by_up, gate, |d, g| d * sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g))))?;
    Ok((dgate, zip(OP, dy, gate, |dy, g| dy * g * sigmoid(g))?))
}

pub(crate) fn sigmoid_gate_backward(x: &Tensor, gate: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "sigmoid_gate_backward";
    let width = check_gate(x, gate)?;
    check_pair(OP, x, dy)?;
    let dx = sigmoid_gate(dy, gate)?;
    let (xs, dxs) = (check::slice::<f32>(OP, x)?, check::slice::<f32>(OP, &dx)?);
    let gates = check::slice::<f32>(OP, gate)?;
    // dx is dy times the sigmoid; the derivative of the sigmoid is it times one less it.
    let row = |t: usize| t * width..(t + 1) * width;
    let dot = |t: usize| xs[row(t)].iter().zip(&dxs[row(t)]).map(|(x, d)| x * d).sum::<f32>();
    let dgate: Vec<f32> =
        gates.iter().enumerate().map(|(t, g)| dot(t) * (1.0 - 1.0 / (1.0 + (-g).exp()))).collect();
    let dgate = check::in_op(OP, Tensor::from_slice(gate.shape(), &dgate))?;
    Ok((dx, dgate))
}
