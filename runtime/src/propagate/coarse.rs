//! Embeddings in 8 bits, and the quick look at a strip of cells that they allow.
//!
//! How far an 8-bit dot product can be from the exact one follows from the rounding errors of its two
//! vectors, so that a cell is passed over only where its exact score cannot be above the score that is
//! asked for.
#![allow(unsafe_code)] // Vector instructions called by name; each use says why it is sound.

use crate::dot::STRIP;

/// Target cells that are compared at once.
pub(super) const GROUP: usize = 8;
/// Channels that one instruction multiplies and adds.
const QUAD: usize = 4;
/// Largest number of channels whose 8-bit sums stay far from what an `i32` holds.
pub(super) const MAX_DIM: usize = 1 << 14;
/// Share of the product of two lengths by which a dot product in floats can be wrong; thousands of
/// channels stay below it.
const FLOAT_ERROR: f32 = 1e-4;
/// Where sources have their zero: the instruction multiplies unsigned by signed numbers.
const ZERO: u8 = 128;

/// Whether the processor compares 8-bit vectors several times as fast as floats.
pub(super) fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Lengths of a vector, or the largest ones of several vectors.
#[derive(Debug, Default, Clone, Copy)]
struct Lengths {
    /// Of the vector.
    whole: f32,
    /// Of what rounding took from it.
    error: f32,
}

impl Lengths {
    /// The larger ones. Not-a-number wins, so that nothing is passed over on its account.
    fn max(self, other: Self) -> Self {
        let larger = |a: f32, b: f32| if a >= b || a.is_nan() { a } else { b };
        Self { whole: larger(self.whole, other.whole), error: larger(self.error, other.error) }
    }
}

/// What brings the largest value to 127.
fn scale_of(cells: &[f32]) -> f32 {
    let largest = cells.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = 127.0 / largest;
    if scale.is_normal() { scale } else { 1.0 }
}

/// Rounds a vector and gives each value to `put` with its channel.
fn round(cell: &[f32], scale: f32, mut put: impl FnMut(usize, i8)) -> Lengths {
    let (mut whole, mut error) = (0.0, 0.0);
    let step = 1.0 / scale;
    for (channel, &value) in cell.iter().enumerate() {
        // The cast saturates and rounds towards zero.
        let rounded = (value * scale + 0.5_f32.copysign(value)) as i8;
        put(channel, rounded);
        let rest = value - f32::from(rounded) * step;
        whole += value * value;
        error += rest * rest;
    }
    Lengths { whole: whole.sqrt(), error: error.sqrt() }
}

/// A grid of context cells in 8 bits, with zeros around each row.
#[derive(Debug, Default)]
pub(super) struct CoarseRows {
    quads: usize,
    /// Cells from one quad of channels of a row to the next.
    pitch: usize,
    left: usize,
    /// `[height, quads, pitch]`, each four channels as `value * scale + ZERO`.
    data: Vec<[u8; QUAD]>,
    scale: f32,
    largest: Lengths,
}

impl CoarseRows {
    /// Rows of zeros.
    pub(super) fn new(height: usize, dim: usize, left: usize, pitch: usize) -> Self {
        let quads = dim.div_ceil(QUAD);
        let data = vec![[ZERO; QUAD]; height * quads * pitch];
        Self { quads, pitch, left, data, scale: 1.0, largest: Lengths::default() }
    }

    /// Stores `cells` (`[height, width, dim]`) over what was there.
    pub(super) fn fill(&mut self, cells: &[f32], width: usize, dim: usize) {
        let (quads, pitch, left, scale) = (self.quads, self.pitch, self.left, scale_of(cells));
        self.largest = Lengths::default();
        for (row, packed) in
            cells.chunks_exact(width * dim).zip(self.data.chunks_exact_mut(quads * pitch))
        {
            for (x, cell) in row.chunks_exact(dim).enumerate() {
                let lengths = round(cell, scale, |channel, value| {
                    packed[channel / QUAD * pitch + left + x][channel % QUAD] =
                        ZERO.wrapping_add_signed(value);
                });
                self.largest = self.largest.max(lengths);
            }
        }
        self.scale = scale;
    }

    /// One row, `[quads, pitch]`, as [`look`] takes it.
    pub(super) fn row(&self, y: usize) -> &[[u8; QUAD]] {
        let size = self.quads * self.pitch;
        &self.data[y * size..][..size]
    }

    pub(super) fn pitch(&self) -> usize {
        self.pitch
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}

/// Four channels of a group of target cells.
pub(super) type TargetQuad = [[i8; QUAD]; GROUP];

/// The target cells in 8 bits.
#[derive(Debug, Default)]
pub(super) struct CoarseTargets {
    quads: usize,
    groups: usize,
    /// `[height, groups, quads]`
    data: Vec<TargetQuad>,
    /// What [`ZERO`] adds to the sums of each cell.
    offsets: Vec<i32>,
    lengths: Vec<Lengths>,
    scale: f32,
}

impl CoarseTargets {
    /// Room for a grid.
    pub(super) fn new(height: usize, width: usize, dim: usize) -> Self {
        let (quads, groups) = (dim.div_ceil(QUAD), width.div_ceil(GROUP));
        Self {
            quads,
            groups,
            data: vec![[[0; QUAD]; GROUP]; height * groups * quads],
            offsets: vec![0; height * width],
            lengths: vec![Lengths::default(); height * width],
            scale: 1.0,
        }
    }

    /// Stores `cells` (`[height, width, dim]`) over what was there.
    pub(super) fn fill(&mut self, cells: &[f32], width: usize, dim: usize) {
        self.scale = scale_of(cells);
        let places = self.offsets.iter_mut().zip(&mut self.lengths);
        for (i, (cell, (offset, lengths))) in cells.chunks_exact(dim).zip(places).enumerate() {
            let (y, x) = (i / width, i % width);
            let group = &mut self.data[(y * self.groups + x / GROUP) * self.quads..][..self.quads];
            let mut sum = 0;
            *lengths = round(cell, self.scale, |channel, value| {
                group[channel / QUAD][x % GROUP][channel % QUAD] = value;
                sum += i32::from(value);
            });
            *offset = sum * i32::from(ZERO);
        }
    }

    /// The groups of a row, `[groups, quads]`.
    pub(super) fn row(&self, y: usize) -> &[TargetQuad] {
        let size = self.groups * self.quads;
        &self.data[y * size..][..size]
    }

    /// Entries of a group.
    pub(super) fn quads(&self) -> usize {
        self.quads
    }

    /// A cell of `rows` whose exact dot product with target `cell` is above `score` has an 8-bit sum
    /// above this.
    pub(super) fn bound(&self, cell: usize, rows: &CoarseRows, score: f32) -> i32 {
        let (own, other) = (self.lengths[cell], rows.largest);
        // With t' and s' for what is left of t and s after rounding:
        // |t s - t' s'| <= |t - t'| |s| + |t'| |s - s'|.
        let error = own.error * other.whole
            + (own.whole + own.error) * other.error
            + FLOAT_ERROR * own.whole * other.whole;
        let sum = f64::from(score - error) * f64::from(self.scale) * f64::from(rows.scale);
        if sum.is_nan() {
            return i32::MIN;
        }
        // The cast saturates. One more for the sum's own rounding.
        (sum.floor() as i32).saturating_sub(1).saturating_add(self.offsets[cell])
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
            + size_of_val(self.offsets.as_slice())
            + size_of_val(self.lengths.as_slice())
    }
}

/// For each target of a group, which of the [`STRIP`] cells from `first` on have sums above its bound: a bit
/// each.
///
/// # Shapes
/// - `row`: `[quads, pitch]` with `first + STRIP <= pitch`
pub(super) fn look(
    targets: &[TargetQuad],
    row: &[[u8; QUAD]],
    pitch: usize,
    first: usize,
    bounds: &[i32; GROUP],
) -> [u32; GROUP] {
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: the processor has the instructions.
        return unsafe { vnni::look(targets, row, pitch, first, bounds) };
    }
    look_portable(targets, row, pitch, first, bounds)
}

/// The same without vector instructions.
fn look_portable(
    targets: &[TargetQuad],
    row: &[[u8; QUAD]],
    pitch: usize,
    first: usize,
    bounds: &[i32; GROUP],
) -> [u32; GROUP] {
    std::array::from_fn(|g| {
        let mut sums = [0i32; STRIP];
        for (values, channels) in targets.iter().zip(row.chunks_exact(pitch)) {
            for (sum, cell) in sums.iter_mut().zip(&channels[first..first + STRIP]) {
                *sum += values[g]
                    .iter()
                    .zip(cell)
                    .map(|(v, c)| i32::from(*v) * i32::from(*c))
                    .sum::<i32>();
            }
        }
        sums.iter().rev().fold(0, |bits, &sum| bits << 1 | u32::from(sum > bounds[g]))
    })
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{
        _mm512_cmpgt_epi32_mask, _mm512_dpbusd_epi32, _mm512_loadu_epi8, _mm512_set1_epi32,
        _mm512_setzero_si512,
    };

    use super::{GROUP, QUAD, STRIP, TargetQuad};

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn look(
        targets: &[TargetQuad],
        row: &[[u8; QUAD]],
        pitch: usize,
        first: usize,
        bounds: &[i32; GROUP],
    ) -> [u32; GROUP] {
        // Sixteen independent sums hide the latency of the multiply-add.
        let mut low = [_mm512_setzero_si512(); GROUP];
        let mut high = low;
        for (values, channels) in targets.iter().zip(row.chunks_exact(pitch)) {
            let strip = &channels[first..first + STRIP];
            let cells = strip.as_flattened().as_ptr().cast::<i8>();
            // SAFETY: the strip holds two registers, and the loads ask for no alignment.
            let (a, b) = unsafe {
                (_mm512_loadu_epi8(cells), _mm512_loadu_epi8(cells.wrapping_add(STRIP / 2 * QUAD)))
            };
            for ((low, high), value) in low.iter_mut().zip(&mut high).zip(values) {
                let value = _mm512_set1_epi32(i32::from_ne_bytes(value.map(i8::cast_unsigned)));
                *low = _mm512_dpbusd_epi32(*low, a, value);
                *high = _mm512_dpbusd_epi32(*high, b, value);
            }
        }
        let mut bits = [0; GROUP];
        for (((bits, low), high), &bound) in bits.iter_mut().zip(low).zip(high).zip(bounds) {
            let bound = _mm512_set1_epi32(bound);
            let low = _mm512_cmpgt_epi32_mask(low, bound);
            let high = _mm512_cmpgt_epi32_mask(high, bound);
            *bits = u32::from(low) | u32::from(high) << 16;
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_score_above_the_bound_is_passed_over(
            (dim, first) in (1..40usize, 0..8usize),
            values in prop::collection::vec(-1.0f32..1.0, 40 * (GROUP + STRIP)),
            share in 0.0f32..1.0,
        ) {
            let targets = &values[..GROUP * dim];
            let cells = &values[GROUP * dim..][..STRIP * dim];
            let mut rows = CoarseRows::new(1, dim, first, first + STRIP);
            rows.fill(cells, STRIP, dim);
            let mut coarse = CoarseTargets::new(1, GROUP, dim);
            coarse.fill(targets, GROUP, dim);
            let score = |g: usize, i: usize| -> f32 {
                let pairs = targets[g * dim..][..dim].iter().zip(&cells[i * dim..][..dim]);
                pairs.map(|(a, b)| a * b).sum()
            };
            let asked: [f32; GROUP] = std::array::from_fn(|g| score(g, (share * 31.0) as usize).next_down());
            let bounds = std::array::from_fn(|g| coarse.bound(g, &rows, asked[g]));
            let found = look(coarse.row(0), rows.row(0), rows.pitch(), first, &bounds);
            prop_assert_eq!(found, look_portable(coarse.row(0), rows.row(0), rows.pitch(), first, &bounds));
            for g in 0..GROUP {
                for i in 0..STRIP {
                    let passed_over = found[g] >> i & 1 == 0;
                    prop_assert!(!(passed_over && score(g, i) > asked[g]), "{g} {i}");
                }
                // Where scores lie far below, rounding hides nothing.
                let far = coarse.bound(g, &rows, score(g, 0) + 2.0);
                let none = look_portable(coarse.row(0), rows.row(0), rows.pitch(), first, &[far; GROUP]);
                prop_assert!(none[g] & 1 == 0);
            }
        }
    }
}
