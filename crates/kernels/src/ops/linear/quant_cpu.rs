//! `x · wᵀ` over panels of quantised weights. See [`super::quant`] for what is computed.
//!
//! One or two rows read the codes as they are stored and multiply the sums of sub-groups by their factors: what is read is
//! what costs. More rows expand the codes of some panels over a group to 8 bits once, in the first-level cache, and
//! multiply them by `R` rows at a time, on vectors or on the 8-bit matrix unit. All sums within a group are exact
//! integers, and all ways scale them by the same rounded operations in the same order: a row has the same bits on each.

#![allow(clippy::needless_range_loop)] // Registers are named by row and panel.

use kanana_tensor::{DType, Tensor, bf16};

use super::cpu::checked_outputs;
use super::pack::{PANEL, TILE_ROWS};
use super::quant::{
    BlockView, GROUP, GROUPS, InputGroup, STEP, STEP_BYTES, STEPS, SUB, SUBS, VECTOR, panel_bytes,
    quantise_inputs, step_len, zero_code,
};
#[cfg(target_arch = "x86_64")]
use super::quant_amx::OnMatrixUnit;
use super::shares::{Share, Sizes, share_out};
use super::{Format, Weight};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
#[cfg(target_arch = "x86_64")]
use crate::runtime::simd::Isa;
use crate::runtime::simd::{BYTES, Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Panels that are multiplied together.
const PANELS: usize = 4;
/// Rows of a task, at most: a multiple of two tiles, and of the rows at once on vectors.
const ROWS: usize = 384;
/// Rows from which codes are expanded.
const EXPANDED_ROWS: usize = 3;
/// Rows from which the matrix unit is faster, where there is one.
#[cfg(target_arch = "x86_64")]
const MATRIX_ROWS: usize = 12;
/// Bytes ahead of the reader that are asked for.
const PREFETCH: usize = 8192;

/// The quantised inputs of all rows.
pub(crate) struct Inputs {
    codes: Tensor,  // [rows / tile_rows][K/64][tile_rows][64] i8
    groups: Tensor, // [rows][G] of `InputGroup`
    steps: usize,   // K/64
    per_row: usize, // G
    /// 16 for the matrix unit, whose rows are padded with zeros to pairs of tiles; else 1.
    tile_rows: usize,
}

impl Inputs {
    fn quantise(machine: Machine<'_>, x: &Tensor, tile_rows: usize) -> Result<Self> {
        const NUMBERS: usize = size_of::<InputGroup>() / size_of::<f32>();
        let (rows, width) = (x.rows(), x.row_len());
        let (steps, per_row) = (width.div_ceil(STEP), width.div_ceil(GROUP));
        let values = check::slice::<f32>("linear", x)?;
        let padded = if tile_rows == 1 { rows } else { rows.next_multiple_of(2 * tile_rows) };
        let mut codes = machine.pool.tensor(&[padded * steps * STEP], DType::U8);
        let mut groups = machine.pool.tensor(&[padded, per_row * NUMBERS], DType::F32);
        let all_codes = check::slice_mut::<u8>("linear", &mut codes)?;
        let all_groups: &mut [InputGroup] =
            bytemuck::cast_slice_mut(check::slice_mut::<f32>("linear", &mut groups)?);
        if padded > rows {
            all_codes[rows / tile_rows * tile_rows * steps * STEP..].fill(0);
            all_groups[rows * per_row..].fill(InputGroup::default());
        }
        let all_codes = SharedMut::new(bytemuck::cast_slice_mut(all_codes));
        machine.threads.rows_mut(&mut all_groups[..rows * per_row], per_row.max(1), |t, groups| {
            let from = &values[t * width..][..width];
            dispatch(machine.isa, QuantiseRow { from, row: t, tile_rows, codes: &all_codes, groups });
        });
        Ok(Inputs { codes, groups, steps, per_row, tile_rows })
    }

    fn view(&self) -> Result<InputsView<'_>> {
        Ok(InputsView {
            codes: bytemuck::cast_slice(check::slice::<u8>("linear", &self.codes)?),
            groups: bytemuck::cast_slice(check::slice::<f32>("linear", &self.groups)?),
            steps: self.steps,
            per_row: self.per_row,
            tile_rows: self.tile_rows,
        })
    }
}

/// [`Inputs`] to read from.
#[derive(Clone, Copy)]
pub(crate) struct InputsView<'a> {
    codes: &'a [i8],
    groups: &'a [InputGroup],
    steps: usize,
    pub(crate) per_row: usize,
    tile_rows: usize,
}

impl<'a> InputsView<'a> {
    /// The scale and the sums of a group of a row.
    #[inline(always)]
    pub(crate) fn parameters(&self, row: usize, group: usize) -> &'a InputGroup {
        &self.groups[row * self.per_row + group]
    }

    /// Some steps of the rows of a tile, one after another.
    #[inline(always)]
    pub(crate) fn tiles(&self, tile: usize, steps: std::ops::Range<usize>) -> &'a [i8] {
        let len = self.tile_rows * STEP;
        &self.codes[(tile * self.steps + steps.start) * len..][..steps.len() * len]
    }

    /// Some steps of one row, in quads; for inputs that are not in tiles.
    #[inline(always)]
    fn quads(&self, row: usize, steps: std::ops::Range<usize>) -> &'a [[i8; 4]] {
        self.tiles(row, steps).as_chunks::<4>().0
    }

    /// The steps of a group in its block.
    #[inline(always)]
    pub(crate) fn steps_in_block(&self, group: usize) -> std::ops::Range<usize> {
        let start = group % GROUPS * STEPS;
        start..start + self.steps_of(group).len()
    }

    /// The steps of a group.
    #[inline(always)]
    pub(crate) fn steps_of(&self, group: usize) -> std::ops::Range<usize> {
        group * STEPS..self.steps.min((group + 1) * STEPS)
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
        let steps = self.from.len().div_ceil(STEP);
        let (tile, row) = (self.row / self.tile_rows * steps, self.row % self.tile_rows);
        let mut codes = [0; GROUP];
        for (g, (x, group)) in self.from.chunks(GROUP).zip(self.groups).enumerate() {
            let held = x.len().div_ceil(STEP) * STEP;
            *group = quantise_inputs::<L>(x, &mut codes[..held]);
            for (i, codes) in codes[..held].chunks_exact(STEP).enumerate() {
                let step = g * STEPS + i;
                // SAFETY: each row belongs to one task.
                let to = unsafe { self.codes.range(((tile + step) * self.tile_rows + row) * STEP, STEP) };
                to.copy_from_slice(codes);
            }
        }
    }
}

/// The products of one input with several weights of one quantised format.
pub(crate) fn linears(machine: Machine<'_>, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let (tokens, mut outputs) = checked_outputs(machine, x, weights)?;
    #[cfg(target_arch = "x86_64")]
    let on_matrix_unit = machine.isa == Isa::Amx && tokens >= MATRIX_ROWS;
    #[cfg(not(target_arch = "x86_64"))]
    let on_matrix_unit = false;
    let inputs = Inputs::quantise(machine, x, if on_matrix_unit { TILE_ROWS } else { 1 })?;
    let inputs = inputs.view()?;
    let mut products = Vec::with_capacity(weights.len());
    for (w, y) in weights.iter().zip(&mut outputs) {
        products.push(Product {
            inputs,
            format: w.format,
            in_features: w.in_features,
            w: check::slice::<u8>("linear", &w.data)?,
            outputs: w.out_features,
            y: SharedMut::new(check::slice_mut::<f32>("linear", y)?),
        });
    }
    // A single row streams the weights: more panels to a task, so that claiming tasks costs little.
    let panels = if tokens == 1 { 2 * PANELS } else { PANELS };
    // The matrix unit takes panels in pairs.
    let panel_step = if on_matrix_unit { 2 } else { 1 };
    let sizes = Sizes { rows: ROWS, row_step: 2 * TILE_ROWS, panels, panel_step };
    let widths: Vec<usize> = weights.iter().map(|w| w.out_features).collect();
    let shares = share_out(machine.threads.count(), tokens, &widths, sizes);
    machine.threads.run(shares.len(), &|i| {
        let Share { product, rows, panels } = &shares[i];
        let block = Block { product: &products[*product], rows: rows.clone(), panels: panels.clone() };
        #[cfg(target_arch = "x86_64")]
        if on_matrix_unit {
            return dispatch(machine.isa, OnMatrixUnit(&block));
        }
        dispatch(machine.isa, &block);
    });
    drop(products);
    Ok(outputs)
}

pub(crate) struct Product<'a> {
    pub(crate) inputs: InputsView<'a>,
    pub(crate) format: Format,
    in_features: usize,
    w: &'a [u8],
    outputs: usize,
    y: SharedMut<'a, f32>,
}

impl<'a> Product<'a> {
    #[inline(always)]
    pub(crate) fn block(&self, panel: usize, b: usize) -> BlockView<'a> {
        let len = panel_bytes(self.format, self.in_features);
        BlockView::new(self.format, self.in_features, b, &self.w[panel * len..][..len])
    }

    /// The outputs of some panels in a row, without the padding of the last one.
    #[inline(always)]
    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)] // As `SharedMut::range`.
    fn target(&self, row: usize, panel: usize, panels: usize) -> &mut [f32] {
        let n = panel * PANEL;
        // SAFETY: each (row, panel) belongs to one task, which holds one such slice at a time.
        unsafe { self.y.range(row * self.outputs + n, (panels * PANEL).min(self.outputs - n)) }
    }
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
        match (self.product.format, self.rows.len() < EXPANDED_ROWS) {
            (Format::Q4, true) => self.walk::<L, true>(),
            (_, true) => self.walk::<L, false>(),
            (_, false) if L::MANY_REGISTERS => self.walk_expanded::<L, 6, PANELS>(),
            _ => self.walk_expanded::<L, 2, 2>(),
        }
    }
}

impl Block<'_> {
    /// Panel after panel, so that memory is one long stream.
    #[inline(always)]
    fn walk<L: Lanes, const NIBBLES: bool>(&self) {
        for panel in self.panels.clone() {
            for row in self.rows.clone() {
                let sum = self.sum::<L, NIBBLES>(row, panel);
                self.store(row, panel, sum);
            }
        }
    }

    /// One row by one panel, the codes as they are stored.
    #[inline(always)]
    fn sum<L: Lanes, const NIBBLES: bool>(&self, row: usize, panel: usize) -> L {
        let Product { inputs, .. } = self.product;
        let format = if NIBBLES { Format::Q4 } else { Format::Q8 };
        let mut sum = L::splat(0.0);
        for g in 0..inputs.per_row {
            let group = inputs.parameters(row, g);
            let quads = inputs.quads(row, inputs.steps_of(g));
            let view = self.product.block(panel, g / GROUPS);
            let mut ints = L::splat_int(if NIBBLES { 0 } else { group.minus_sum * zero_code(format) });
            for (i, step) in inputs.steps_in_block(g).enumerate() {
                let codes = &view.codes[step * step_len(format)..][..step_len(format)];
                let quads = &quads[i * STEP / 4..][..STEP / 4];
                ints = if NIBBLES {
                    let subs = &group.minus_sums[i * STEP / SUB..][..STEP / SUB];
                    add_nibbles::<L>(ints, codes, &view.factors[step], quads, subs)
                } else {
                    add_bytes::<L>(ints, codes, quads)
                };
            }
            sum = scaled(sum, ints, &view.scales[g % GROUPS], group.scale);
        }
        sum
    }

    #[inline(always)]
    pub(crate) fn store<L: Lanes>(&self, row: usize, panel: usize, sum: L) {
        let to = self.product.target(row, panel, 1);
        match to.try_into() {
            Ok(full) => sum.store(full),
            Err(_) => sum.store_partial(to),
        }
    }

    /// Groups of `R` rows by `P` panels whose codes are expanded group by group.
    #[inline(always)]
    fn walk_expanded<L: Lanes, const R: usize, const P: usize>(&self) {
        let mut room = Expanded([[0; STEPS * STEP_BYTES]; PANELS]);
        for row in self.rows.clone() {
            self.product.target(row, self.panels.start, self.panels.len()).fill(0.0);
        }
        let mut p = self.panels.start;
        while p + P <= self.panels.end {
            self.groups_of::<L, R, P>(p, &mut room);
            p += P;
        }
        for p in p..self.panels.end {
            self.groups_of::<L, R, 1>(p, &mut room);
        }
    }

    #[inline(always)]
    fn groups_of<L: Lanes, const R: usize, const P: usize>(&self, panel: usize, room: &mut Expanded) {
        for g in 0..self.product.inputs.per_row {
            let steps = self.product.inputs.steps_in_block(g);
            let mut codes: [&[u8]; P] = [&[]; P];
            let mut scales = [L::splat(0.0); P];
            for ((p, room), codes) in room.0.iter_mut().enumerate().zip(&mut codes) {
                let view = self.product.block(panel + p, g / GROUPS);
                scales[p] = L::load_bf16(&view.scales[g % GROUPS]);
                *codes = expanded::<L>(self.product.format, &view, steps.clone(), room);
            }
            let mut row = self.rows.start;
            while row + R <= self.rows.end {
                self.add_group::<L, R, P>((row, panel, g), codes, scales);
                row += R;
            }
            for row in row..self.rows.end {
                self.add_group::<L, 1, P>((row, panel, g), codes, scales);
            }
        }
    }

    /// Adds a group of `R` rows by `P` panels to the outputs.
    #[inline(always)]
    fn add_group<L: Lanes, const R: usize, const P: usize>(
        &self,
        (row, panel, g): (usize, usize, usize),
        codes: [&[u8]; P],
        scales: [L; P],
    ) {
        let inputs = self.product.inputs;
        let steps = inputs.steps_of(g);
        let mut ints = [[L::splat_int(0); P]; R];
        let mut quads: [&[[i8; 4]]; R] = [&[]; R];
        for r in 0..R {
            // Expanded codes are 8-bit numbers whatever the format.
            let start = L::splat_int(inputs.parameters(row + r, g).minus_sum * zero_code(Format::Q8));
            ints[r] = [start; P];
            quads[r] = inputs.quads(row + r, steps.clone());
        }
        let mut vectors: [&[[u8; BYTES]]; P] = [&[]; P];
        for p in 0..P {
            vectors[p] = &codes[p].as_chunks::<BYTES>().0[..quads[0].len()];
        }
        for i in 0..quads[0].len() {
            let mut weights = [L::load_bytes(&vectors[0][i]); P];
            for p in 1..P {
                weights[p] = L::load_bytes(&vectors[p][i]);
            }
            for r in 0..R {
                let quad = quads[r][i];
                for p in 0..P {
                    ints[r][p] = L::add_quads(ints[r][p], weights[p], quad);
                }
            }
        }
        for r in 0..R {
            let scale = L::splat(inputs.parameters(row + r, g).scale);
            let to = self.product.target(row + r, panel, P);
            let (full, rest) = to.as_chunks_mut::<LANES>();
            if full.len() == P {
                for p in 0..P {
                    let scaled = scales[p].mul(L::from_ints(ints[r][p]));
                    L::load(&full[p]).fma(scaled, scale).store(&mut full[p]);
                }
                continue;
            }
            for p in 0..P {
                let scaled = scales[p].mul(L::from_ints(ints[r][p]));
                if p < full.len() {
                    L::load(&full[p]).fma(scaled, scale).store(&mut full[p]);
                } else if p == full.len() {
                    L::load_partial(rest, 0.0).fma(scaled, scale).store_partial(rest);
                }
            }
        }
    }
}

/// Room for the codes of a group of some panels as 8-bit numbers.
#[repr(C, align(64))]
struct Expanded([[u8; STEPS * STEP_BYTES]; PANELS]);

/// The codes of some steps of a block as 8-bit numbers: where they lie, or made in `room`.
#[inline(always)]
pub(crate) fn expanded<'a, L: Lanes>(
    format: Format,
    view: &BlockView<'a>,
    steps: std::ops::Range<usize>,
    room: &'a mut [u8; STEPS * STEP_BYTES],
) -> &'a [u8] {
    let len = step_len(format);
    let codes = &view.codes[steps.start * len..steps.end * len];
    if format == Format::Q8 {
        return codes;
    }
    const HALF: usize = STEP / 8;
    let steps = codes.chunks_exact(len).zip(&view.factors[steps]).zip(room.chunks_exact_mut(STEP_BYTES));
    for ((codes, factors), room) in steps {
        let factors = L::load_words(factors);
        let mut sub_factors = [factors; STEP / SUB];
        let mut offsets = [factors; STEP / SUB];
        for j in 0..STEP / SUB {
            sub_factors[j] = L::nibble_of(factors, j as u32);
            let minus_zero = L::mul_ints(sub_factors[j], L::splat_int(-zero_code(format)));
            offsets[j] = L::add_ints(minus_zero, L::splat_int(zero_code(Format::Q8)));
        }
        let vectors = room.as_chunks_mut::<BYTES>().0;
        for (i, codes) in codes.as_chunks::<BYTES>().0.iter().enumerate() {
            L::prefetch(codes.as_ptr().wrapping_add(PREFETCH));
            let (low, high) = L::nibbles(L::load_bytes(codes));
            let sub = i / (SUB / 4);
            L::store_bytes(L::scale_bytes(low, sub_factors[sub], offsets[sub]), &mut vectors[i]);
            let sub = sub + HALF / (SUB / 4);
            L::store_bytes(L::scale_bytes(high, sub_factors[sub], offsets[sub]), &mut vectors[i + HALF]);
        }
    }
    room
}

/// `sum + ints · weight scales · input scale`.
#[inline(always)]
pub(crate) fn scaled<L: Lanes>(sum: L, ints: L::Ints, scales: &[bf16; PANEL], scale: f32) -> L {
    sum.fma(L::load_bf16(scales).mul(L::from_ints(ints)), L::splat(scale))
}

/// Adds the products of the 64 inputs of a step with 8-bit codes.
#[inline(always)]
fn add_bytes<L: Lanes>(ints: L::Ints, codes: &[u8], quads: &[[i8; 4]]) -> L::Ints {
    let (mut first, mut second) = (ints, L::splat_int(0));
    let (pairs, _) = codes.as_chunks::<VECTOR>().0.as_chunks::<2>();
    for ([a, b], [x, y]) in pairs.iter().zip(quads.as_chunks::<2>().0) {
        L::prefetch(a.as_ptr().wrapping_add(PREFETCH));
        L::prefetch(b.as_ptr().wrapping_add(PREFETCH));
        first = L::add_quads(first, L::load_bytes(a), *x);
        second = L::add_quads(second, L::load_bytes(b), *y);
    }
    L::add_ints(first, second)
}

/// Adds the products of the 64 inputs of a step with 4-bit codes: sub-groups one by one, times their factors.
#[inline(always)]
fn add_nibbles<L: Lanes>(
    ints: L::Ints,
    codes: &[u8],
    factors: &[u16; PANEL],
    quads: &[[i8; 4]],
    minus_sums: &[i32],
) -> L::Ints {
    const QUADS: usize = SUB / 4;
    const { assert!(SUBS == STEPS * 4 && STEP == 4 * SUB) };
    let factors = L::load_words(factors);
    let (vectors, quads) = (codes.as_chunks::<VECTOR>().0, quads.as_chunks::<QUADS>().0);
    let zero = zero_code(Format::Q4);
    let mut total = ints;
    // The low halves of four vectors are one sub-group, the high halves another.
    for (sub, vectors) in vectors.as_chunks::<QUADS>().0.iter().enumerate() {
        let mut low_sum = L::splat_int(minus_sums[sub] * zero);
        let mut high_sum = L::splat_int(minus_sums[sub + 2] * zero);
        for (i, vector) in vectors.iter().enumerate() {
            L::prefetch(vector.as_ptr().wrapping_add(PREFETCH));
            let (low, high) = L::nibbles(L::load_bytes(vector));
            low_sum = L::add_quads(low_sum, low, quads[sub][i]);
            high_sum = L::add_quads(high_sum, high, quads[sub + 2][i]);
        }
        total = L::add_ints(total, L::mul_ints(low_sum, L::nibble_of(factors, sub as u32)));
        total = L::add_ints(total, L::mul_ints(high_sum, L::nibble_of(factors, sub as u32 + 2)));
    }
    total
}

const _: () = assert!(VECTOR == BYTES && PANEL == LANES);
