//! `x · wᵀ` over panels of quantised blocks. See [`super::quant`] for what is computed.
//!
//! A block of codes meets the quantised inputs of some rows: exact integer sums of 64 products, on the 8-bit matrix unit
//! or by dot products of quads, then one multiply-add to scale them. Every path does the same rounded operations in
//! the same order, so a row has the same bits on all of them.

use kanana_tensor::{Tensor, f16};

use super::cpu::checked_outputs;
use super::pack::{PANEL, TILE_ROWS};
use super::quant::{GROUP, InputGroup, QUADS, VECTOR, block_len, codes_len, panel_bytes, quantise_inputs};
#[cfg(target_arch = "x86_64")]
use super::quant_amx::OnMatrixUnit;
use super::{Format, Weight};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
#[cfg(target_arch = "x86_64")]
use crate::runtime::simd::Isa;
use crate::runtime::simd::{BYTES, Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Panels of a task.
const PANELS: usize = 4;
/// Rows of a task: a multiple of two tiles.
const ROWS: usize = 256;
/// Rows from which the matrix unit is faster, where there is one.
#[cfg(target_arch = "x86_64")]
const MATRIX_ROWS: usize = 12;
/// Bytes ahead of the reader that are asked for.
const PREFETCH: usize = 2048;

/// The quantised inputs of all rows.
pub(crate) struct Inputs {
    codes: Vec<i8>,            // [rows / tile_rows][G][tile_rows][64]
    groups: Vec<InputGroup>,   // [rows, G]
    pub(crate) per_row: usize, // G
    /// 16 for the matrix unit, whose rows are padded with zeros to pairs of tiles; else 1.
    tile_rows: usize,
}

impl Inputs {
    fn quantise(machine: Machine<'_>, x: &Tensor, tile_rows: usize) -> Result<Self> {
        let (rows, width) = (x.rows(), x.row_len());
        let per_row = width.div_ceil(GROUP);
        let values = check::slice::<f32>("linear", x)?;
        let padded = if tile_rows == 1 { rows } else { rows.next_multiple_of(2 * tile_rows) };
        let mut codes = vec![0; padded * per_row * GROUP];
        let mut groups = vec![InputGroup::default(); padded * per_row];
        let all_codes = SharedMut::new(&mut codes);
        machine.threads.rows_mut(&mut groups[..rows * per_row], per_row.max(1), |t, groups| {
            let from = &values[t * width..][..width];
            dispatch(machine.isa, QuantiseRow { from, row: t, tile_rows, codes: &all_codes, groups });
        });
        Ok(Inputs { codes, groups, per_row, tile_rows })
    }

    /// The scale and the sum of a group of a row.
    #[inline(always)]
    pub(crate) fn parameters(&self, row: usize, group: usize) -> InputGroup {
        self.groups[row * self.per_row + group]
    }

    /// A group of the rows of a tile.
    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize, group: usize) -> &[i8] {
        let len = self.tile_rows * GROUP;
        &self.codes[(tile * self.per_row + group) * len..][..len]
    }

    /// A group of one row, in quads.
    #[inline(always)]
    fn quads(&self, row: usize, group: usize) -> &[[i8; 4]] {
        let tile = self.tile(row / self.tile_rows, group);
        tile[row % self.tile_rows * GROUP..][..GROUP].as_chunks::<4>().0
    }
}

struct QuantiseRow<'a> {
    from: &'a [f32],
    row: usize,
    tile_rows: usize,
    codes: &'a SharedMut<'a, i8>,
    groups: &'a mut [InputGroup],
}

impl Kernel for QuantiseRow<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(unsafe_code)]
    fn run<L: Lanes>(self) {
        let (tile, row) = (self.row / self.tile_rows * self.groups.len(), self.row % self.tile_rows);
        for (g, (x, group)) in self.from.chunks(GROUP).zip(self.groups).enumerate() {
            // SAFETY: each row belongs to one task.
            let codes = unsafe { self.codes.range(((tile + g) * self.tile_rows + row) * GROUP, GROUP) };
            *group = quantise_inputs(x, codes);
        }
    }
}

/// The products of one input with several quantised weights.
pub(crate) fn linears(machine: Machine<'_>, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let (tokens, mut outputs) = checked_outputs(machine, x, weights)?;
    #[cfg(target_arch = "x86_64")]
    let on_matrix_unit = machine.isa == Isa::Amx && tokens >= MATRIX_ROWS;
    #[cfg(not(target_arch = "x86_64"))]
    let on_matrix_unit = false;
    let inputs = Inputs::quantise(machine, x, if on_matrix_unit { TILE_ROWS } else { 1 })?;
    let mut products = Vec::with_capacity(weights.len());
    for (w, y) in weights.iter().zip(&mut outputs) {
        products.push(Product {
            inputs: &inputs,
            format: w.format,
            panel_bytes: panel_bytes(w.format, w.in_features),
            w: check::slice::<u8>("linear", &w.data)?,
            outputs: w.out_features,
            y: SharedMut::new(check::slice_mut::<f32>("linear", y)?),
        });
    }
    let mut tasks = Vec::new();
    for first in (0..tokens).step_by(ROWS) {
        for product in &products {
            let panels = product.outputs.div_ceil(PANEL);
            tasks.extend((0..panels).step_by(PANELS).map(|panel| Block {
                product,
                rows: first..tokens.min(first + ROWS),
                panels: panel..panels.min(panel + PANELS),
            }));
        }
    }
    machine.threads.run(tasks.len(), &|task| {
        #[cfg(target_arch = "x86_64")]
        if on_matrix_unit {
            return dispatch(machine.isa, OnMatrixUnit(&tasks[task]));
        }
        dispatch(machine.isa, &tasks[task]);
    });
    drop(tasks);
    drop(products);
    Ok(outputs)
}

pub(crate) struct Product<'a> {
    pub(crate) inputs: &'a Inputs,
    pub(crate) format: Format,
    pub(crate) panel_bytes: usize,
    pub(crate) w: &'a [u8],
    outputs: usize,
    y: SharedMut<'a, f32>,
}

/// Some rows against some panels.
pub(crate) struct Block<'a> {
    pub(crate) product: &'a Product<'a>,
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) panels: std::ops::Range<usize>,
}

impl Kernel for &Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        match self.product.format {
            Format::Q4 => self.walk::<L, true>(),
            _ => self.walk::<L, false>(),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn walk<L: Lanes, const NIBBLES: bool>(&self) {
        let mut p = self.panels.start;
        while p + 4 <= self.panels.end {
            self.rows_of::<L, NIBBLES, 4>(p);
            p += 4;
        }
        for p in p..self.panels.end {
            self.rows_of::<L, NIBBLES, 1>(p);
        }
    }

    #[inline(always)]
    fn rows_of<L: Lanes, const NIBBLES: bool, const P: usize>(&self, panel: usize) {
        for row in self.rows.clone() {
            let sums = self.sums::<L, NIBBLES, P>(row, panel);
            self.store(row, panel, sums);
        }
    }

    /// One row by `P` panels.
    #[inline(always)]
    fn sums<L: Lanes, const NIBBLES: bool, const P: usize>(&self, row: usize, panel: usize) -> [L; P] {
        let product = self.product;
        let format = if NIBBLES { Format::Q4 } else { Format::Q8 };
        let mut sums = [L::splat(0.0); P];
        for g in 0..product.inputs.per_row {
            let (quads, group) = (product.inputs.quads(row, g), product.inputs.parameters(row, g));
            let (scale, sum) = (L::splat(group.scale), L::splat(group.sum));
            for (p, total) in sums.iter_mut().enumerate() {
                let at = (panel + p) * product.panel_bytes + g * block_len(format);
                let (codes, parameters) = product.w[at..][..block_len(format)].split_at(codes_len(format));
                let ints = L::from_ints(group_sums::<L, NIBBLES>(codes, quads));
                let (scales, mins) = parameters_of::<L>(parameters);
                *total = total.fma(scales.mul(ints).fma(mins, sum), scale);
            }
        }
        sums
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    pub(crate) fn store<L: Lanes, const P: usize>(&self, row: usize, panel: usize, sums: [L; P]) {
        for (p, sum) in sums.into_iter().enumerate() {
            let n = (panel + p) * PANEL;
            let lanes = PANEL.min(self.product.outputs - n);
            // SAFETY: each (row, panel) belongs to one task.
            let to = unsafe { self.product.y.range(row * self.product.outputs + n, lanes) };
            match to.try_into() {
                Ok(full) => sum.store(full),
                Err(_) => sum.store_partial(to),
            }
        }
    }
}

/// The products of 64 inputs with the codes of 16 outputs.
#[inline(always)]
fn group_sums<L: Lanes, const NIBBLES: bool>(codes: &[u8], quads: &[[i8; 4]]) -> L::Ints {
    const HALF: usize = QUADS / 2;
    let (vectors, _) = codes.as_chunks::<VECTOR>();
    let (mut first, mut second) = (L::no_ints(), L::no_ints());
    for i in 0..HALF {
        L::prefetch(vectors[i].as_ptr().wrapping_add(PREFETCH));
        let (low, high) = if NIBBLES {
            L::nibbles(L::load_bytes(&vectors[i]))
        } else {
            L::prefetch(vectors[i + HALF].as_ptr().wrapping_add(PREFETCH));
            (L::load_bytes(&vectors[i]), L::load_bytes(&vectors[i + HALF]))
        };
        first = L::add_quads(first, low, quads[i]);
        second = L::add_quads(second, high, quads[i + HALF]);
    }
    L::add_ints(first, second)
}

/// The scales and mins of a block.
#[inline(always)]
pub(crate) fn parameters_of<L: Lanes>(parameters: &[u8]) -> (L, L) {
    let [scales, mins]: &[[f16; LANES]; 2] = bytemuck::from_bytes(parameters);
    (L::load_f16(scales), L::load_f16(mins))
}

const _: () = assert!(VECTOR == BYTES && PANEL == LANES);
