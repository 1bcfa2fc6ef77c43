use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The image of `golden/felzenszwalb.py`: coloured discs on a ramp with noise.
fn generated_image() -> RgbImage {
    let (width, height) = (160_u32, 120_u32);
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([0_u32, 1, 2].map(|c| {
            let mut value = 60 + x * (c + 1) / 4 + y * (3 - c) / 5;
            for i in 0..9 {
                let (cx, cy, r) = (i * 53 % width, i * 37 % height, 9 + i * 5 % 17);
                if x.abs_diff(cx).pow(2) + y.abs_diff(cy).pow(2) < r * r {
                    value = i * 71 % 200 + c * 20;
                }
            }
            let noise = ((y * width + x) * 3 + c + 1).wrapping_mul(2_654_435_761) >> 28;
            (value + noise).min(255) as u8
        }))
    })
}

#[test]
fn the_partition_equals_that_of_scikit_image() {
    for (scale, min_size) in [(300.0, 60), (60.0, 25)] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("golden/felzenszwalb-{scale:.0}-{min_size}.png"));
        let golden = image::open(golden).unwrap().into_luma8();
        let parts = partition(&generated_image(), scale, 0.8, min_size).unwrap();
        let golden: Vec<u32> = golden.as_raw().iter().map(|&label| u32::from(label)).collect();
        assert!(parts.labels == golden, "scale {scale}, min size {min_size}");
    }
}

/// Smoothing and graph in plain terms: two-dimensional kernel sums, all edges sorted at once,
/// parts as lists of labels.
fn slow_partition(image: &RgbImage, scale: f64, min_size: usize) -> Vec<u32> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let smooth = smoothed(image, 0.8);
    let mut edges = Vec::new();
    for (direction, (dx, dy)) in [(1, 0), (0, 1), (1, 1), (1, -1)].into_iter().enumerate() {
        for y in 0..h as isize {
            for x in 0..w as isize {
                let (u, v) = (x + dx, y + dy);
                if (0..w as isize).contains(&u) && (0..h as isize).contains(&v) {
                    let (a, b) = ((y * w as isize + x) as usize, (v * w as isize + u) as usize);
                    edges.push((distance(&smooth, a, b), direction, a, b));
                }
            }
        }
    }
    // The order among equal weights: by direction, then by the pair's upper row.
    edges.sort_by(|p, q| p.0.total_cmp(&q.0).then(p.1.cmp(&q.1)).then(p.2.cmp(&q.2)));
    let mut labels: Vec<usize> = (0..w * h).collect();
    let mut internal = vec![0.0; w * h];
    let size = |labels: &[usize], label| labels.iter().filter(|&&l| l == label).count();
    let join = |labels: &mut Vec<usize>, from: usize, to: usize| {
        labels.iter_mut().filter(|l| **l == from).for_each(|l| *l = to);
    };
    for small_only in [false, true] {
        for &(weight, _, a, b) in &edges {
            let (a, b) = (labels[a], labels[b]);
            if a == b {
                continue;
            }
            let (size_a, size_b) = (size(&labels, a), size(&labels, b));
            let limit = |label: usize, size: usize| {
                f64::from((internal[label] + scale / 255.0 / size as f64) as f32)
            };
            let joins = if small_only {
                size_a < min_size || size_b < min_size
            } else {
                weight < limit(a, size_a).min(limit(b, size_b))
            };
            if joins {
                join(&mut labels, a, b);
                internal[b] = weight;
            }
        }
    }
    Partition::canonical(labels.into_iter().map(|label| label as u32)).labels
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_partition_equals_a_plain_one(
        width in 1_u32..14,
        height in 1_u32..14,
        levels in prop::collection::vec(0_u8..4, 169),
        scale in 0.0_f64..400.0,
        min_size in 0_u32..12,
    ) {
        let image = RgbImage::from_fn(width, height, |x, y| {
            let level = levels[(y * 13 + x) as usize];
            image::Rgb([level * 60, level * 3, 200 - level * 50])
        });
        let fast = partition(&image, scale, 0.8, min_size).unwrap();
        prop_assert_eq!(fast.labels, slow_partition(&image, scale, min_size as usize));
    }

    #[test]
    fn mirrored_indices_walk_to_and_fro(index in -100_isize..100, length in 1_usize..9) {
        let line: Vec<usize> = (0..length).chain((0..length).rev()).collect();
        let expected = line[index.rem_euclid(2 * length as isize) as usize];
        prop_assert_eq!(mirrored(index, length), expected);
    }

    #[test]
    fn buckets_keep_the_order(a in 0.0_f64..1.75, b in 0.0_f64..1.75) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(bucket(low.to_bits()) <= bucket(high.to_bits()));
        prop_assert!(bucket((low * 1e-6).to_bits()) <= bucket(high.to_bits()));
    }
}

#[test]
fn segments_are_few_and_large_enough() {
    let params = FelzenszwalbParams {
        reference_area: 0,
        min_size: 40,
        max_segments: 6,
        ..Default::default()
    };
    let map = segment(&generated_image(), &params).unwrap();
    assert_eq!((map.width, map.height, map.ids.len()), (160, 120, 160 * 120));
    let mut sizes = [0; 6];
    for &id in &map.ids {
        sizes[usize::from(id)] += 1;
    }
    assert!(sizes.iter().all(|&size| size >= 40), "{sizes:?}");
}

#[test]
fn the_minimum_size_follows_the_area() {
    let params = FelzenszwalbParams::default();
    assert_eq!(params.min_size_at(500 * 375), 400);
    assert_eq!(params.min_size_at(250 * 188), 100);
    let fixed = FelzenszwalbParams { reference_area: 0, ..params };
    assert_eq!(fixed.min_size_at(100), 400);
}

#[test]
fn the_smallest_images_are_one_segment() {
    for (width, height) in [(1, 1), (1, 7), (7, 1)] {
        let image = RgbImage::from_pixel(width, height, image::Rgb([9, 8, 7]));
        let map = segment(&image, &FelzenszwalbParams::default()).unwrap();
        assert_eq!(map.ids, vec![0; (width * height) as usize]);
    }
    let none = segment(&RgbImage::new(0, 0), &FelzenszwalbParams::default()).unwrap();
    assert!(none.ids.is_empty());
}

#[test]
fn parameters_out_of_range_are_refused() {
    let image = RgbImage::new(4, 4);
    for params in [
        FelzenszwalbParams { scale: f64::NAN, ..Default::default() },
        FelzenszwalbParams { sigma: -1.0, ..Default::default() },
        FelzenszwalbParams { max_segments: 0, ..Default::default() },
        FelzenszwalbParams { max_segments: VOID, ..Default::default() },
    ] {
        let error = segment(&image, &params).unwrap_err();
        assert!(matches!(error, DataError::Parameter { .. }));
    }
}
