//! Memory on the GPU that belongs to somebody else: to another library, mostly in a context of its own.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::{Context, CudaError, DeviceBuffer, Stream};

/// `CU_POINTER_ATTRIBUTE_CONTEXT`, `…_RANGE_START_ADDR` and `…_RANGE_SIZE`.
const ATTRIBUTES: [c_int; 3] = [1, 11, 12];
/// `CU_MEMORYTYPE_DEVICE`.
const DEVICE: c_uint = 2;
/// `CU_MEMORYTYPE_ARRAY`.
const ARRAY: c_uint = 3;
/// `CU_MEMORYTYPE_UNIFIED`: the driver knows by the address whether it is on a GPU or on the host.
const UNIFIED: c_uint = 4;
/// `CU_GRAPHICS_MAP_RESOURCE_FLAGS_READ_ONLY`.
const READ_ONLY: c_uint = 1;
/// `CU_EGL_FRAME_TYPE_ARRAY` and `CU_EGL_FRAME_TYPE_PITCH`.
const FRAME_ARRAY: c_uint = 0;
const FRAME_PITCH: c_uint = 1;

/// One side of a `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Debug)]
struct Side2d {
    x: usize,
    y: usize,
    kind: c_uint,
    host: *const c_void,
    device: u64,
    array: *mut c_void,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Copy2d {
    from: Side2d,
    to: Side2d,
    row: usize,
    rows: usize,
}

/// One side of a `CUDA_MEMCPY3D_PEER`.
#[repr(C)]
#[derive(Debug)]
struct SidePeer {
    x: usize,
    y: usize,
    z: usize,
    level: usize,
    kind: c_uint,
    host: *const c_void,
    device: u64,
    array: *mut c_void,
    context: *mut c_void,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D_PEER`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct CopyPeer {
    from: SidePeer,
    to: SidePeer,
    row: usize,
    rows: usize,
    depth: usize,
}

/// Where rows of bytes lie in memory of somebody else.
#[derive(Clone, Copy, Debug)]
pub enum ForeignRows {
    /// At an address: on a GPU, or in memory of the host that CUDA knows.
    Address {
        /// The first byte.
        address: u64,
        /// Bytes from row to row.
        pitch: usize,
    },
    /// A plane of an [`EglFrame`] at an address.
    Mapped {
        /// The first byte.
        address: u64,
        /// Bytes from row to row.
        pitch: usize,
    },
    /// A plane of an [`EglFrame`] in an order of bytes that only the GPU knows: a `CUarray`.
    Array(*mut c_void),
}

impl Context {
    /// The context that the bytes at an address were allocated in; null where the driver does not tie memory to
    /// one, as that of `cuMemMap` and `cuMemAllocAsync`.
    fn owner(&self, address: u64, bytes: usize) -> Result<*mut c_void, CudaError> {
        let (mut context, mut start, mut size) = (std::ptr::null_mut::<c_void>(), 0_u64, 0_usize);
        let places: [*mut c_void; 3] =
            [(&raw mut context).cast(), (&raw mut start).cast(), (&raw mut size).cast()];
        // SAFETY: each place takes what its attribute is: a context, an address and a size. The driver does not read
        // what lies at the address, and answers zeros where it knows of nothing there.
        let answer = unsafe {
            (self.functions().pointer_attributes)(3, ATTRIBUTES.as_ptr(), places.as_ptr(), address)
        };
        self.check("cuPointerGetAttributes", answer)?;
        let end = address.checked_add(bytes as u64);
        let inside = address >= start
            && end.is_some_and(|end| end <= start.saturating_add(size as u64))
            && address != 0;
        if inside { Ok(context) } else { Err(CudaError::NotAllocated { address, bytes }) }
    }
}

impl DeviceBuffer<u8> {
    /// Puts a copy of `rows` rows of `row` bytes into the stream. They come to lie from byte `offset` on, `pitch` bytes
    /// from row to row.
    ///
    /// The driver is asked whether the rows are allocated, so that a wrong address or pitch is an error and not the end
    /// of the context. Within the own context this is `cuMemcpy2DAsync`. Memory of another one is copied by
    /// `cuMemcpy3DPeerAsync`, the only copy of rows for which NVIDIA's documentation promises that both contexts may
    /// differ, be it on one GPU or two; a kernel could read it only after `cuCtxEnablePeerAccess`.
    ///
    /// # Errors
    /// [`CudaError::Rows`], [`CudaError::NotAllocated`], [`CudaError::OtherDevice`] and [`CudaError::Call`].
    ///
    /// # Safety
    /// Until the stream has done the copy, the buffer lives, and so do the rows, which nobody writes.
    pub unsafe fn copy_rows_async(
        &self,
        stream: &Stream,
        (offset, pitch): (usize, usize),
        from: ForeignRows,
        (row, rows): (usize, usize),
    ) -> Result<(), CudaError> {
        if row == 0 || rows == 0 {
            return Ok(());
        }
        let last = |pitch: usize| (rows - 1).checked_mul(pitch).and_then(|n| n.checked_add(row));
        let end = last(pitch).and_then(|n| n.checked_add(offset));
        if pitch < row || end.is_none_or(|end| end > self.len()) {
            return Err(CudaError::Rows { row, rows, device: self.len() });
        }
        stream.check_device(self.context())?;
        self.context().make_current()?;
        let to = self.address() + offset as u64;
        let (kind, device, array, from_pitch, owner) = match from {
            ForeignRows::Address { address, pitch } => {
                let bytes = last(pitch).filter(|_| pitch >= row);
                let bytes = bytes.ok_or(CudaError::NotAllocated { address, bytes: usize::MAX })?;
                let owner = self.context().owner(address, bytes)?;
                (UNIFIED, address, std::ptr::null_mut(), pitch, owner)
            }
            ForeignRows::Mapped { address, pitch } => {
                (DEVICE, address, std::ptr::null_mut(), pitch, std::ptr::null_mut())
            }
            ForeignRows::Array(array) => (ARRAY, 0, array, 0, std::ptr::null_mut()),
        };
        let functions = self.context().functions();
        let (host, null) = (std::ptr::null(), std::ptr::null_mut());
        if owner.is_null() || owner == self.context().raw() {
            let from = Side2d { x: 0, y: 0, kind, host, device, array, pitch: from_pitch };
            let to = Side2d { x: 0, y: 0, kind: DEVICE, host, device: to, array: null, pitch };
            let copy = Copy2d { from, to, row, rows };
            // SAFETY: both sides hold the rows (checked, or mapped by the driver itself); how long they live is the
            // caller's. The driver reads `copy` during the call only.
            let answer = unsafe { (functions.copy_2d)(&raw const copy, stream.raw()) };
            return self.context().check("cuMemcpy2DAsync", answer);
        }
        let side = |kind, device, pitch, context| SidePeer {
            x: 0,
            y: 0,
            z: 0,
            level: 0,
            kind,
            host,
            device,
            array: null,
            context,
            pitch,
            height: rows,
        };
        let copy = CopyPeer {
            from: side(kind, device, from_pitch, owner),
            to: side(DEVICE, to, pitch, self.context().raw()),
            row,
            rows,
            depth: 1,
        };
        // SAFETY: as above; the driver has just named the context that the rows belong to.
        let answer = unsafe { (functions.copy_peer)(&raw const copy, stream.raw()) };
        self.context().check("cuMemcpy3DPeerAsync", answer)
    }
}

/// `CUeglFrame`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RawEglFrame {
    /// Arrays or addresses.
    planes: [u64; 3],
    width: c_uint,
    height: c_uint,
    depth: c_uint,
    pitch: c_uint,
    plane_count: c_uint,
    channels: c_uint,
    frame_type: c_uint,
    color_format: c_uint,
    array_format: c_uint,
}

type Register = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_uint) -> c_int;
type Mapped = unsafe extern "C" fn(*mut RawEglFrame, *mut c_void, c_uint, c_uint) -> c_int;
type Unregister = unsafe extern "C" fn(*mut c_void) -> c_int;

/// An image of EGL, as the surfaces of a Jetson's video hardware are, made readable for CUDA until it is dropped.
#[derive(Debug)]
pub struct EglFrame {
    context: Arc<Context>,
    resource: *mut c_void,
    unregister: Unregister,
    frame: RawEglFrame,
}

impl EglFrame {
    /// Registers an `EGLImageKHR`. The functions are looked for in the driver now: those of some machines have none.
    ///
    /// # Errors
    /// [`CudaError::MissingSymbol`], [`CudaError::Call`], and [`CudaError::EglImage`] for a kind of frame that is not
    /// known.
    ///
    /// # Safety
    /// The image lives until this is dropped.
    pub unsafe fn register(context: &Arc<Context>, image: *mut c_void) -> Result<Self, CudaError> {
        let driver = context.driver();
        // SAFETY: the types are those of the driver interface for these names.
        let (register, mapped, unregister) = unsafe {
            (
                driver.optional::<Register>("cuGraphicsEGLRegisterImage")?,
                driver.optional::<Mapped>("cuGraphicsResourceGetMappedEglFrame")?,
                driver.optional::<Unregister>("cuGraphicsUnregisterResource")?,
            )
        };
        context.make_current()?;
        let mut resource = std::ptr::null_mut();
        // SAFETY: `resource` takes one resource; the image lives (caller).
        let answer = unsafe { register(&raw mut resource, image, READ_ONLY) };
        context.check("cuGraphicsEGLRegisterImage", answer)?;
        // SAFETY: numbers only, for which zeros are values.
        let frame = unsafe { std::mem::zeroed() };
        let mut this = Self { context: Arc::clone(context), resource, unregister, frame };
        // SAFETY: the resource was just registered, and the place takes one frame.
        let answer = unsafe { mapped(&raw mut this.frame, this.resource, 0, 0) };
        context.check("cuGraphicsResourceGetMappedEglFrame", answer)?;
        let kind = this.frame.frame_type;
        if kind != FRAME_ARRAY && kind != FRAME_PITCH {
            return Err(CudaError::EglImage { reason: format!("its frames are of kind {kind}") });
        }
        Ok(this)
    }

    /// Width and height of the first plane.
    pub fn size(&self) -> (u32, u32) {
        (self.frame.width, self.frame.height)
    }

    /// A plane. CUDA tells the pitch of the first one only, so that the caller gives it.
    ///
    /// # Errors
    /// [`CudaError::EglImage`] where there is none, or the pitch of the first one is another.
    pub fn plane(&self, index: usize, pitch: usize) -> Result<ForeignRows, CudaError> {
        let RawEglFrame { planes, plane_count, frame_type, pitch: first, .. } = self.frame;
        let address = planes.get(index).copied().filter(|&address| address != 0);
        let Some(address) = address.filter(|_| index < plane_count as usize) else {
            return Err(CudaError::EglImage {
                reason: format!("plane {index} of {plane_count} is missing"),
            });
        };
        if frame_type == FRAME_ARRAY {
            return Ok(ForeignRows::Array(address as *mut c_void));
        }
        if index == 0 && pitch != first as usize {
            let reason = format!("its rows are {first} bytes apart, not {pitch}");
            return Err(CudaError::EglImage { reason });
        }
        Ok(ForeignRows::Mapped { address, pitch })
    }
}

impl Drop for EglFrame {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: registered in `register`, unregistered only here.
            let _ = unsafe { (self.unregister)(self.resource) };
        }
    }
}
