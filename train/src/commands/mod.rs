//! One file for each subcommand.

pub mod export;
pub mod image_args;
pub mod linear_probe;
pub mod segments;
pub mod train;
