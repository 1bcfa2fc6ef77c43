//! Errors as `GStreamer` reports them.

use conceptseg::errors::sentence;

use crate::meta::MetaError;
use crate::models::OpenError;

/// An error message with a text for people.
pub fn message(kind: impl gst::MessageErrorDomain, text: &str) -> gst::ErrorMessage {
    gst::ErrorMessage::new(&kind, Some(text), None, file!(), module_path!(), line!())
}

impl From<OpenError> for gst::ErrorMessage {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::OtherModel { .. } => message(gst::LibraryError::Settings, &sentence(&error)),
            _ => message(gst::ResourceError::NotFound, &sentence(&error)),
        }
    }
}

impl From<MetaError> for gst::ErrorMessage {
    fn from(error: MetaError) -> Self {
        message(gst::StreamError::Failed, &sentence(&error))
    }
}
