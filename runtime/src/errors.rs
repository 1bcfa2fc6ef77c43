//! Errors as people read them.

use std::error::Error;

/// An error and its causes as one sentence, each part once: a message that already quotes
/// its cause is not followed by that cause again.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::LabelMap;

    #[test]
    fn a_cause_that_the_message_quotes_is_not_repeated() {
        let error = LabelMap::read_png("/nonexistent.png".as_ref()).unwrap_err();
        let text = sentence(&error);
        assert_eq!(text.matches("No such file").count(), 1, "{text}");
        let outer = std::io::Error::other(error);
        assert_eq!(sentence(&outer), text);
    }
}
