//! Limits that hold before a file is decoded.
//!
//! Two bytes of a protocol buffer can stand for an empty message of a hundred, so what is not
//! weights is measured first. Nesting is limited by the decoder itself, to 100 levels.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::OnnxError;

/// Largest network, in bytes: the limit of the protocol buffer format.
const MAX_BYTES: u64 = 2 << 30;
/// Most bytes of nodes, names and small tensors: a hundred times a ResNet-152.
const MAX_STRUCTURE: u64 = 32 << 20;
/// Tensors of fewer bytes are counted as structure.
const SMALL_TENSOR: usize = 1 << 10;
/// Tags of `ModelProto.graph` and `GraphProto.initializer`.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;

/// Refuses bytes that would take much more memory than they have themselves.
pub(super) fn check(bytes: &[u8]) -> Result<(), OnnxError> {
    let size = bytes.len() as u64;
    if size > MAX_BYTES {
        return Err(OnnxError::TooLarge { bytes: size, limit: MAX_BYTES });
    }
    let mut weights = 0;
    messages(bytes, GRAPH, |graph| {
        messages(graph, INITIALIZER, |tensor| {
            if tensor.len() >= SMALL_TENSOR {
                weights += tensor.len() as u64;
            }
            Ok(())
        })
    })?;
    let structure = size.saturating_sub(weights);
    if structure > MAX_STRUCTURE {
        return Err(OnnxError::TooLarge { bytes: structure, limit: MAX_STRUCTURE });
    }
    Ok(())
}

/// Shows the content of each field `tag` of the message in `bytes`.
fn messages<'a>(
    mut bytes: &'a [u8],
    tag: u32,
    mut see: impl FnMut(&'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !bytes.is_empty() {
        let (field, wire) = decode_key(&mut bytes)?;
        if field == tag && wire == WireType::LengthDelimited {
            let length = decode_varint(&mut bytes)?;
            let content = usize::try_from(length).ok().and_then(|n| bytes.split_at_checked(n));
            // A cut file is told by the decoder, in its words.
            let Some((content, rest)) = content else { return Ok(()) };
            see(content)?;
            bytes = rest;
        } else {
            skip_field(wire, field, &mut bytes, DecodeContext::default())?;
        }
    }
    Ok(())
}
