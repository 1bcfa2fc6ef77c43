//! Learns visual concepts.
