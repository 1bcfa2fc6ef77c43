use std::collections::HashSet;
use std::path::Path;

use image::{Rgb, RgbImage};

use super::*;
use crate::backend::{BackendKind, BackendOptions};
use crate::bundle::{BundleWriter, Codebook};
use crate::datasets::segmentation::{Classes, SegmentationDataset};
use crate::evaluate::concepts::{Segment, records, units};
use crate::evaluate::run::{Inputs, Run};
use crate::labels::LabelMap;

const CONCEPTS: usize = 6;

/// The tiny bundle, of whose concepts one has a name that would break a careless page.
fn model(folder: &Path) -> Arc<Model> {
    let vectors = (0..CONCEPTS * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
    let codebook = Codebook::new(CONCEPTS, 32, vectors).unwrap();
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
    BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        .write(folder, &onnx, &codebook)
        .unwrap();
    let names = "[concept.0]\nname = \"</script><b>\"\nmark = \"alert\"\n";
    std::fs::write(folder.join("concepts.toml"), names).unwrap();
    Model::open(folder, &BackendOptions::new(BackendKind::Rten, 1)).unwrap()
}

/// Eight images of two colours each, with a class for each half.
fn images(folder: &Path) -> ImageSet {
    let (pictures, labels) = (folder.join("images"), folder.join("labels"));
    std::fs::create_dir_all(&pictures).unwrap();
    std::fs::create_dir_all(&labels).unwrap();
    for i in 0..8u8 {
        let colour = |x: u32| if x < 48 { [250, 20 * i, 0] } else { [0, 200, 30 * i] };
        let picture = RgbImage::from_fn(96, 64, |x, _| Rgb(colour(x)));
        picture.save(pictures.join(format!("{i}.png"))).unwrap();
        let data = (0..64).flat_map(|_| (0..96).map(|x| u8::from(x >= 48))).collect();
        let map = LabelMap { width: 96, height: 64, data };
        map.write_png(&labels.join(format!("{i}.png"))).unwrap();
    }
    let classes = Classes::new(&["left", "right"], 255);
    let set = SegmentationDataset::open_folders(&pictures, &labels, classes, None).unwrap();
    ImageSet::labelled(set).unwrap()
}

fn settings(images: &ImageSet) -> AtlasSettings {
    AtlasSettings {
        short_side: 64,
        segmentation: SegmentationConfig { grid: 3, iterations: 5 },
        summary: SummarySettings {
            classes: images.classes().map(Classes::count),
            min_images: 1,
            samples: 3,
            ..SummarySettings::default()
        },
        nearest: 4,
    }
}

fn built(folder: &Path) -> (Atlas, Vec<ImageConcepts>) {
    let (model, images) = (model(&folder.join("bundle")), images(folder));
    let settings = settings(&images);
    let run = Run::in_memory(Inputs::new("atlas", serde_json::json!({})));
    let stage = run.stage("atlas", &units(&images)).unwrap();
    records(&model, &images, 64, &settings.segmentation, &stage, &|| ()).unwrap();
    let records = stage.finish().unwrap();
    let atlas = Atlas::build(&model, &images, "street", &records, &settings, &|| ()).unwrap();
    (atlas, records)
}

#[test]
fn the_figures_are_those_of_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let (Atlas { data, strips, purity, .. }, records) = built(dir.path());
    assert_eq!((data.images, data.concepts.len(), data.classes.len()), (8, CONCEPTS, 2));
    assert!(data.used > 0 && purity.is_some() && data.purity.is_some());
    for (id, concept) in data.concepts.iter().enumerate() {
        let own: Vec<&Segment> = records
            .iter()
            .flat_map(|record| &record.segments)
            .filter(|segment| usize::from(segment.concept) == id)
            .collect();
        assert_eq!(concept.segments, own.len() as u64);
        let binned: u32 = concept.histogram.iter().sum();
        assert_eq!(u64::from(binned), concept.segments);
        assert_eq!(strips.strips[id].is_empty(), own.is_empty());
        let labelled: u64 = concept.classes.iter().map(|(_, n)| n).sum();
        assert_eq!(labelled, concept.segments);
        // The nearest are of different images, the best one first.
        let nearest = &concept.shown[..concept.nearest];
        assert!(nearest.len() <= 4 && concept.shown.len() <= nearest.len() + 3);
        assert!(nearest.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        let different: HashSet<&String> = nearest.iter().map(|(image, _)| image).collect();
        assert_eq!(different.len(), nearest.len());
        let best = own.iter().map(|segment| segment.similarity).fold(-1.0, f32::max);
        assert!(nearest.first().is_none_or(|(_, s)| (s - best).abs() < 1e-3));
        assert_eq!(concept.alike.len(), CONCEPTS - 1);
    }
    let pair = |a: usize, b: usize| {
        data.concepts[a].together.iter().find(|(id, ..)| usize::from(*id) == b).map(|e| (e.1, e.2))
    };
    for a in 0..CONCEPTS {
        for b in 0..CONCEPTS {
            assert_eq!(pair(a, b), pair(b, a));
        }
    }
}

#[test]
fn the_page_loads_nothing_and_names_stay_text() {
    let dir = tempfile::tempdir().unwrap();
    let (atlas, _) = built(dir.path());
    let text = page::html(&atlas);
    assert_eq!(page::codebook_of(&text), Some(&*atlas.codebook));
    assert!(page::codebook_of("<p>no atlas</p>").is_none());
    // The name of the SVG language is no address that is loaded.
    let addresses = text.replace("http://www.w3.org/2000/svg", "");
    assert!(!addresses.contains("http://") && !addresses.contains("https://"));
    assert!(!text.contains("</script><b>") && text.contains("\\u003c/script>\\u003cb>"));
    assert!(text.contains("8 images of street"), "the heading");
    assert!(text.contains("alert") && text.contains("<svg"));
    assert_eq!(text.matches("<script type=\"module\">").count(), 1);
}
