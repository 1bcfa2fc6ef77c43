//! One file for each subcommand.

pub mod export;
mod flow;
pub mod image_args;
pub mod learn;
pub mod linear_probe;
pub mod segments;
pub mod train;
