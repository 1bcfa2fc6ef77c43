//! The one hot loop of clustering and propagation: dot products of a few vectors with
//! a strip of neighbouring cells.
//!
//! Cells are stored channel by channel within a row ([`PackedRows`]), so that a vector
//! register holds one channel of many cells: each step multiplies it by one number of
//! the other vector and adds, without any sum across a register. The instruction set is
//! chosen when the program runs (the portable x86-64 build knows only SSE2).

// The library compiles a kernel anew for every instruction set, which only reaches what is
// inlined into it.
#![allow(clippy::inline_always)]

use pulp::Simd;

/// Vectors that are multiplied at once.
pub(crate) const GROUP: usize = 4;
/// Cells of a strip; a multiple of two registers of every instruction set.
pub(crate) const STRIP: usize = 32;
/// Scores of `GROUP` vectors against a strip.
pub(crate) type Tile = [[f32; STRIP]; GROUP];

/// A grid of vectors stored as `[height, dim, pitch]`, with zeros around each row.
#[derive(Debug, Default, Clone)]
pub(crate) struct PackedRows {
    pub(crate) dim: usize,
    /// Floats from one channel of a row to the next: `left` + width + zeros at the right.
    pub(crate) pitch: usize,
    /// Zeros before the first cell of a row.
    left: usize,
    data: Vec<f32>,
}

impl PackedRows {
    /// Sets the geometry and clears all values.
    pub(crate) fn reset(&mut self, height: usize, dim: usize, left: usize, pitch: usize) {
        (self.dim, self.left, self.pitch) = (dim, left, pitch);
        self.data.clear();
        self.data.resize(height * dim * pitch, 0.0);
    }

    /// Stores `cells` (`[height, width, dim]`) over what was there.
    pub(crate) fn fill(&mut self, cells: &[f32], width: usize) {
        let (dim, pitch, left) = (self.dim, self.pitch, self.left);
        for (row, packed) in
            cells.chunks_exact(width * dim).zip(self.data.chunks_exact_mut(dim * pitch))
        {
            for (x, cell) in row.chunks_exact(dim).enumerate() {
                for (value, channel) in cell.iter().zip(packed.chunks_exact_mut(pitch)) {
                    channel[left + x] = *value;
                }
            }
        }
    }

    /// One row, `[dim, pitch]`.
    #[inline]
    pub(crate) fn row(&self, y: usize) -> &[f32] {
        let size = self.dim * self.pitch;
        &self.data[y * size..][..size]
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}

/// `init[g][i] + sum over d of vectors[d][g] * row[d * pitch + first + i]`.
///
/// # Shapes
/// - `vectors`: `[dim]`, each entry one channel of `GROUP` vectors
/// - `row`: `[dim, pitch]` with `first + STRIP <= pitch`
#[inline(always)]
pub(crate) fn tile<S: Simd>(
    simd: S,
    vectors: &[[f32; GROUP]],
    row: &[f32],
    pitch: usize,
    first: usize,
    init: &Tile,
    out: &mut Tile,
) {
    if S::F32_LANES == 1 {
        // No wide registers known to the library: plain loops, which the compiler turns
        // into the vectors that every machine of this target has.
        *out = *init;
        for (values, channel) in vectors.iter().zip(row.chunks_exact(pitch)) {
            let strip = &channel[first..first + STRIP];
            for (out, &value) in out.iter_mut().zip(values) {
                for (sum, &cell) in out.iter_mut().zip(strip) {
                    *sum += value * cell;
                }
            }
        }
        return;
    }
    // Two registers by four vectors: eight independent sums hide the latency of the
    // multiply-add and fit the 16 registers of AVX2.
    let width = S::F32_LANES * 2;
    for start in (0..STRIP).step_by(width) {
        let pair = |values: &[f32]| {
            let (head, _) = S::as_simd_f32s(&values[start..start + width]);
            (head[0], head[1])
        };
        let (mut a0, mut b0) = pair(&init[0]);
        let (mut a1, mut b1) = pair(&init[1]);
        let (mut a2, mut b2) = pair(&init[2]);
        let (mut a3, mut b3) = pair(&init[3]);
        for (values, channel) in vectors.iter().zip(row.chunks_exact(pitch)) {
            let strip = &channel[first + start..first + start + width];
            let (head, _) = S::as_simd_f32s(strip);
            let (a, b) = (head[0], head[1]);
            let value = simd.splat_f32s(values[0]);
            a0 = simd.mul_add_e_f32s(value, a, a0);
            b0 = simd.mul_add_e_f32s(value, b, b0);
            let value = simd.splat_f32s(values[1]);
            a1 = simd.mul_add_e_f32s(value, a, a1);
            b1 = simd.mul_add_e_f32s(value, b, b1);
            let value = simd.splat_f32s(values[2]);
            a2 = simd.mul_add_e_f32s(value, a, a2);
            b2 = simd.mul_add_e_f32s(value, b, b2);
            let value = simd.splat_f32s(values[3]);
            a3 = simd.mul_add_e_f32s(value, a, a3);
            b3 = simd.mul_add_e_f32s(value, b, b3);
        }
        for (row, (a, b)) in out.iter_mut().zip([(a0, b0), (a1, b1), (a2, b2), (a3, b3)]) {
            let (head, _) = S::as_mut_simd_f32s(&mut row[start..start + width]);
            head[0] = a;
            head[1] = b;
        }
    }
}

/// The dot products of a vector with others of its length, each summed channel by channel with one
/// rounding, as [`tile`] does with fused multiply-adds: both give the same floats there. Several at once hide
/// the latency of the sums.
#[inline(always)]
pub(crate) fn dots<const N: usize>(vector: &[f32], others: [&[f32]; N]) -> [f32; N] {
    let others = others.map(|other| &other[..vector.len()]);
    let mut sums = [0.0f32; N];
    for (channel, value) in vector.iter().enumerate() {
        for (sum, other) in sums.iter_mut().zip(others) {
            *sum = value.mul_add(other[channel], *sum);
        }
    }
    sums
}

/// Whether a score of the strip is above `bound`; NaN is not.
#[inline(always)]
pub(crate) fn any_above<S: Simd>(simd: S, strip: &[f32; STRIP], bound: f32) -> bool {
    let bound = simd.splat_f32s(bound);
    let (registers, _) = S::as_simd_f32s(strip);
    registers.chunks_exact(2).any(|pair| {
        let above = simd.or_m32s(
            simd.greater_than_f32s(pair[0], bound),
            simd.greater_than_f32s(pair[1], bound),
        );
        simd.first_true_m32s(above) < S::F32_LANES
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Run<'a> {
        vectors: &'a [[f32; GROUP]],
        rows: &'a PackedRows,
        y: usize,
        first: usize,
        out: &'a mut Tile,
    }

    impl pulp::WithSimd for Run<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let init = [[1.0; STRIP]; GROUP];
            let row = self.rows.row(self.y);
            tile(simd, self.vectors, row, self.rows.pitch, self.first, &init, self.out);
        }
    }

    struct Above<'a>(&'a [f32; STRIP], f32);

    impl pulp::WithSimd for Above<'_> {
        type Output = bool;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> bool {
            any_above(simd, self.0, self.1)
        }
    }

    #[test]
    fn a_single_score_above_the_bound_is_seen_wherever_it_is() {
        let arch = pulp::Arch::new();
        let mut strip = [f32::NEG_INFINITY; STRIP];
        strip[3] = f32::NAN;
        strip[5] = 0.5;
        assert!(!arch.dispatch(Above(&strip, 0.5)));
        for i in 0..STRIP {
            let mut strip = strip;
            strip[i] = 0.75;
            assert!(arch.dispatch(Above(&strip, 0.5)), "{i}");
            assert!(pulp::Scalar.vectorize(Above(&strip, 0.5)), "{i}");
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_scalar_dot_products(
            (dim, height, width, left) in (1..40usize, 1..4usize, 1..40usize, 0..9usize),
            first in 0..9usize,
            seed in any::<u32>(),
        ) {
            // Multiples of 1/8: all sums are exact, whatever their order.
            let value = |i: usize| ((seed as usize).wrapping_add(i * 7919) % 17) as f32 / 8.0 - 1.0;
            let cells: Vec<f32> = (0..height * width * dim).map(value).collect();
            let vectors: Vec<[f32; GROUP]> =
                (0..dim).map(|d| std::array::from_fn(|g| value(d * 31 + g))).collect();
            let pitch = left + width.max(STRIP) + 9;
            let mut rows = PackedRows::default();
            rows.reset(height, dim, left, pitch);
            rows.fill(&cells, width);
            let y = height - 1;
            let expected: Tile = std::array::from_fn(|g| std::array::from_fn(|i| {
                let x = (first + i).wrapping_sub(left);
                let cell = |d| if x < width { cells[(y * width + x) * dim + d] } else { 0.0 };
                1.0 + (0..dim).map(|d| vectors[d][g] * cell(d)).sum::<f32>()
            }));
            let mut out = [[0.0; STRIP]; GROUP];
            let run = Run { vectors: &vectors, rows: &rows, y, first, out: &mut out };
            pulp::Arch::new().dispatch(run);
            prop_assert_eq!(out, expected);
            let run = Run { vectors: &vectors, rows: &rows, y, first, out: &mut out };
            pulp::Scalar.vectorize(run);
            prop_assert_eq!(out, expected);
            #[cfg(target_arch = "x86_64")]
            if let Some(avx2) = pulp::x86::V3::try_new() {
                let run = Run { vectors: &vectors, rows: &rows, y, first, out: &mut out };
                Simd::vectorize(avx2, run);
                prop_assert_eq!(out, expected);
            }
        }
    }
}
