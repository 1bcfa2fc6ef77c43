//! Memory whose size comes from outside: want of it is an error, not the end of the program.
//!
//! Rust ends the program where an allocation fails. What is as large as a frame, an input or a
//! file says is therefore asked for here before it is used.

/// There is no memory for something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no memory for {what} ({} MB); use smaller frames or fewer streams, or let the process have more memory",
    .bytes.div_ceil(1_000_000)
)]
pub struct OutOfMemory {
    /// What it was for.
    pub what: &'static str,
    /// How much was asked for.
    pub bytes: usize,
}

/// Makes room for `len` values in all, so that the vector grows to that length without asking
/// the system again. Its contents stay.
///
/// # Errors
/// [`OutOfMemory`], and the vector is as it was.
pub fn reserve<T>(values: &mut Vec<T>, len: usize, what: &'static str) -> Result<(), OutOfMemory> {
    let more = len.saturating_sub(values.len());
    values
        .try_reserve_exact(more)
        .map_err(|_| OutOfMemory { what, bytes: len.saturating_mul(size_of::<T>()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error_that_says_what_for_and_how_much() {
        let mut values = vec![1u16, 2];
        let error = reserve(&mut values, 1 << 61, "the concept map").unwrap_err();
        assert!(error.to_string().starts_with("there is no memory for the concept map ("));
        assert_eq!((error.bytes, values.as_slice()), (1 << 62, [1, 2].as_slice()));
    }

    #[test]
    fn growth_up_to_the_reserved_length_stays_in_place() {
        let mut values = vec![1u8];
        reserve(&mut values, 1000, "a test").unwrap();
        let place = values.as_ptr();
        values.resize(1000, 0);
        assert_eq!(values.as_ptr(), place);
        reserve(&mut values, 10, "a test").unwrap();
        assert_eq!(values.len(), 1000);
    }
}
