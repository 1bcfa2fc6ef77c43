//! Reading ONNX files into networks.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::NonNull;

use crate::abi::Abi;
use crate::error::Error;
use crate::ffi::{self, object_address, virtual_method};
use crate::library::OnnxParserLibrary;
use crate::network::Network;

/// Errors of one file that are put into words, at most.
const TOLD: c_int = 8;
/// The least serious messages that parsing a file logs: warnings.
const VERBOSITY: c_int = 2;

/// An `IParser`: unlike other objects it has its methods in its own table.
#[derive(Debug)]
pub(crate) struct ParserObject {
    raw: NonNull<c_void>,
    abi: &'static Abi,
}

// SAFETY: as other objects of the library, it is not bound to a thread, and is used by one at a time.
unsafe impl Send for ParserObject {}

impl Drop for ParserObject {
    fn drop(&mut self) {
        // SAFETY: the parser is live and owned here; this entry destroys and frees it.
        unsafe {
            let destroy: unsafe extern "C" fn(*mut c_void) =
                virtual_method(self.raw.as_ptr(), self.abi.parser_destroy);
            destroy(self.raw.as_ptr());
        }
    }
}

/// Reads one ONNX file into a network.
#[derive(Debug)]
pub struct OnnxParser<'b> {
    /// Before the network, which it refers to.
    parser: ParserObject,
    network: Network<'b>,
}

impl<'b> OnnxParser<'b> {
    /// Makes a parser for an empty network.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason; [`Error::Option`] if the parser was opened for another major version.
    pub fn new(library: &OnnxParserLibrary, network: Network<'b>) -> Result<Self, Error> {
        let builder = network.builder();
        let version = builder.library().version();
        if library.library_version().major != version.major {
            return Err(Error::Option {
                option: "ONNX parser",
                value: format!("of TensorRT {}", library.library_version()),
                reason: format!("the network is of TensorRT {version}"),
            });
        }
        builder.forget_errors();
        // SAFETY: the network is of this major version (checked), and is dropped after the parser.
        let raw = unsafe { library.create(network.object().address(), builder.library().logger()) };
        let raw = object_address(raw).map_err(|reason| Error::NoObject {
            operation: "create an ONNX parser",
            detail: builder.told().unwrap_or(reason),
        })?;
        Ok(Self { parser: ParserObject { raw, abi: builder.abi() }, network })
    }

    /// Reads a model from memory. Weights in files beside it are found only with [`OnnxParser::parse_file`].
    ///
    /// # Errors
    /// [`Error::Failed`] with what the parser says, node by node.
    pub fn parse(self, model: &[u8]) -> Result<Network<'b>, Error> {
        let this = self.parser.raw.as_ptr();
        // SAFETY: `bool parse(void const*, size_t, char const*)`, where the path may be null; the bytes live during the
        // call, and the parser copies the weights it keeps.
        let done = unsafe {
            let parse: unsafe extern "C" fn(
                *mut c_void,
                *const c_void,
                usize,
                *const c_char,
            ) -> bool = virtual_method(this, self.parser.abi.parser.parse);
            parse(this, model.as_ptr().cast(), model.len(), std::ptr::null())
        };
        self.finish(done)
    }

    /// Reads a model from a file, with weights in files beside it.
    ///
    /// # Errors
    /// As [`OnnxParser::parse`]; [`Error::Text`] for a path that a C string cannot hold.
    pub fn parse_file(self, path: &Path) -> Result<Network<'b>, Error> {
        let text = path.to_str().and_then(|text| CString::new(text).ok());
        let text = text.ok_or(Error::Text { what: "the path of the ONNX file" })?;
        let this = self.parser.raw.as_ptr();
        // SAFETY: `bool parseFromFile(char const*, int verbosity)`; the path lives during the call.
        let done = unsafe {
            let parse: unsafe extern "C" fn(*mut c_void, *const c_char, c_int) -> bool =
                virtual_method(this, self.parser.abi.parser.parse_file);
            parse(this, text.as_ptr(), VERBOSITY)
        };
        self.finish(done)
    }

    fn finish(self, done: bool) -> Result<Network<'b>, Error> {
        if !done {
            let told = self.errors();
            let detail = told.or_else(|| self.network.builder().told());
            let detail = detail.unwrap_or_else(|| "it gave no reason".to_owned());
            return Err(Error::Failed { operation: "read the ONNX model", detail });
        }
        let Self { parser, mut network } = self;
        network.keep(parser);
        Ok(network)
    }

    /// What the parser says went wrong, in one sentence.
    fn errors(&self) -> Option<String> {
        let this = self.parser.raw.as_ptr();
        let abi = self.parser.abi;
        // SAFETY: `int getNbErrors() const`.
        let count = unsafe {
            let count: unsafe extern "C" fn(*mut c_void) -> c_int =
                virtual_method(this, abi.parser.errors);
            count(this)
        };
        let mut told = Vec::new();
        for index in 0..count.clamp(0, TOLD) {
            // SAFETY: `IParserError const* getError(int) const`; the error belongs to the parser.
            let error = unsafe {
                let get: unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void =
                    virtual_method(this, abi.parser.error);
                get(this, index)
            };
            let Ok(error) = object_address(error) else { continue };
            // SAFETY: a live `IParserError` of this version.
            told.push(unsafe { tell(abi, error.as_ptr()) });
        }
        if count > TOLD {
            told.push(format!("and {} more", count - TOLD));
        }
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// Puts an error of the parser into words.
///
/// # Safety
/// `error` is a live `IParserError` of this version.
unsafe fn tell(abi: &Abi, error: *mut c_void) -> String {
    type Number = unsafe extern "C" fn(*mut c_void) -> c_int;
    type Words = unsafe extern "C" fn(*mut c_void) -> *const c_char;
    let entries = &abi.parser_error;
    // SAFETY: `ErrorCode code() const`, `int node() const` and `char const* desc() const`, whose string belongs to the
    // error; `char const* nodeName() const` likewise where this version has it.
    let (code, node, words, name) = unsafe {
        (
            virtual_method::<Number>(error, entries.code)(error),
            virtual_method::<Number>(error, entries.node)(error),
            ffi::text(virtual_method::<Words>(error, entries.description)(error)),
            abi.parser_error_node_name
                .map(|entry| ffi::text(virtual_method::<Words>(error, entry)(error)))
                .filter(|name| !name.is_empty()),
        )
    };
    let place = match (name, node) {
        (Some(name), _) => format!("node `{name}`"),
        (None, 0..) => format!("node {node}"),
        (None, _) => "the model".to_owned(),
    };
    format!("{place}: {words} (code {code})")
}
