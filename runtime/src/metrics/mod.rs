//! Figures that say how good a result is, computed as the tools of the field compute them.
//!
//! [`davis`] scores carried masks with the region (`J`) and boundary (`F`) measures of the
//! DAVIS benchmark. [`bitmask`], [`counts`] and [`statistics`] are its parts: masks of one
//! bit per pixel, what is counted in one frame, and what a series of frames comes to. [`miou`] compares classes, [`purity`] tells how far the
//! segments of a concept show one class, and [`files`] does both for PNGs that any tool wrote.

pub mod bitmask;
pub mod counts;
pub mod davis;
pub mod files;
pub mod miou;
pub mod purity;
pub mod statistics;
