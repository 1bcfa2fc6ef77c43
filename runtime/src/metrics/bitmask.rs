//! Masks of one bit per pixel.
//!
//! The boundary measure dilates boundaries by a disk (radius 8 at 480p). With 64 pixels to
//! a word that is a few shifts per row and disk row, instead of about 200 pixels stamped per
//! boundary pixel.

use crate::labels::LabelMap;

/// Pixels per word.
const WORD: usize = u64::BITS as usize;

/// A binary mask. Pixel `x` of a row is bit `x % 64` of word `x / 64`; the bits beyond
/// the width are always 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    width: usize,
    height: usize,
    row_words: usize,
    words: Vec<u64>,
}

impl BitMask {
    /// A mask without any pixel set.
    pub fn empty(width: u32, height: u32) -> Self {
        let (width, height) = (width as usize, height as usize);
        let row_words = width.div_ceil(WORD);
        Self { width, height, row_words, words: vec![0; row_words * height] }
    }

    /// The pixels of `map` whose id `belongs` accepts.
    pub fn from_labels(map: &LabelMap, belongs: impl Fn(u8) -> bool) -> Self {
        let mut mask = Self::empty(map.width, map.height);
        if mask.words.is_empty() {
            return mask;
        }
        let rows = map.data.chunks_exact(mask.width);
        for (row, words) in rows.zip(mask.words.chunks_exact_mut(mask.row_words)) {
            for (pixels, word) in row.chunks(WORD).zip(words) {
                let (eights, rest) = pixels.as_chunks::<8>();
                *word = 0;
                for (i, eight) in eights.iter().enumerate() {
                    *word |= gather(eight.map(|id| u8::from(belongs(id)))) << (8 * i);
                }
                for (i, &id) in rest.iter().enumerate() {
                    *word |= u64::from(belongs(id)) << (8 * eights.len() + i);
                }
            }
        }
        mask
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Whether pixel (`x`, `y`) is set; `false` outside the mask.
    pub fn get(&self, x: usize, y: usize) -> bool {
        x < self.width
            && y < self.height
            && self.words[y * self.row_words + x / WORD] >> (x % WORD) & 1 == 1
    }

    /// Number of pixels set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Number of pixels set in both masks, which are of one size.
    pub fn intersection(&self, other: &Self) -> u64 {
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }

    /// Number of pixels set in either mask, which are of one size.
    pub fn union(&self, other: &Self) -> u64 {
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a | b).count_ones())).sum()
    }

    /// The boundary as `seg2bmap` of the DAVIS tool draws it: a pixel that differs from its
    /// east, south or south-east neighbour. The last row looks east only, the last column
    /// south only, and the last pixel of both is never boundary; repeating the edge pixel
    /// outside the frame comes to exactly that.
    #[must_use]
    pub fn boundary(&self) -> Self {
        let mut out = self.clone();
        if self.words.is_empty() {
            return out;
        }
        let n = self.row_words;
        let last_bit = (self.width - 1) % WORD;
        for (y, target) in out.words.chunks_exact_mut(n).enumerate() {
            let row = &self.words[y * n..][..n];
            let below = if y + 1 < self.height { &self.words[(y + 1) * n..][..n] } else { row };
            for (i, word) in target.iter_mut().enumerate() {
                let (here, south) = (row[i], below[i]);
                let east = east_of(row, i, last_bit);
                let south_east = east_of(below, i, last_bit);
                *word = (here ^ east) | (here ^ south) | (here ^ south_east);
            }
        }
        out
    }

    /// Every pixel within `radius` of a set one: dilation by the disk x² + y² ≤ radius².
    /// Nothing comes in from outside the frame.
    #[must_use]
    pub fn dilated(&self, radius: u32) -> Self {
        let mut out = Self { words: vec![0; self.words.len()], ..*self };
        if self.words.is_empty() {
            return out;
        }
        let n = self.row_words;
        let radius = radius as usize;
        let half_widths: Vec<usize> =
            (0..=radius).map(|dy| (radius * radius - dy * dy).isqrt()).collect();
        let mut spread = vec![0u64; n];
        for (y, row) in self.words.chunks_exact(n).enumerate() {
            if row.iter().all(|&w| w == 0) {
                continue;
            }
            spread.copy_from_slice(row);
            let mut reach = 0;
            // From the disk's outermost row inwards its half width only grows, so one copy
            // of the row is widened step by step and serves all of them.
            for (dy, &half) in half_widths.iter().enumerate().rev() {
                while reach < half {
                    widen(&mut spread);
                    reach += 1;
                }
                if let Some(up) = y.checked_sub(dy) {
                    merge(&mut out.words[up * n..][..n], &spread);
                }
                if dy > 0 && y + dy < self.height {
                    merge(&mut out.words[(y + dy) * n..][..n], &spread);
                }
            }
        }
        out.clear_padding();
        out
    }

    /// Restores the invariant that bits beyond the width are 0.
    fn clear_padding(&mut self) {
        let used = self.width % WORD;
        if used == 0 {
            return;
        }
        let keep = (1u64 << used) - 1;
        for row in self.words.chunks_exact_mut(self.row_words) {
            if let Some(last) = row.last_mut() {
                *last &= keep;
            }
        }
    }
}

/// The lowest bits of eight bytes that are 0 or 1: the product brings bit 0 of byte `i`, which is bit `8 i`,
/// to bit `56 + i`, and no two of its other terms meet, so that nothing is carried.
fn gather(bytes: [u8; 8]) -> u64 {
    u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// Word `i` of the row's east neighbours; the last pixel is its own east neighbour.
fn east_of(row: &[u64], i: usize, last_bit: usize) -> u64 {
    match row.get(i + 1) {
        Some(next) => (row[i] >> 1) | (next << (WORD - 1)),
        None => (row[i] >> 1) | (row[i] & (1 << last_bit)),
    }
}

/// Sets the neighbours to the left and right of every set pixel of a row.
fn widen(row: &mut [u64]) {
    let mut carry = 0;
    for i in 0..row.len() {
        let word = row[i];
        let next = row.get(i + 1).copied().unwrap_or(0);
        row[i] = word | (word << 1) | carry | (word >> 1) | (next << (WORD - 1));
        carry = word >> (WORD - 1);
    }
}

fn merge(target: &mut [u64], source: &[u64]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t |= s;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(width: u32, height: u32, on: impl Fn(i64, i64) -> bool) -> BitMask {
        let data = (0..i64::from(height))
            .flat_map(|y| (0..i64::from(width)).map(move |x| (x, y)))
            .map(|(x, y)| u8::from(on(x, y)))
            .collect();
        BitMask::from_labels(&LabelMap { width, height, data }, |v| v == 1)
    }

    fn at(mask: &BitMask, x: i64, y: i64) -> bool {
        x >= 0 && y >= 0 && mask.get(x as usize, y as usize)
    }

    /// The definition: try every pixel of the disk around every pixel.
    fn slow_dilation(m: &BitMask, radius: i64) -> BitMask {
        mask(m.width() as u32, m.height() as u32, |x, y| {
            (-radius..=radius).any(|dy| {
                (-radius..=radius)
                    .any(|dx| dx * dx + dy * dy <= radius * radius && at(m, x + dx, y + dy))
            })
        })
    }

    /// The definition, with its three special edges written out.
    fn slow_boundary(m: &BitMask) -> BitMask {
        let (w, h) = (m.width() as i64, m.height() as i64);
        mask(w as u32, h as u32, |x, y| {
            let differs = |dx, dy| at(m, x, y) != at(m, x + dx, y + dy);
            match (x == w - 1, y == h - 1) {
                (true, true) => false,
                (true, false) => differs(0, 1),
                (false, true) => differs(1, 0),
                (false, false) => differs(1, 0) || differs(0, 1) || differs(1, 1),
            }
        })
    }

    fn any_mask() -> impl Strategy<Value = BitMask> {
        (1u32..140, 1u32..20, 1u8..255).prop_flat_map(|(width, height, density)| {
            prop::collection::vec(any::<u8>(), (width * height) as usize).prop_map(move |data| {
                BitMask::from_labels(&LabelMap { width, height, data }, |v| v < density)
            })
        })
    }

    proptest! {
        #[test]
        fn dilation_is_that_of_the_definition(m in any_mask(), radius in 0u32..10) {
            prop_assert_eq!(m.dilated(radius), slow_dilation(&m, i64::from(radius)));
        }

        #[test]
        fn the_boundary_is_that_of_the_definition(m in any_mask()) {
            prop_assert_eq!(m.boundary(), slow_boundary(&m));
        }

        #[test]
        fn counts_are_those_of_the_pixels(a in any_mask()) {
            let b = a.dilated(1);
            let pixels = (0..a.height()).flat_map(|y| (0..a.width()).map(move |x| (x, y)));
            prop_assert_eq!(a.count(), pixels.filter(|&(x, y)| a.get(x, y)).count() as u64);
            prop_assert_eq!(a.intersection(&b), a.count());
            prop_assert_eq!(a.union(&b), b.count());
        }
    }

    #[test]
    fn the_disk_has_the_pixels_of_the_official_tool() {
        let sizes = [(1, 5), (2, 13), (4, 49), (5, 81), (7, 149), (8, 197), (9, 253), (18, 1009)];
        for (radius, pixels) in sizes {
            let centre = mask(130, 130, |x, y| (x, y) == (64, 64));
            assert_eq!(centre.dilated(radius).count(), pixels, "radius {radius}");
        }
    }

    #[test]
    fn a_mask_without_pixels_is_harmless() {
        let none = BitMask::empty(0, 5);
        assert_eq!(none.boundary().count() + none.dilated(3).count(), 0);
    }
}
