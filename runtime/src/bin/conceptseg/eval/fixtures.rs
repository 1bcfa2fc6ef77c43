//! What the tests of several evaluations share.

use std::path::Path;

use conceptseg::bundle::{BundleWriter, Codebook};

/// Writes a bundle of stride 8 with 32 dimensions and 6 concepts around the smallest network.
pub fn write_tiny_bundle(folder: &Path) {
    let vectors = (0..6 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
    let codebook = Codebook::new(6, 32, vectors).unwrap();
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
    BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        .write(folder, &onnx, &codebook)
        .unwrap();
}
