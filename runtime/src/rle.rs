//! Run-length encoded masks in the compressed text form of the COCO data set, which
//! `pycocotools` and most labelling tools read.
//!
//! A mask is walked column by column. The lengths of its runs, beginning with a run of
//! background (possibly of length 0), are stored as a list of integers; from the fourth
//! on, each is stored as the difference to the one two places before it, which has the same
//! colour and mostly a similar length. Each integer is then written in base 32, lowest five
//! bits first, one printable character (value + 48) per digit; bit 5 says that more digits
//! follow and bit 4 of the last digit is the sign.

use serde::{Deserialize, Serialize};

use crate::labels::MAX_SIDE;

/// Why run lengths could not be decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RleError {
    /// The text holds a character outside of the alphabet, or ends within a number.
    #[error("run lengths are damaged at character {at}; the mask has to be written again")]
    Damaged {
        /// Index of the character.
        at: usize,
    },
    /// The runs do not add up to the size of the mask.
    #[error("run lengths cover {found} pixels, but a mask of {width}x{height} has {expected}")]
    Length {
        /// Pixels that the runs cover; counting stops above `expected`.
        found: u64,
        /// Pixels of the mask.
        expected: u64,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The mask is larger than [`MAX_SIDE`] allows.
    #[error(
        "a run-length encoded mask is {width}x{height}; at most {MAX_SIDE} pixels on a side are read"
    )]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
}

/// One binary mask as COCO stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rle {
    /// Height and width in pixels, in this order.
    pub size: [u32; 2],
    /// Compressed run lengths, column by column.
    pub counts: String,
}

impl Rle {
    /// Encodes the pixels of `labels` (`[height, width]`, row-major) that equal `id`.
    /// `bbox` is `[x, y, width, height]` in pixels; pixels outside of it count as background
    /// and are not looked at, which makes small objects cheap.
    ///
    /// Pixels missing from `labels` count as background.
    pub fn encode(labels: &[u8], width: u32, height: u32, id: u8, bbox: [u32; 4]) -> Self {
        let left = bbox[0].min(width) as usize;
        let right = bbox[0].saturating_add(bbox[2]).min(width) as usize;
        let top = bbox[1].min(height) as usize;
        let bottom = bbox[1].saturating_add(bbox[3]).min(height) as usize;
        let (w, h) = (width as usize, height as usize);

        let mut writer = CountWriter::default();
        let (mut inside, mut run_start) = (false, 0);
        let mut turn = |inside: &mut bool, position: usize| {
            writer.push((position - run_start) as i64);
            run_start = position;
            *inside = !*inside;
        };
        for x in left..right {
            let column = x * h;
            if inside && top > 0 {
                turn(&mut inside, column);
            }
            for y in top..bottom {
                if (labels.get(y * w + x) == Some(&id)) != inside {
                    turn(&mut inside, column + y);
                }
            }
            if inside && bottom < h {
                turn(&mut inside, column + bottom);
            }
        }
        if inside && right < w {
            turn(&mut inside, right * h);
        }
        writer.push((w * h - run_start) as i64);
        Self { size: [height, width], counts: writer.text }
    }

    /// The mask as one `bool` per pixel, `[height, width]`, row-major.
    ///
    /// # Errors
    /// [`RleError`] when the text is damaged, or too large to be believed.
    pub fn decode(&self) -> Result<Vec<bool>, RleError> {
        let [height, width] = self.size;
        let runs = text_runs(&self.counts, self.size)?;
        let (w, h) = (width as usize, height as usize);
        let mut mask = vec![false; w * h];
        let (mut position, mut inside) = (0, false);
        for run in runs {
            let end = position + run as usize;
            if inside {
                for p in position..end {
                    mask[(p % h) * w + p / h] = true;
                }
            }
            position = end;
            inside = !inside;
        }
        Ok(mask)
    }
}

/// The run lengths of a text for a mask of `[height, width]`, column by column, background
/// first; they cover all of it.
pub(crate) fn text_runs(text: &str, size: [u32; 2]) -> Result<Vec<u32>, RleError> {
    checked_runs(&read_counts(text)?, size)
}

/// Run lengths that cover a mask of `[height, width]`, which is not larger than [`MAX_SIDE`].
pub(crate) fn checked_runs(runs: &[i64], size: [u32; 2]) -> Result<Vec<u32>, RleError> {
    let [height, width] = size;
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(RleError::TooLarge { width, height });
    }
    let expected = u64::from(width) * u64::from(height);
    let length_error = |found| RleError::Length { found, expected, width, height };
    let mut covered = 0u64;
    let mut checked = Vec::with_capacity(runs.len());
    for &run in runs {
        let run = u64::try_from(run).map_err(|_| length_error(covered))?;
        covered = covered.saturating_add(run);
        if covered > expected {
            return Err(length_error(covered));
        }
        // At most the pixels of the largest mask, 2^28.
        checked.push(run as u32);
    }
    if covered == expected { Ok(checked) } else { Err(length_error(covered)) }
}

/// Turns run lengths into text as they come.
#[derive(Default)]
struct CountWriter {
    text: String,
    /// The last two run lengths, the older one first.
    last: [i64; 2],
    written: usize,
}

impl CountWriter {
    fn push(&mut self, count: i64) {
        // The format stores the first three runs as they are.
        let mut rest = if self.written > 2 { count - self.last[0] } else { count };
        self.last = [self.last[1], count];
        self.written += 1;
        loop {
            let mut digit = (rest & 0x1f) as u8;
            rest >>= 5;
            let finished = rest == if digit & 0x10 == 0 { 0 } else { -1 };
            if !finished {
                digit |= 0x20;
            }
            self.text.push(char::from(digit + 48));
            if finished {
                return;
            }
        }
    }
}

/// Run lengths of a text; they may still be negative or too long for the mask.
fn read_counts(text: &str) -> Result<Vec<i64>, RleError> {
    let mut counts: Vec<i64> = Vec::new();
    let (mut value, mut shift) = (0i64, 0u32);
    for (at, byte) in text.bytes().enumerate() {
        let digit = byte.checked_sub(48).filter(|d| *d < 64).ok_or(RleError::Damaged { at })?;
        // Nine digits hold 45 bits, far above the pixels of the largest mask.
        if shift >= 45 {
            return Err(RleError::Damaged { at });
        }
        value |= i64::from(digit & 0x1f) << shift;
        shift += 5;
        if digit & 0x20 != 0 {
            continue;
        }
        if digit & 0x10 != 0 {
            value |= -1 << shift;
        }
        let n = counts.len();
        if n > 2 {
            // Differences of 45 bits cannot overflow before a length check would have failed,
            // but a hostile text may chain them.
            value = value.checked_add(counts[n - 2]).ok_or(RleError::Damaged { at })?;
        }
        counts.push(value);
        (value, shift) = (0, 0);
    }
    if shift != 0 {
        return Err(RleError::Damaged { at: text.len() });
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode_whole(labels: &[u8], width: u32, height: u32) -> Rle {
        Rle::encode(labels, width, height, 1, [0, 0, width, height])
    }

    #[test]
    fn small_masks_read_as_pycocotools_writes_them() {
        let labels = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        assert_eq!(encode_whole(&labels, 4, 3), Rle { size: [3, 4], counts: "326O".into() });
        assert_eq!(encode_whole(&[1; 4], 2, 2).counts, "04");
        assert_eq!(encode_whole(&[0; 4], 2, 2).counts, "4");
    }

    #[test]
    fn a_disc_reads_as_pycocotools_writes_it() {
        let (w, h) = (80, 60);
        let labels: Vec<u8> = (0..w * h)
            .map(|i| {
                let (x, y) = ((i % w) as i32 - 40, (i / w) as i32 - 30);
                u8::from(x * x + y * y < 400)
            })
            .collect();
        let golden =
            "TX1=]14L4M2M4M2N2O0O2N2O0O2O0O2O000000000000000000000001N101N101N2N101N2N3L3N3L4LjT1";
        let whole = encode_whole(&labels, w, h);
        assert_eq!(whole.counts, golden);
        assert_eq!(Rle::encode(&labels, w, h, 1, [21, 11, 39, 39]), whole);
    }

    #[test]
    fn damaged_text_is_an_error_and_never_a_panic() {
        let bad = |counts: &str| Rle { size: [2, 2], counts: counts.into() }.decode();
        assert_eq!(bad("\u{7f}"), Err(RleError::Damaged { at: 0 }));
        assert_eq!(bad("P"), Err(RleError::Damaged { at: 1 }));
        assert!(matches!(bad("3"), Err(RleError::Length { found: 3, .. })));
        assert!(matches!(bad("5"), Err(RleError::Length { found: 5, .. })));
        assert!(matches!(bad("O"), Err(RleError::Length { .. })));
        assert!(
            Rle { size: [u32::MAX, 1], counts: String::new() }.decode().is_err(),
            "the size is checked before memory is taken"
        );
    }

    proptest! {
        #[test]
        fn decoding_returns_what_was_encoded(
            w in 1u32..40, h in 1u32..40, seed in proptest::collection::vec(0u8..3, 1600)
        ) {
            let labels = &seed[..(w * h) as usize];
            let decoded = encode_whole(labels, w, h).decode().unwrap();
            let expected: Vec<bool> = labels.iter().map(|&l| l == 1).collect();
            prop_assert_eq!(decoded, expected);
        }

        #[test]
        fn pixels_outside_of_the_box_are_background(
            x in 0u32..12, y in 0u32..12, bw in 0u32..14, bh in 0u32..14,
            labels in proptest::collection::vec(0u8..2, 120)
        ) {
            let (w, h) = (10, 12);
            let clipped: Vec<u8> = labels.iter().enumerate().map(|(i, &l)| {
                let (px, py) = (i as u32 % w, i as u32 / w);
                if (x..x + bw).contains(&px) && (y..y + bh).contains(&py) { l } else { 0 }
            }).collect();
            prop_assert_eq!(
                Rle::encode(&labels, w, h, 1, [x, y, bw, bh]),
                encode_whole(&clipped, w, h)
            );
        }

        #[test]
        fn any_text_decodes_or_fails(text in "\\PC{0,30}") {
            let _ = Rle { size: [7, 5], counts: text }.decode();
        }
    }
}
