//! End-to-end tests of ConceptSeg: they drive the real binaries and `gst-launch-1.0`.
