//! Reads what `PyTorch` wrote, see `golden/pretrained/pretrained.py`.

use std::io::{Cursor, Write as _};

use proptest::prelude::*;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/pretrained").join(name)
}

#[test]
fn every_number_type_and_layout_of_a_state_dictionary_is_read() {
    for name in ["state-dict.pth", "checkpoint.pth"] {
        let file = WeightFile::open(&golden(name)).unwrap();
        let numbers = |first: u8, last: u8| (first..=last).map(f32::from).collect::<Vec<_>>();
        let expected: [(&str, &[i64], Vec<f32>); 10] = [
            ("conv.weight", &[3, 2, 1, 1], numbers(0, 5)),
            ("bn.running_var", &[3], vec![0.5, 1.5, 2.5]),
            ("half", &[3], vec![1.0, -0.5, 65504.0]),
            ("bfloat16", &[3], vec![1.0, -0.5, 2_f32.powi(100)]),
            ("double", &[1, 2], vec![1.0, 1e-3]),
            (
                "transposed",
                &[4, 3],
                [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11].map(|n| n as f32).into(),
            ),
            ("part", &[4], numbers(4, 7)),
            ("parameter", &[1], vec![7.0]),
            ("scalar", &[], vec![3.0]),
            ("empty", &[0, 3], vec![]),
        ];
        for (tensor, shape, values) in expected {
            assert_eq!(file.shape(tensor).as_deref(), Some(shape), "{name} {tensor}");
            assert_eq!(file.values(tensor).unwrap(), values, "{name} {tensor}");
        }
        assert_eq!(file.names().count(), 14);
        assert_eq!(file.shape("absent"), None);
        let error = file.values("bn.num_batches_tracked").unwrap_err().to_string();
        assert!(error.contains("`bn.num_batches_tracked`") && error.contains("Long"), "{error}");
    }
}

#[test]
fn a_file_that_calls_functions_is_refused() {
    let error = WeightFile::open(&golden("code.pth")).unwrap_err();
    assert!(matches!(&error, WeightError::Format { .. }));
    assert!(error.to_string().contains("posix.getcwd"), "{error}");
}

#[test]
fn the_old_format_is_refused_with_the_way_out() {
    let error = WeightFile::open(&golden("legacy.pth")).unwrap_err();
    assert!(matches!(&error, WeightError::Legacy { .. }));
    assert!(error.to_string().contains("torch.save(torch.load("), "{error}");
}

#[test]
fn archives_of_other_programs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    let write = |members: &[(&str, &[u8])]| {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            archive.start_file(*name, SimpleFileOptions::default()).unwrap();
            archive.write_all(bytes).unwrap();
        }
        std::fs::write(&path, archive.finish().unwrap().into_inner()).unwrap();
        WeightFile::open(&path).unwrap_err().to_string()
    };
    assert!(write(&[("readme.txt", b"hello")]).contains("no data.pkl"));
    let error = write(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")]);
    assert!(error.contains("little-endian"), "{error}");
    let large = vec![b'.'; MAX_PICKLE as usize + 1];
    assert!(write(&[("a/data.pkl", &large)]).contains("at most"));
}

fn record(shape: &[u64], strides: &[u64], offset: u64) -> TensorRecord {
    TensorRecord {
        storage: "0".to_owned(),
        kind: NumberType::F32,
        length: 0,
        offset,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    }
}

#[test]
fn a_tensor_must_lie_in_its_storage() {
    assert!(check(&record(&[2, 3], &[3, 1], 0), 24).is_ok());
    assert!(check(&record(&[2, 3], &[3, 1], 1), 24).is_err());
    assert!(check(&record(&[2, 3], &[3, 1], 0), 23).is_err());
    assert!(check(&record(&[2, 3], &[3], 0), 24).is_err());
    assert!(check(&record(&[0], &[1], 0), 0).is_ok());
    assert!(check(&record(&[0], &[1], 9), 0).is_err());
    assert!(check(&record(&[u64::MAX, u64::MAX], &[0, 0], 0), 24).is_err());
    assert!(check(&record(&[2], &[u64::MAX], 1), 24).is_err());
}

proptest! {
    #[test]
    fn a_damaged_file_is_never_read_beyond_its_end(
        place in 0_usize..4917,
        junk in prop::collection::vec(any::<u8>(), 1..12),
    ) {
        let mut bytes = std::fs::read(golden("state-dict.pth")).unwrap();
        for (slot, byte) in bytes[place..].iter_mut().zip(junk) {
            *slot = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pth");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = WeightFile::open(&path) {
            for name in file.names() {
                let count = file.shape(name).unwrap().iter().try_fold(1_i64, |n, &s| n.checked_mul(s));
                if count.is_some_and(|n| n < 1 << 16) {
                    let _ = file.values(name);
                }
            }
        }
    }
}
