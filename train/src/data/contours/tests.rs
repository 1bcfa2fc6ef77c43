use proptest::prelude::*;

use super::*;
use crate::data::matlab::tests::file;

/// A map of soft lines: one down the middle of strength `a`, one across of strength `b`.
fn cross(a: f32, b: f32) -> ContourMap {
    let strength = (0..60 * 40)
        .map(|i| {
            let (x, y) = ((i % 60) as f32 - 30.0, (i / 60) as f32 - 20.0);
            let line = |d: f32| (-d * d / 2.0).exp();
            (a * line(x)).max(b * line(y))
        })
        .collect();
    ContourMap::new(60, 40, strength).unwrap()
}

#[test]
fn lines_bound_segments_by_their_strength() {
    let ucm = cross(0.9, 0.4).ucm(4);
    let at = |threshold| ucm.segments(threshold, 0.01, 48);
    assert_eq!([0.2, 0.5, 0.95].map(|t| at(t).count()), [4, 2, 1]);
    let halves = at(0.5);
    for (i, &id) in halves.ids.iter().enumerate() {
        // The line itself may go to either side.
        match i % 60 {
            0..28 => assert_eq!(id, 0),
            33.. => assert_eq!(id, 1),
            _ => {}
        }
    }
}

#[test]
fn the_threshold_rises_until_few_enough_segments_are_left() {
    let ucm = cross(0.9, 0.4).ucm(4);
    assert_eq!(ucm.segments(0.1, 0.01, 4).count(), 4);
    assert!((2..=3).contains(&ucm.segments(0.1, 0.01, 3).count()));
    assert_eq!(ucm.segments(0.1, 0.01, 1).count(), 1);
}

#[test]
fn an_empty_map_is_one_segment_and_one_pixel_is_enough() {
    let ucm = ContourMap::new(9, 5, vec![0.0; 45]).unwrap().ucm(4);
    assert_eq!(ucm.segments(0.0, 0.01, 48).ids, vec![0; 45]);
    let ucm = ContourMap::new(1, 1, vec![1.0]).unwrap().ucm(1);
    assert_eq!((ucm.values(), ucm.segments(0.5, 0.01, 1).ids), (&[0.0; 9][..], vec![0]));
}

#[test]
fn values_out_of_range_are_refused() {
    assert!(ContourMap::new(2, 1, vec![0.0, 1.5]).is_none());
    assert!(ContourMap::new(2, 1, vec![0.0, f32::NAN]).is_none());
    assert!(ContourMap::new(2, 2, vec![0.0; 3]).is_none());
    assert!(UcmMap::new(1, 1, vec![-0.1; 9]).is_none());
    let params = ContourParams { threshold: 2.0, ..ContourParams::default() };
    assert!(params.validate().unwrap_err().to_string().contains("segments.contours.threshold"));
}

#[test]
fn files_are_understood_by_kind_and_size() {
    let dir = tempfile::tempdir().unwrap();
    let params = ContourParams::default();
    let map = cross(0.9, 0.2);
    let png = dir.path().join("a.png");
    let eight = map.strength.iter().map(|v| (v * 255.0) as u8).collect();
    image::GrayImage::from_raw(60, 40, eight).unwrap().save(&png).unwrap();
    let segments = segment(&png, (60, 40), &params).unwrap();
    assert_eq!((segments.width, segments.height, segments.count()), (60, 40, 2));
    // An image of twice the size, and one of other proportions.
    assert_eq!(segment(&png, (121, 80), &params).unwrap(), segments);
    let text = segment(&png, (60, 50), &params).unwrap_err().to_string();
    assert!(text.contains("60x40") && text.contains("121x101"), "{text}");

    let sixteen: Vec<u16> = map.strength.iter().map(|v| (v * 65535.0) as u16).collect();
    let sixteen = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(60, 40, sixteen).unwrap();
    sixteen.save(&png).unwrap();
    assert_eq!(segment(&png, (60, 40), &params).unwrap().count(), 2);

    // Two pixels apart at 0.8: a ready map by its size.
    let ucm = [0., 0., 0., 0., 0., 0., 0., 0.8, 0., 0., 0., 0., 0., 0., 0.];
    let mat = dir.path().join("a.mat");
    std::fs::write(&mat, file("any", 5, &ucm, true)).unwrap();
    assert_eq!(segment(&mat, (2, 1), &params).unwrap().ids, [0, 1]);
    std::fs::write(&mat, file("E", 2, &[0.5, 300.0], false)).unwrap();
    let text = segment(&mat, (2, 1), &params).unwrap_err().to_string();
    assert!(text.contains("outside 0..1"), "{text}");
    image::RgbImage::new(60, 40).save(&png).unwrap();
    assert!(segment(&png, (60, 40), &params).unwrap_err().to_string().contains("greyscale"));
}

/// Share of pairs of pixels (a fixed sample) that two partitions treat alike.
fn agreement(a: &SegmentMap, b: &SegmentMap) -> f64 {
    let n = a.ids.len();
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % n
    };
    let pairs = 20_000;
    let equal = (0..pairs)
        .filter(|_| {
            let (i, j) = (draw(), draw());
            (a.ids[i] == a.ids[j]) == (b.ids[i] == b.ids[j])
        })
        .count();
    equal as f64 / f64::from(pairs)
}

#[test]
fn the_contours_of_a_real_hierarchy_give_it_back() {
    let Some(dir) = conceptseg::testdata::shared("data/bsds500/ucm2") else { return };
    for name in ["100007", "101027", "103078"] {
        let matrix = read(&dir.join(format!("{name}.mat"))).unwrap();
        let (w, h) = (matrix.width / 2, matrix.height / 2);
        let ready = UcmMap::new(w, h, matrix.data.clone()).unwrap();
        // The contours at the size of the image, as the authors draw them.
        let at = |x: u32, y: u32| matrix.data[(y * matrix.width + x) as usize];
        let contours = (0..w * h).map(|i| at(2 * (i % w) + 2, 2 * (i / w) + 2)).collect();
        let again = ContourMap::new(w, h, contours).unwrap().ucm(4);
        // Strengths differ by the angles at which arcs are judged, so numbers of segments are
        // compared rather than thresholds.
        for most in [5, 10, 20] {
            let (a, b) = (ready.segments(0.0, 0.002, most), again.segments(0.0, 0.002, most));
            let alike = agreement(&a, &b);
            println!("{name} {most}: {} and {} segments, {alike}", a.count(), b.count());
            assert!(alike > 0.9, "{name} at {most}: {alike}");
        }
    }
}

/// Regions joined in plain terms: all boundaries are averaged anew before every step.
fn slow_levels(
    map: &UcmMap,
    labels: &[u32],
    strengths: &[Option<arcs::Strength>],
) -> Vec<(usize, f32)> {
    let grid = arcs::Grid { width: 6, height: 6 };
    let mut labels = labels.to_vec();
    let mut level = 0.0_f64;
    let mut out = Vec::new();
    loop {
        let mut means = std::collections::BTreeMap::<(u32, u32), (usize, [Vec<f32>; 2])>::new();
        for crack in grid.cracks() {
            let (a, b) = grid.sides(crack);
            if let Some(strength) = strengths[grid.slot(crack)]
                && labels[a] != labels[b]
            {
                let key = (labels[a].min(labels[b]), labels[a].max(labels[b]));
                let entry =
                    means.entry(key).or_insert_with(|| (grid.slot(crack), Default::default()));
                entry.1[usize::from(strength.long)].push(strength.value);
                entry.0 = entry.0.min(grid.slot(crack));
            }
        }
        let weakest = means
            .iter()
            .map(|(&key, (first, [short, long]))| {
                let counted = if long.is_empty() { short } else { long };
                let units: u64 = counted.iter().map(|&v| (f64::from(v) / ucm::UNIT) as u64).sum();
                (units as f64 * ucm::UNIT / counted.len() as f64, *first, key)
            })
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let Some((mean, _, (keep, gone))) = weakest else { return out };
        level = level.max(mean);
        for crack in grid.cracks() {
            let (a, b) = grid.sides(crack);
            if (labels[a].min(labels[b]), labels[a].max(labels[b])) == (keep, gone) {
                let (x, y) = if crack.vertical {
                    (2 * crack.x, 2 * crack.y + 1)
                } else {
                    (2 * crack.x + 1, 2 * crack.y)
                };
                out.push((y * 13 + x, level as f32));
            }
        }
        labels.iter_mut().filter(|label| **label == gone).for_each(|label| *label = keep);
        assert!(map.values().len() == 169);
    }
}

proptest! {
    #[test]
    fn regions_join_in_the_order_of_a_plain_search(
        values in prop::collection::vec(0.0_f32..=1.0, 36),
    ) {
        let map = ContourMap::new(6, 6, values).unwrap();
        let normals = orientation::normals(&map, 2);
        let basins = watershed::watershed(&map.strength, 6);
        let strengths = arcs::strengths(&map, &normals, &basins.labels);
        let ucm = ucm::build(6, 6, &basins, &strengths);
        for (index, level) in slow_levels(&ucm, &basins.labels, &strengths) {
            prop_assert!((ucm.values()[index] - level).abs() < 1e-6);
        }
    }

    /// A hierarchy: segments at a higher threshold are unions of those at a lower one, and
    /// both are the components of a plain search on the doubled grid.
    #[test]
    fn segments_nest_and_are_components_of_the_doubled_grid(
        values in prop::collection::vec(0.0_f32..=1.0, 8 * 7),
        thresholds in (0.0_f64..0.5, 0.0_f64..0.5),
    ) {
        let ucm = ContourMap::new(8, 7, values).unwrap().ucm(4);
        let fine = ucm.segments(thresholds.0, 0.01, 60_000);
        let coarse = ucm.segments(thresholds.0 + thresholds.1, 0.01, 60_000);
        let mut of = std::collections::HashMap::new();
        for (a, b) in fine.ids.iter().zip(&coarse.ids) {
            prop_assert_eq!(of.entry(a).or_insert(b), &b);
        }
        // Eight neighbours, the frame of the image apart.
        let mut component = vec![0_u16; 17 * 15];
        let mut count = 0;
        let inside = |i: usize| (1..16).contains(&(i % 17)) && (1..14).contains(&(i / 17));
        let open = |i: usize| inside(i) && f64::from(ucm.values()[i]) <= thresholds.0 + 1e-7;
        for start in 0..component.len() {
            if component[start] != 0 || !open(start) {
                continue;
            }
            count += 1;
            component[start] = count;
            let mut stack = vec![start];
            while let Some(i) = stack.pop() {
                for n in [i - 18, i - 17, i - 16, i - 1, i + 1, i + 16, i + 17, i + 18] {
                    if open(n) && component[n] == 0 {
                        component[n] = count;
                        stack.push(n);
                    }
                }
            }
        }
        for (i, &id) in fine.ids.iter().enumerate() {
            let (x, y) = (2 * (i % 8) + 1, 2 * (i / 8) + 1);
            prop_assert_eq!(component[y * 17 + x], id + 1);
        }
    }
}
