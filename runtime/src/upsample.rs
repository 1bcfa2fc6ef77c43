//! Exact maximum over bilinearly upsampled channel maps, without building them.
//!
//! Scores live on the coarse embedding grid, labels are wanted for every pixel. The
//! obvious way upsamples all channels (26 of them at 854x480 are 43 MB) and takes the
//! maximum. Here each *quad*, the area between four neighbouring cell centres, is
//! looked at once: bilinear weights are not negative and sum to one, so a channel
//! that lies below another one at all four corners lies below it in the whole quad.
//! Most quads keep one channel and are filled; the others evaluate two or three.
//!
//! Geometry: `align_corners = false` (pixel centres at half-integers) with edges
//! clamped, as in `torch.nn.functional.interpolate`. A sample is
//! `(1 - u) * ((1 - v) * a + v * c) + u * ((1 - v) * b + v * d)`, with `a b` the upper
//! and `c d` the lower corners, `u` the horizontal and `v` the vertical weight, in f32.

/// One coarse cell interval along an axis and the output samples that fall into it.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Index of the lower cell.
    low: usize,
    /// Index of the upper cell; equal to `low` behind the last cell centre.
    high: usize,
    /// First output sample.
    start: usize,
    /// Behind the last output sample; never equal to `start`.
    end: usize,
}

/// Lower cell of each output sample along an axis and the weight of the next cell, 0..1.
/// `source` must not be 0.
pub(crate) fn positions(source: usize, target: usize) -> impl Iterator<Item = (usize, f32)> {
    let step = source as f64 / target as f64;
    (0..target).map(move |i| {
        let position = ((i as f64 + 0.5) * step - 0.5).max(0.0);
        let low = (position as usize).min(source - 1);
        // Behind the last centre both cells are the same one and the weight has no say.
        (low, if low + 1 == source { 0.0 } else { (position - low as f64) as f32 })
    })
}

/// Where the samples of one axis lie between the cells.
#[derive(Debug, Default)]
struct Axis {
    source: usize,
    target: usize,
    spans: Vec<Span>,
    /// Weight of the upper cell for each output sample, 0..1.
    weights: Vec<f32>,
}

impl Axis {
    fn prepare(&mut self, source: usize, target: usize) {
        if (self.source, self.target) == (source, target) {
            return;
        }
        (self.source, self.target) = (source, target);
        self.spans.clear();
        self.weights.clear();
        for (i, (low, weight)) in positions(source, target).enumerate() {
            let high = (low + 1).min(source - 1);
            self.weights.push(weight);
            match self.spans.last_mut() {
                Some(span) if span.low == low => span.end = i + 1,
                _ => self.spans.push(Span { low, high, start: i, end: i + 1 }),
            }
        }
    }
}

/// A channel's values at the corners of a quad: upper left, upper right, lower left, lower right.
type Corners = [f32; 4];

/// A channel that may win somewhere in a quad.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    channel: u8,
    corners: Corners,
}

/// Upsamples score maps to label maps; keeps its scratch, so that repeated calls with
/// one geometry allocate nothing.
#[derive(Debug, Default)]
pub struct Upsampler {
    x: Axis,
    y: Axis,
    /// Per quad of a row of quads: the best "lowest corner" of any channel, `[spans]`.
    floor: Vec<f32>,
    /// Per quad and channel: the highest corner, `[spans, channels]`.
    ceiling: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Best score so far along one row of a quad, and its channel.
    best: Vec<(f32, u32)>,
}

impl Upsampler {
    /// An upsampler without scratch; the first call makes it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Smallest and largest value of each channel over all output samples.
    ///
    /// # Shapes
    /// - `channels`: `[c, h, w]`, `c = channels.len() / (h * w)`
    /// - `minmax`: `[c]`, replaced
    ///
    /// Nothing is found (`(inf, -inf)`) for a channel without finite values or an
    /// empty output.
    pub fn extremes(
        &mut self,
        channels: &[f32],
        (h, w): (usize, usize),
        (out_h, out_w): (usize, usize),
        minmax: &mut Vec<(f32, f32)>,
    ) {
        minmax.clear();
        if h == 0 || w == 0 {
            return;
        }
        let (x, y) = (&mut self.x, &mut self.y);
        x.prepare(w, out_w);
        y.prepare(h, out_h);
        for plane in channels.chunks_exact(h * w) {
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for rows in &y.spans {
                let upper = &plane[rows.low * w..][..w];
                let lower = &plane[rows.high * w..][..w];
                for columns in &x.spans {
                    let corners = corners(upper, lower, columns);
                    // Samples never leave the range of their corners.
                    if corners.iter().all(|&v| v >= low && v <= high) {
                        continue;
                    }
                    // A bilinear function has its extremes at the outermost samples.
                    for v in [y.weights[rows.start], y.weights[rows.end - 1]] {
                        let (left, right) = edge(&corners, v);
                        for u in [x.weights[columns.start], x.weights[columns.end - 1]] {
                            let value = (1.0 - u) * left + u * right;
                            low = low.min(value);
                            high = high.max(value);
                        }
                    }
                }
            }
            minmax.push((low, high));
        }
    }

    /// The channel with the highest score at each output sample.
    ///
    /// # Shapes
    /// - `channels`: `[c, h, w]`, `c = channels.len() / (h * w)`, at most 256
    /// - `affine`: `[c]` of `(scale, offset)`, applied to the channel before the
    ///   comparison; `None` leaves the scores as they are
    /// - `out`: `[out_h, out_w]`, replaced
    ///
    /// Of equal scores the lowest channel wins. (Where rounding makes two scores equal
    /// whose maps differ at every corner, either may be given.) A sample without any
    /// comparable score becomes 0.
    pub fn argmax(
        &mut self,
        channels: &[f32],
        (h, w): (usize, usize),
        affine: Option<&[(f32, f32)]>,
        (out_h, out_w): (usize, usize),
        out: &mut Vec<u8>,
    ) {
        // Every sample is written below when there is anything to write.
        out.resize(out_h * out_w, 0);
        if h == 0 || w == 0 || out.is_empty() {
            out.fill(0);
            return;
        }
        let c = (channels.len() / (h * w)).min(256);
        self.x.prepare(w, out_w);
        self.y.prepare(h, out_h);
        let adjust = |channel: usize, corners: Corners| match affine {
            Some(affine) => {
                let (scale, offset) = affine[channel];
                corners.map(|v| scale * v + offset)
            }
            None => corners,
        };
        let (spans, weights) = (&self.x.spans, &self.x.weights);
        self.floor.resize(spans.len(), 0.0);
        self.ceiling.resize(spans.len() * c, 0.0);
        self.best.resize(out_w, (0.0, 0));
        for rows in &self.y.spans {
            self.floor.fill(f32::NEG_INFINITY);
            for (channel, plane) in channels.chunks_exact(h * w).take(c).enumerate() {
                let upper = &plane[rows.low * w..][..w];
                let lower = &plane[rows.high * w..][..w];
                let ceilings = self.ceiling.iter_mut().skip(channel).step_by(c);
                for ((columns, floor), ceiling) in spans.iter().zip(&mut self.floor).zip(ceilings) {
                    let [p, q, r, s] = adjust(channel, corners(upper, lower, columns));
                    *floor = floor.max(p.min(q).min(r.min(s)));
                    *ceiling = p.max(q).max(r.max(s));
                }
            }
            let band = &mut out[rows.start * out_w..rows.end * out_w];
            let row_weights = &self.y.weights[rows.start..rows.end];
            for ((columns, floor), ceilings) in
                spans.iter().zip(&self.floor).zip(self.ceiling.chunks_exact(c.max(1)))
            {
                self.candidates.clear();
                for (channel, _) in ceilings.iter().enumerate().filter(|(_, v)| *v >= floor) {
                    let plane = &channels[channel * h * w..][..h * w];
                    let upper = &plane[rows.low * w..][..w];
                    let lower = &plane[rows.high * w..][..w];
                    let corners = adjust(channel, corners(upper, lower, columns));
                    self.candidates.push(Candidate { channel: channel as u8, corners });
                }
                drop_dominated(&mut self.candidates);
                let range = columns.start..columns.end;
                match self.candidates.as_slice() {
                    [] => band.chunks_exact_mut(out_w).for_each(|row| row[range.clone()].fill(0)),
                    [only] => band
                        .chunks_exact_mut(out_w)
                        .for_each(|row| row[range.clone()].fill(only.channel)),
                    several => {
                        for (row, &v) in band.chunks_exact_mut(out_w).zip(row_weights) {
                            contest(
                                several,
                                v,
                                &weights[range.clone()],
                                &mut self.best,
                                &mut row[range.clone()],
                            );
                        }
                    }
                }
            }
        }
    }
}

#[inline]
fn corners(upper: &[f32], lower: &[f32], columns: &Span) -> Corners {
    [upper[columns.low], upper[columns.high], lower[columns.low], lower[columns.high]]
}

/// Values at the left and right edge of a quad on the row of vertical weight `v`.
#[inline]
fn edge([a, b, c, d]: &Corners, v: f32) -> (f32, f32) {
    ((1.0 - v) * a + v * c, (1.0 - v) * b + v * d)
}

/// Removes candidates that lose everywhere in the quad. A higher channel loses against
/// equal scores too; a lower one has to be beaten at every corner, since it wins ties.
fn drop_dominated(candidates: &mut Vec<Candidate>) {
    let mut i = 0;
    while i < candidates.len() {
        let this = candidates[i];
        let beaten = candidates.iter().any(|other| {
            let mut pairs = other.corners.iter().zip(&this.corners);
            if other.channel < this.channel {
                pairs.all(|(o, t)| o >= t)
            } else {
                other.channel != this.channel && pairs.all(|(o, t)| o > t)
            }
        });
        if beaten {
            candidates.remove(i);
        } else {
            i += 1;
        }
    }
}

/// Evaluates all candidates along one row of a quad.
fn contest(
    candidates: &[Candidate],
    v: f32,
    weights: &[f32],
    best: &mut [(f32, u32)],
    out: &mut [u8],
) {
    let best = &mut best[..weights.len()];
    best.fill((f32::NEG_INFINITY, 0));
    for candidate in candidates {
        let (left, right) = edge(&candidate.corners, v);
        let channel = u32::from(candidate.channel);
        for (&u, (best, winner)) in weights.iter().zip(best.iter_mut()) {
            let value = (1.0 - u) * left + u * right;
            // Selections instead of branches, which nobody could foresee.
            let better = value > *best;
            *best = if better { value } else { *best };
            *winner = if better { channel } else { *winner };
        }
    }
    for (out, (_, winner)) in out.iter_mut().zip(best) {
        *out = *winner as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Full bilinear upsampling of one plane, as the module documentation defines it.
    fn upsample(plane: &[f32], h: usize, w: usize, out_h: usize, out_w: usize) -> Vec<f32> {
        let place = |i: usize, source: usize, target: usize| {
            let p = ((i as f64 + 0.5) * (source as f64 / target as f64) - 0.5).max(0.0);
            let low = (p.floor() as usize).min(source - 1);
            if low + 1 == source {
                (low, low, 0.0)
            } else {
                (low, low + 1, (p - low as f64) as f32)
            }
        };
        let mut out = Vec::new();
        for oy in 0..out_h {
            let (y0, y1, v) = place(oy, h, out_h);
            for ox in 0..out_w {
                let (x0, x1, u) = place(ox, w, out_w);
                let left = (1.0 - v) * plane[y0 * w + x0] + v * plane[y1 * w + x0];
                let right = (1.0 - v) * plane[y0 * w + x1] + v * plane[y1 * w + x1];
                out.push((1.0 - u) * left + u * right);
            }
        }
        out
    }

    #[derive(Debug)]
    struct Case {
        size: (usize, usize),
        out: (usize, usize),
        channels: Vec<f32>,
        affine: Vec<(f32, f32)>,
    }

    /// Small integers now and then, so that ties happen; noise otherwise.
    fn case() -> impl Strategy<Value = Case> {
        (1..7usize, 1..7usize, 1..9usize, 1..40usize, 1..40usize, any::<bool>()).prop_flat_map(
            |(h, w, c, out_h, out_w, coarse)| {
                let value = if coarse {
                    (-2..3i32).prop_map(|v| v as f32).boxed()
                } else {
                    (-1.0..1.0f32).boxed()
                };
                (
                    prop::collection::vec(value, c * h * w),
                    prop::collection::vec((0.0..3.0f32, -1.0..1.0f32), c),
                )
                    .prop_map(move |(channels, affine)| Case {
                        size: (h, w),
                        out: (out_h, out_w),
                        channels,
                        affine,
                    })
            },
        )
    }

    proptest! {
        #[test]
        fn the_winner_is_that_of_full_upsampling(case in case(), with_affine: bool) {
            let ((h, w), (out_h, out_w)) = (case.size, case.out);
            let affine = with_affine.then_some(case.affine.as_slice());
            let maps: Vec<Vec<f32>> = case.channels.chunks(h * w).enumerate().map(|(i, plane)| {
                let (scale, offset) = affine.map_or((1.0, 0.0), |a| a[i]);
                let plane: Vec<f32> = plane.iter().map(|v| scale * v + offset).collect();
                upsample(&plane, h, w, out_h, out_w)
            }).collect();
            let mut out = vec![9; 3];
            let mut upsampler = Upsampler::new();
            // Scratch of another geometry must not show.
            upsampler.argmax(&[0.0; 12], (2, 3), None, (5, 5), &mut out);
            upsampler.argmax(&case.channels, case.size, affine, case.out, &mut out);
            prop_assert_eq!(out.len(), out_h * out_w);
            for (i, &channel) in out.iter().enumerate() {
                let mut expected = 0;
                for (k, map) in maps.iter().enumerate() {
                    if map[i] > maps[expected][i] {
                        expected = k;
                    }
                }
                // The same arithmetic in the same order: the scores are equal to the bit,
                // and so are the channels unless rounding made the tie.
                prop_assert_eq!(maps[channel as usize][i], maps[expected][i]);
                prop_assert!(channel as usize >= expected);
            }
        }

        #[test]
        fn the_lowest_channel_wins_true_ties(case in case(), copies in 1..4usize) {
            let twice: Vec<f32> = case.channels.repeat(copies);
            let (mut once, mut tied) = (Vec::new(), Vec::new());
            Upsampler::new().argmax(&case.channels, case.size, None, case.out, &mut once);
            Upsampler::new().argmax(&twice, case.size, None, case.out, &mut tied);
            prop_assert_eq!(once, tied);
        }

        #[test]
        fn extremes_are_those_of_full_upsampling(case in case()) {
            let ((h, w), (out_h, out_w)) = (case.size, case.out);
            let mut minmax = Vec::new();
            Upsampler::new().extremes(&case.channels, case.size, case.out, &mut minmax);
            prop_assert_eq!(minmax.len(), case.channels.len() / (h * w));
            for (plane, (low, high)) in case.channels.chunks(h * w).zip(minmax) {
                let map = upsample(plane, h, w, out_h, out_w);
                let expected_low = map.iter().copied().fold(f32::INFINITY, f32::min);
                let expected_high = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                prop_assert!((low - expected_low).abs() < 1e-6, "{low} {expected_low}");
                prop_assert!((high - expected_high).abs() < 1e-6, "{high} {expected_high}");
            }
        }
    }

    #[test]
    fn integer_maps_give_ties_to_the_lower_channel() {
        // Both channels cross in the middle of a doubled pair of cells.
        let mut out = Vec::new();
        Upsampler::new().argmax(&[1.0, 0.0, 0.0, 1.0], (1, 2), None, (1, 6), &mut out);
        assert_eq!(out, [0, 0, 0, 1, 1, 1]);
        Upsampler::new().argmax(&[1.0, 0.0, 0.0, 1.0], (1, 2), None, (1, 5), &mut out);
        assert_eq!(out, [0, 0, 0, 1, 1]);
    }

    #[test]
    fn scores_that_cannot_be_compared_give_zero() {
        let mut out = vec![7];
        Upsampler::new().argmax(&[f32::NAN; 8], (2, 2), None, (3, 3), &mut out);
        assert_eq!(out, [0; 9]);
        Upsampler::new().argmax(&[], (2, 2), None, (1, 2), &mut out);
        assert_eq!(out, [0; 2]);
        Upsampler::new().argmax(&[], (0, 0), None, (0, 2), &mut out);
        assert!(out.is_empty());
    }
}
