//! Networks that plans are built of.

use std::ffi::{c_char, c_void};

use crate::builder::Builder;
use crate::error::Error;
use crate::ffi::{self, Object, call, call_shape};
use crate::parser::ParserObject;
use crate::types::DataType;

/// An input or output of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkTensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub data_type: DataType,
    /// Its shape, -1 where open.
    pub shape: Vec<i64>,
}

/// A network, filled by an [`OnnxParser`](crate::OnnxParser).
#[derive(Debug)]
pub struct Network<'b> {
    /// Owns the weights that the network refers to; destroyed before it, as in the library's own programs.
    parser: Option<ParserObject>,
    object: Object,
    builder: &'b Builder,
}

impl<'b> Network<'b> {
    pub(crate) fn new(object: Object, builder: &'b Builder) -> Self {
        Self { parser: None, object, builder }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn builder(&self) -> &'b Builder {
        self.builder
    }

    pub(crate) fn keep(&mut self, parser: ParserObject) {
        self.parser = Some(parser);
    }

    /// Number of layers.
    pub fn layers(&self) -> u32 {
        // SAFETY: `int32_t getNbLayers() const`.
        let count = unsafe { call!(self.object, self.builder.abi().network.layers, () -> i32) };
        u32::try_from(count).unwrap_or(0)
    }

    /// The inputs.
    ///
    /// # Errors
    /// [`Error::NoObject`] and [`Error::UnsupportedTensor`] for what cannot be described.
    pub fn inputs(&self) -> Result<Vec<NetworkTensor>, Error> {
        let network = &self.builder.abi().network;
        self.tensors(network.inputs, network.input)
    }

    /// The outputs.
    ///
    /// # Errors
    /// As [`Network::inputs`].
    pub fn outputs(&self) -> Result<Vec<NetworkTensor>, Error> {
        let network = &self.builder.abi().network;
        self.tensors(network.outputs, network.output)
    }

    fn tensors(&self, count: usize, get: usize) -> Result<Vec<NetworkTensor>, Error> {
        let abi = self.builder.abi();
        // SAFETY: `int32_t getNbInputs() const` or `int32_t getNbOutputs() const`.
        let count = unsafe { call!(self.object, count, () -> i32) };
        (0..count)
            .map(|index| {
                // SAFETY: `ITensor* getInput(int32_t) const` or `ITensor* getOutput(int32_t) const`; it belongs to the
                // network. `char const* getName() const` gives a string of the tensor, `DataType getType() const` a
                // 32-bit enumeration, `Dims getDimensions() const` a shape.
                let (name, data_type, shape) = unsafe {
                    let raw = call!(self.object, get, (i32) -> *mut c_void, index);
                    let tensor = Object::borrow(raw, "give a tensor of the network", || {
                        self.builder.told()
                    })?;
                    (
                        ffi::text(call!(tensor, abi.tensor.name, () -> *const c_char)),
                        call!(tensor, abi.tensor.data_type, () -> i32),
                        call_shape!(abi.generation, tensor, abi.tensor.shape, ()),
                    )
                };
                if let (Some(data_type), Some(shape)) = (DataType::from_raw(data_type), shape) {
                    return Ok(NetworkTensor { name, data_type, shape });
                }
                let reason = format!("its element type {data_type} or its shape is not known");
                Err(Error::UnsupportedTensor { tensor: name, reason })
            })
            .collect()
    }
}
