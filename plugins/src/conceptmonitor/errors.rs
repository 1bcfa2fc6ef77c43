//! Errors of the library's monitor as `GStreamer` reports them.

use conceptseg::errors::sentence;
use conceptseg::monitor::SetupError;
use conceptseg::monitor::baseline::BaselineError;
use conceptseg::monitor::output::OutputError;
use conceptseg::monitor::rules::RuleError;

use crate::errors::message;

/// Why streams cannot be watched as asked for.
pub fn of_setup(error: &SetupError) -> gst::ErrorMessage {
    match error {
        SetupError::Io { .. }
        | SetupError::Baseline(BaselineError::Io { .. })
        | SetupError::Rules(RuleError::Io { .. }) => {
            message(gst::ResourceError::Read, &sentence(error))
        }
        _ => message(gst::LibraryError::Settings, &sentence(error)),
    }
}

/// Why an output cannot be opened.
pub fn of_output(error: &OutputError) -> gst::ErrorMessage {
    match error {
        OutputError::Log { .. } | OutputError::Spool(_) => {
            message(gst::ResourceError::OpenWrite, &sentence(error))
        }
        OutputError::Server(_) => message(gst::ResourceError::OpenReadWrite, &sentence(error)),
        _ => message(gst::LibraryError::Settings, &sentence(error)),
    }
}
