//! Which cells of a context frame a target cell sees.

use crate::dot::STRIP;

/// The windows of groups of `GROUP` neighbouring target cells, which are compared at once with strips
/// of [`STRIP`] cells of a packed row.
#[derive(Debug, Default)]
pub(super) struct Window<T, const GROUP: usize> {
    /// Rows to each side, at most `height - 1`.
    pub(super) radius_y: usize,
    /// Column of a packed row where the first strip of the first group starts.
    pub(super) origin: usize,
    /// Columns from the first strip of a group to that of the next; 0 where all groups see the
    /// whole width.
    pub(super) step: usize,
    /// Strips that cover what a group sees of a row.
    pub(super) strips: usize,
    /// Entries of a row of `tiles`.
    row_size: usize,
    /// The last row of `tiles`.
    last_row: usize,
    /// Which cells of a strip are in the windows of a group: `[rows, groups, strips]`, one row for each
    /// distance up to `radius_y`, or one for all of them.
    tiles: Vec<T>,
}

impl<T, const GROUP: usize> Window<T, GROUP> {
    /// The cells within `radius` of a target cell: a square (to and with `radius`), or the
    /// circle of those nearer than `radius`. Packed rows have `left` columns at the front. `tile` makes
    /// an entry of `tiles` from whether cell `i` of the strip is in the window of cell `g` of the group.
    pub(super) fn new(
        (height, width): (usize, usize),
        left: usize,
        radius: usize,
        circle: bool,
        tile: impl Fn(&dyn Fn(usize, usize) -> bool) -> T,
    ) -> Self {
        let reach = if circle { radius.saturating_sub(1) } else { radius };
        let (radius_y, radius_x) = (reach.min(height - 1), reach.min(width - 1));
        let groups = width.div_ceil(GROUP);
        // With the whole width in sight, strips need not move along with the group.
        let (origin, step, strips) = if !circle && radius_x == width - 1 {
            (left, 0, width.div_ceil(STRIP))
        } else {
            (left - radius_x, GROUP, (GROUP + 2 * radius_x).div_ceil(STRIP))
        };
        let rows = if circle { radius_y + 1 } else { 1 };
        let mut tiles = Vec::with_capacity(rows * groups * strips);
        for dy in 0..rows {
            for group in 0..groups {
                for strip in 0..strips {
                    tiles.push(tile(&|g, i| {
                        let x = group * GROUP + g;
                        let column = origin + group * step + strip * STRIP + i;
                        let source = column.wrapping_sub(left);
                        x < width && source < width && {
                            let dx = x.abs_diff(source);
                            if circle {
                                dx * dx + dy * dy < radius.saturating_mul(radius)
                            } else {
                                dx <= radius_x
                            }
                        }
                    }));
                }
            }
        }
        let (row_size, last_row) = (groups * strips, rows - 1);
        Self { radius_y, origin, step, strips, row_size, last_row, tiles }
    }

    /// Columns that packed rows need for `groups` groups.
    pub(super) fn pitch(&self, groups: usize) -> usize {
        self.origin + (groups - 1) * self.step + self.strips * STRIP
    }

    /// The tiles for a row that is `dy` away, `[groups, strips]`.
    #[inline]
    pub(super) fn row(&self, dy: usize) -> &[T] {
        &self.tiles[dy.min(self.last_row) * self.row_size..][..self.row_size]
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.tiles.as_slice())
    }
}
