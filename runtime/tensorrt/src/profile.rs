//! Ranges of input shapes that a plan is built for.

use std::ffi::c_char;
use std::mem::ManuallyDrop;

use crate::builder::Builder;
use crate::error::Error;
use crate::ffi::{Dims, Dims32, Dims64, MAX_DIMS, Object, call};
use crate::library::c_string;
use crate::types::ShapeRange;

/// Smallest, usual and largest shapes of all inputs with open sizes. Add it to a
/// [`BuilderConfig`](crate::BuilderConfig).
#[derive(Debug)]
pub struct OptimizationProfile<'b> {
    /// Belongs to the builder.
    object: ManuallyDrop<Object>,
    builder: &'b Builder,
}

impl<'b> OptimizationProfile<'b> {
    pub(crate) fn new(object: ManuallyDrop<Object>, builder: &'b Builder) -> Self {
        Self { object, builder }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn builder(&self) -> &'b Builder {
        self.builder
    }

    /// Sets the range of one input.
    ///
    /// # Errors
    /// [`Error::Shape`] unless all three shapes have the same number of sizes, each `0 < min <= opt <= max`;
    /// [`Error::Failed`] with TensorRT's reason.
    pub fn set_range(&mut self, input: &str, range: &ShapeRange) -> Result<(), Error> {
        let refuse = |shape: &[i64], reason: &str| Error::Shape {
            tensor: input.to_owned(),
            given: shape.to_vec(),
            reason: reason.to_owned(),
        };
        let ShapeRange { min, opt, max } = range;
        if min.len() > MAX_DIMS || min.iter().any(|&size| size < 1) {
            return Err(refuse(min, "at most 8 sizes are allowed, each at least 1"));
        }
        if opt.len() != min.len() || max.len() != min.len() {
            return Err(refuse(
                opt,
                "the smallest, usual and largest shape have different numbers of sizes",
            ));
        }
        let ordered = |(&low, &high): (&i64, &i64)| low <= high;
        if !min.iter().zip(opt).all(ordered) || !opt.iter().zip(max).all(ordered) {
            return Err(refuse(opt, "it is not between the smallest and the largest shape"));
        }
        let c_name = c_string(input, "the name of an input")?;
        let abi = self.builder.abi();
        let entry = abi.profile.set_dimensions;
        self.builder.forget_errors();
        for (which, shape) in [min, opt, max].into_iter().enumerate() {
            let dims = Dims::new(abi.generation, shape)
                .ok_or_else(|| refuse(shape, "a size is too large"))?;
            let name = c_name.as_ptr();
            // SAFETY: `bool setDimensions(char const*, OptProfileSelector, Dims)`, with the (narrow) shape by value in 8
            // and by reference since 10. All arguments live during the call.
            let done = unsafe {
                match &dims {
                    Dims::Narrow(dims) => {
                        call!(self.object, entry, (*const c_char, i32, Dims32) -> bool, name, which as i32, *dims)
                    }
                    Dims::Wide(dims) => {
                        call!(self.object, entry, (*const c_char, i32, &Dims64) -> bool, name, which as i32, dims)
                    }
                }
            };
            if !done {
                return Err(self.builder.failed("set the range of an input"));
            }
        }
        Ok(())
    }

    pub(crate) fn is_valid(&self) -> bool {
        // SAFETY: `bool isValid() const`.
        unsafe { call!(self.object, self.builder.abi().profile.is_valid, () -> bool) }
    }
}
