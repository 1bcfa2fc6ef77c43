//! The `conceptseg` command.
fn main() {}
