//! conceptseg-train
fn main() {}
