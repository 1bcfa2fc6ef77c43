//! A plane with any stride as a source of `fast_image_resize`.
//!
//! The library's own image types have rows that touch; media frameworks pad rows to 4 bytes or
//! more, which for 3-byte pixels is not even a whole number of pixels. Implementing its `ImageView`
//! saves a copy of the frame.
#![allow(unsafe_code)] // `ImageView` is an unsafe trait; no unsafe operation happens here.

use std::marker::PhantomData;

use bytemuck::Pod;
use fast_image_resize::ImageView;
use fast_image_resize::pixels::InnerPixel;

use super::Plane;

/// `width` x `height` pixels of type `P` in rows `plane.stride` bytes apart.
pub(super) struct StridedView<'a, P> {
    plane: Plane<'a>,
    width: u32,
    height: u32,
    pixel: PhantomData<P>,
}

impl<'a, P: InnerPixel> StridedView<'a, P> {
    /// `None` when the plane does not hold that many pixels.
    pub(super) fn new(plane: Plane<'a>, width: u32, height: u32) -> Option<Self> {
        let row = (width as usize).checked_mul(P::size())?;
        let needed =
            (height as usize).checked_sub(1)?.checked_mul(plane.stride)?.checked_add(row)?;
        (width > 0 && row <= plane.stride && needed <= plane.data.len()).then_some(Self {
            plane,
            width,
            height,
            pixel: PhantomData,
        })
    }
}

// SAFETY: the trait asks that no row be shorter than `width`. Each row is a slice of exactly
// `width * P::size()` bytes, cast (with a check, by bytemuck) to `width` pixels.
unsafe impl<P: InnerPixel + Pod> ImageView for StridedView<'_, P> {
    type Pixel = P;

    fn width(&self) -> u32 {
        self.width
    }

    fn height(&self) -> u32 {
        self.height
    }

    fn iter_rows(&self, start_row: u32) -> impl Iterator<Item = &[P]> {
        let row = self.width as usize * P::size();
        (start_row as usize..self.height as usize).map(move |y| {
            let start = y * self.plane.stride;
            bytemuck::cast_slice(&self.plane.data[start..start + row])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fast_image_resize::pixels::U8x3;

    #[test]
    fn rows_skip_the_padding() {
        let data: Vec<u8> = (0..14).collect();
        let view = StridedView::<U8x3>::new(Plane { data: &data, stride: 8 }, 2, 2).unwrap();
        let rows: Vec<_> =
            view.iter_rows(0).map(|r| r.iter().map(|p| p.0).collect::<Vec<_>>()).collect();
        assert_eq!(rows, [vec![[0, 1, 2], [3, 4, 5]], vec![[8, 9, 10], [11, 12, 13]]]);
        assert_eq!(view.iter_rows(1).count(), 1);
    }

    #[test]
    fn a_plane_that_is_too_small_is_refused() {
        let plane = Plane { data: &[0; 13], stride: 8 };
        assert!(StridedView::<U8x3>::new(plane, 2, 2).is_none());
        assert!(StridedView::<U8x3>::new(plane, 3, 1).is_none());
        assert!(StridedView::<U8x3>::new(plane, 2, 0).is_none());
    }
}
