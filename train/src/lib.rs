//! Learns visual concepts.

pub mod data;
pub mod export;
pub mod losses;
pub mod network;
