use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::*;

fn small(seed: u32) -> Scene {
    Scene::new(SceneConfig { width: 214, height: 120, frames: 60, seed }).unwrap()
}

#[test]
fn a_frame_is_a_pure_function_of_configuration_and_index() {
    let (a, b) = (small(3), small(3));
    let later = a.frame(17);
    a.frame(2);
    assert_eq!(later, b.frame(17));
    assert_ne!(later, b.frame(18));
    assert_ne!(later, small(4).frame(17));
}

#[test]
fn the_length_of_a_scene_does_not_change_its_frames() {
    let config = SceneConfig { width: 96, height: 64, frames: 5, seed: 1 };
    let long = SceneConfig { frames: 500, ..config };
    assert_eq!(Scene::new(config).unwrap().frame(4), Scene::new(long).unwrap().frame(4));
}

#[test]
fn pixels_are_the_same_bits_on_every_machine() {
    let scene = small(1);
    let mut hash = Sha256::new();
    for index in [0, 1, 30, 59] {
        let frame = scene.frame(index);
        hash.update(frame.image.as_raw());
        hash.update(&frame.labels.data);
    }
    assert_eq!(hash.finalize()[..8], [0x9a, 0x69, 0x42, 0x47, 0x87, 0x5e, 0x0a, 0x26]);
}

#[test]
fn all_objects_are_whole_and_apart_in_the_first_frame() {
    for seed in 0..40 {
        for (width, height) in [(214, 120), (120, 120), (90, 160)] {
            let scene = Scene::new(SceneConfig { width, height, frames: 1, seed }).unwrap();
            let labels = scene.frame(0).labels;
            assert_eq!(labels.instance_ids(), [1, 2, 3, 4], "seed {seed}, {width}x{height}");
            let (w, h) = (width as usize, height as usize);
            let at = |x: usize, y: usize| labels.data[y * w + x];
            let border = (0..w).flat_map(|x| [(x, 0), (x, h - 1)]);
            let border = border.chain((0..h).flat_map(|y| [(0, y), (w - 1, y)]));
            assert!(border.into_iter().all(|(x, y)| at(x, y) == 0), "seed {seed} is cut off");
            let touching = (0..h).flat_map(|y| (1..w).map(move |x| (x, y))).any(|(x, y)| {
                let (a, b) = (at(x - 1, y), at(x, y));
                a != 0 && b != 0 && a != b
            });
            assert!(!touching, "objects of seed {seed} touch");
        }
    }
}

#[test]
fn objects_occlude_one_another_later_and_none_leaves_the_frame() {
    let mut scenes_with_contact = 0;
    for seed in 0..10 {
        let scene = small(seed);
        let mut contact = false;
        for index in (0..120).step_by(10) {
            let labels = scene.frame(index).labels;
            contact |= labels.data.windows(2).any(|p| p[0] != 0 && p[1] != 0 && p[0] != p[1]);
            for pose in scene.objects.iter().map(|o| o.path.pose(index)) {
                let aspect = 214.0 / 120.0;
                assert!((0.05..aspect - 0.05).contains(&pose.centre[0]), "seed {seed}");
                assert!((0.05..0.95).contains(&pose.centre[1]), "seed {seed}");
            }
        }
        scenes_with_contact += usize::from(contact);
    }
    assert_eq!(scenes_with_contact, 10);
}

#[test]
fn labels_agree_with_the_picture() {
    // Inside an object, away from its edge, the colour is that of the object's surface under
    // the light of the frame; so the mask is that of the picture and not of another frame.
    let scene = small(2);
    let frame = scene.frame(25);
    let light = scene.light.at(25);
    let poses: Vec<Pose> = scene.objects.iter().map(|o| o.path.pose(25)).collect();
    let (w, pixel) = (214usize, 1.0 / 120.0);
    let mut checked = BTreeSet::new();
    for (x, y) in (1..119).flat_map(|y| (1..213usize).map(move |x| (x, y))) {
        let at = y * w + x;
        let id = frame.labels.data[at];
        let neighbours =
            [at - 1, at + 1, at - w, at + w, at - w - 1, at + w + 1, at - w + 1, at + w - 1];
        if id == 0 || neighbours.iter().any(|n| frame.labels.data[*n] != id) {
            continue;
        }
        let (object, pose) =
            scene.objects.iter().zip(&poses).find(|(object, _)| object.id == id).unwrap();
        let (u, v) = ((x as f32 + 0.5) * pixel, (y as f32 + 0.5) * pixel);
        let [lx, ly] = pose.local(u, v);
        let color = object.surface.color(lx, ly);
        let got = frame.image.get_pixel(x as u32, y as u32).0;
        for c in 0..3 {
            let expected = (color[c] * light.gain[c] * light.shade(u, v)).min(1.0) * 255.0;
            assert!((f32::from(got[c]) - expected).abs() <= 3.1, "object {id} at {x},{y}");
        }
        checked.insert(id);
    }
    assert!(checked.len() >= 3, "{checked:?}");
}

#[test]
fn impossible_configurations_are_refused() {
    let refused =
        |width, height, frames| Scene::new(SceneConfig { width, height, frames, seed: 0 }).err();
    assert_eq!(refused(10, 480, 5), Some(SceneError::Size { width: 10, height: 480 }));
    assert_eq!(refused(480, 5000, 5), Some(SceneError::Size { width: 480, height: 5000 }));
    assert_eq!(refused(480, 480, 0), Some(SceneError::Frames { frames: 0 }));
    assert_eq!(refused(480, 480, 100_001), Some(SceneError::Frames { frames: 100_001 }));
    assert_eq!(refused(MIN_SIDE, MAX_SIDE, 1), None);
}
