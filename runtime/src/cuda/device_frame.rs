//! Frames that are on the GPU already, in memory of whoever made them.
#![allow(unsafe_code)] // What lies at a device address is for the caller to promise.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, CudaError, EglFrame, ForeignRows};

use super::overlay::DevicePlane;
use super::preprocess::FrameLayout;
use crate::frame::{Colorimetry, FrameError, PixelFormat, check_geometry, check_plane};

/// Where the planes are.
#[derive(Debug, Clone, Copy)]
enum Memory {
    /// At addresses.
    Planes([DevicePlane; 3]),
    /// In an image of EGL, with bytes from row to row.
    Egl { image: *mut c_void, pitches: [usize; 3] },
}

/// A frame in GPU memory that somebody else owns: format, size, and up to three planes.
///
/// The memory may belong to another context or another GPU; it is copied to the GPU that runs the network, and never
/// by way of the host. Whether there is memory at the addresses is asked of the driver before it is read.
#[derive(Debug, Clone, Copy)]
pub struct DeviceFrame<'a> {
    layout: FrameLayout,
    memory: Memory,
    owner: PhantomData<&'a ()>,
}

// SAFETY: an EGL image is a handle that any thread may use; the rest are numbers.
unsafe impl Send for DeviceFrame<'_> {}

impl DeviceFrame<'_> {
    /// A frame whose planes lie at these addresses.
    ///
    /// # Errors
    /// [`FrameError`], as for a [`FrameView`](crate::frame::FrameView).
    ///
    /// # Safety
    /// As long as the frame lives, nobody frees or writes the planes, and all work that fills them is done.
    pub unsafe fn new(
        format: PixelFormat,
        (width, height): (u32, u32),
        planes: &[DevicePlane],
        colorimetry: Colorimetry,
    ) -> Result<Self, FrameError> {
        check_geometry(format, width, height, planes.len())?;
        let mut checked = [DevicePlane { address: 0, len: 0, stride: 0 }; 3];
        for (index, (plane, slot)) in planes.iter().zip(&mut checked).enumerate() {
            check_plane(format, width, height, index, plane.stride, plane.len)?;
            *slot = *plane;
        }
        let layout = FrameLayout { format, colorimetry, size: (width, height) };
        Ok(Self { layout, memory: Memory::Planes(checked), owner: PhantomData })
    }

    /// A frame in an `EGLImageKHR`, as a surface of a Jetson's video hardware can be had. `pitches` are the bytes from
    /// row to row of each plane, where the image has rows.
    ///
    /// # Errors
    /// [`FrameError`].
    ///
    /// # Safety
    /// As long as the frame lives, nobody destroys or writes the image, and all work that fills it is done.
    pub unsafe fn from_egl_image(
        format: PixelFormat,
        (width, height): (u32, u32),
        image: *mut c_void,
        pitches: &[usize],
        colorimetry: Colorimetry,
    ) -> Result<Self, FrameError> {
        check_geometry(format, width, height, pitches.len())?;
        let mut checked = [0; 3];
        for (index, (&pitch, slot)) in pitches.iter().zip(&mut checked).enumerate() {
            check_plane(format, width, height, index, pitch, usize::MAX)?;
            *slot = pitch;
        }
        let layout = FrameLayout { format, colorimetry, size: (width, height) };
        Ok(Self { layout, memory: Memory::Egl { image, pitches: checked }, owner: PhantomData })
    }

    /// Format, size and colours.
    pub(super) fn layout(&self) -> FrameLayout {
        self.layout
    }

    /// Makes the planes readable for CUDA.
    pub(super) fn planes(&self, context: &Arc<Context>) -> Result<DevicePlanes, CudaError> {
        match self.memory {
            Memory::Planes(planes) => Ok(DevicePlanes::Addresses(planes)),
            Memory::Egl { image, pitches } => {
                // SAFETY: the image lives as long as `self`, which the caller of the copy keeps.
                let frame = unsafe { EglFrame::register(context, image)? };
                let (width, height) = self.layout.size;
                if frame.size() != (width, height) {
                    let (w, h) = frame.size();
                    let reason = format!("it has {w}x{h} pixels, the frame {width}x{height}");
                    return Err(CudaError::EglImage { reason });
                }
                Ok(DevicePlanes::Egl(frame, pitches))
            }
        }
    }
}

/// The planes of a frame, readable as long as this lives.
#[derive(Debug)]
pub(super) enum DevicePlanes {
    Addresses([DevicePlane; 3]),
    Egl(EglFrame, [usize; 3]),
}

impl DevicePlanes {
    /// A plane; `index` is below [`PixelFormat::planes`].
    pub(super) fn plane(&self, index: usize) -> Result<ForeignRows, CudaError> {
        match self {
            Self::Addresses(planes) => {
                let DevicePlane { address, stride: pitch, .. } = planes[index];
                Ok(ForeignRows::Address { address, pitch })
            }
            Self::Egl(frame, pitches) => frame.plane(index, pitches[index]),
        }
    }
}
