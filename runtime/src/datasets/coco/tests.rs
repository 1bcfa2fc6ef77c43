use std::fs;
use std::io::{BufWriter, Write as _};

use serde_json::{Value, json};

use super::*;
use crate::labels::LabelMap;

/// Every category of the made-up files: two classes, one that has none.
fn categories() -> Value {
    json!([
        { "id": 1, "name": "person", "supercategory": "person" },
        { "id": 17, "name": "cat", "isthing": 1 },
        { "id": 84, "name": "book" },
    ])
}

fn images() -> Value {
    json!([
        { "id": 7, "file_name": "seven.png", "width": 4, "height": 3, "license": 1 },
        { "id": 3, "file_name": "three.png", "width": 2, "height": 2, "coco_url": "http://x" },
    ])
}

/// A square of whole pixels.
fn square(x: u32, y: u32, side: u32) -> Value {
    let (x1, y1) = (x + side, y + side);
    json!([[x, y, x1, y, x1, y1, x, y1]])
}

fn instances() -> Value {
    json!({
        "info": { "year": 2017, "deep": [[{}, null, 1.5e3]] },
        "annotations": [
            { "id": 10, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 2, 2],
              "segmentation": square(0, 0, 2) },
            { "id": 11, "image_id": 7, "category_id": 17, "iscrowd": 0,
              "segmentation": square(1, 1, 2) },
            { "id": 12, "image_id": 7, "category_id": 1, "iscrowd": 1,
              "segmentation": { "size": [3, 4], "counts": [9, 1, 2] } },
            { "id": 13, "image_id": 3, "category_id": 84, "iscrowd": 0,
              "segmentation": square(0, 0, 2) },
            { "id": 14, "image_id": 3, "category_id": 17,
              "segmentation": { "size": [2, 2], "counts": "22" } },
        ],
        "images": images(),
        "categories": categories(),
    })
}

fn panoptic() -> Value {
    json!({
        "images": images(),
        "annotations": [
            { "image_id": 3, "file_name": "three.png", "segments_info": [
                { "id": 70000, "category_id": 17, "iscrowd": 0, "area": 2, "bbox": [0, 0, 1, 2] },
                { "id": 300, "category_id": 84, "iscrowd": 0, "area": 1 },
            ] },
            { "image_id": 7, "file_name": "seven.png", "segments_info": [
                { "id": 2, "category_id": 1, "iscrowd": 1, "area": 1 },
                { "id": 1, "category_id": 1, "iscrowd": 0, "area": 11 },
            ] },
        ],
        "categories": categories(),
    })
}

/// Both files, their images and masks, as ROOT of a validation split.
struct Fixture {
    root: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { root: tempfile::tempdir().unwrap() };
        let root = fixture.root.path();
        fs::create_dir_all(root.join("annotations/panoptic_val2017")).unwrap();
        fs::create_dir(root.join("val2017")).unwrap();
        image::RgbImage::new(4, 3).save(root.join("val2017/seven.png")).unwrap();
        image::RgbImage::new(2, 2).save(root.join("val2017/three.png")).unwrap();
        let mut ids = [1; 12];
        ids[5] = 2;
        fixture.write_mask("seven.png", 4, 3, &ids);
        fixture.write_mask("three.png", 2, 2, &[70000, 300, 70000, 0]);
        fixture.write("instances", &instances());
        fixture.write("panoptic", &panoptic());
        fixture
    }

    fn write(&self, kind: &str, file: &Value) {
        let path = format!("annotations/{kind}_val2017.json");
        fs::write(self.root.path().join(path), file.to_string()).unwrap();
    }

    fn write_mask(&self, name: &str, width: u32, height: u32, ids: &[u32]) {
        let mut pixels = ids.iter();
        image::RgbImage::from_fn(width, height, |_, _| {
            let [r, g, b, _] = pixels.next().unwrap().to_le_bytes();
            image::Rgb([r, g, b])
        })
        .save(self.root.path().join("annotations/panoptic_val2017").join(name))
        .unwrap();
    }

    fn source(&self, panoptic: bool) -> Source {
        Source::standard(self.root.path(), Split::Val, panoptic)
    }

    fn open(&self, panoptic: bool) -> Result<SegmentationDataset, SegmentationError> {
        open(&self.source(panoptic), None, None).map(|(set, _)| set)
    }

    /// The error after a change to the instance file.
    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let (fixture, mut file) = (Self::new(), instances());
        change(&mut file);
        fixture.write("instances", &file);
        fixture.open(false).unwrap_err().to_string()
    }

    fn refused_panoptic(change: impl FnOnce(&mut Value)) -> String {
        let (fixture, mut file) = (Self::new(), panoptic());
        change(&mut file);
        fixture.write("panoptic", &file);
        fixture.open(true).unwrap_err().to_string()
    }
}

fn labels(set: &SegmentationDataset) -> Vec<Vec<u8>> {
    set.images.iter().map(|one| one.read_labels().unwrap().data).collect()
}

#[test]
fn instances_become_classes_and_what_two_cover_becomes_void() {
    let set = Fixture::new().open(false).unwrap();
    assert_eq!((set.classes.count(), set.classes.void), (21, 255));
    assert_eq!(set.classes.names[15], "person");
    let names: Vec<&str> = set.images.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["seven", "three"], "the order of the file");
    let seven = [15, 15, 0, 255, 15, 255, 8, 0, 0, 8, 8, 0];
    assert_eq!(labels(&set), [seven.to_vec(), vec![0, 8, 0, 8]]);
    let source = &set.images[0].labels;
    assert!(source.path().ends_with("instances_val2017.json"));
    assert_eq!((source.own_file(), source.shared_file()), (None, Some(source.path())));
}

#[test]
fn two_instances_of_one_class_are_void_where_they_overlap() {
    let (fixture, mut file) = (Fixture::new(), instances());
    file["annotations"][1]["category_id"] = 1.into();
    fixture.write("instances", &file);
    assert_eq!(labels(&fixture.open(false).unwrap())[0][5], 255);
}

#[test]
fn segments_become_classes_and_crowds_and_pixels_of_no_segment_become_void() {
    let fixture = Fixture::new();
    let set = fixture.open(true).unwrap();
    let mut seven = vec![15; 12];
    seven[5] = 255;
    assert_eq!(labels(&set), [seven, vec![8, 0, 8, 255]]);
    let source = &set.images[0].labels;
    assert!(source.own_file().unwrap().ends_with("panoptic_val2017/seven.png"));
    assert!(source.shared_file().unwrap().ends_with("panoptic_val2017.json"));
}

#[test]
fn images_with_few_labelled_pixels_are_left_out_before_the_limit_applies() {
    let fixture = Fixture::new();
    for (panoptic, in_seven, in_three) in [(false, 6, 2), (true, 11, 2)] {
        let open = |pixels, limit| open(&fixture.source(panoptic), Some(pixels), limit);
        assert_eq!(open(in_three - 1, None).unwrap().1, 0);
        let (set, dropped) = open(in_three, Some(1)).unwrap();
        assert_eq!((&*set.images[0].name, set.images.len(), dropped), ("seven", 1, 1));
        assert!(open(in_seven - 1, None).is_ok());
        let text = open(in_seven, None).unwrap_err().to_string();
        assert!(text.contains("none of the 2 images") && text.contains("more than"), "{text}");
    }
}

#[test]
fn a_limit_spreads_over_the_list_and_other_images_are_not_needed() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.root.path().join("val2017/seven.png")).unwrap();
    let (set, _) = open(&fixture.source(false), None, Some(1)).unwrap();
    assert_eq!(set.images[0].name, "three");
    let text = fixture.open(false).unwrap_err().to_string();
    assert!(text.contains("val2017/seven.png is missing") && text.contains("instances_val2017"));
}

#[test]
fn masks_equal_those_of_pycocotools() {
    use super::instances::Shape;
    use super::json::RawMask;
    use crate::rle::text_runs;

    #[derive(serde::Deserialize)]
    struct Case {
        kind: String,
        size: [u32; 2],
        segmentation: RawMask,
        mask: String,
    }
    // A file of more cases, from the script beside it, may be tried too.
    let path = std::env::var("COCO_MASKS").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/coco_masks.json").to_owned()
    });
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(cases.len() >= 700);
    for (place, case) in cases.into_iter().enumerate() {
        let [h, w] = case.size;
        let runs = Shape::Runs(text_runs(&case.mask, case.size).unwrap().into());
        let shape = Shape::new(case.segmentation, (w, h)).unwrap();
        assert_eq!(shape.spans(w, h), runs.spans(w, h), "case {place}, {}", case.kind);
    }
}

#[test]
fn a_wrong_file_is_named() {
    let fixture = Fixture::new();
    let path = fixture.root.path().join("annotations/instances_val2017.json");
    let refused = |text: &str| {
        fs::write(&path, text).unwrap();
        fixture.open(false).unwrap_err().to_string()
    };
    for (text, part) in [
        ("{", "EOF"),
        ("[1]", "expected an object with images"),
        ("{\"images\": [{\"id\": -1}], \"categories\": []}", "image number 0: invalid value"),
        ("{\"images\": 7, \"categories\": []}", "expected a list with an entry for each image"),
        ("{\"images\": [], \"categories\": []} x", "trailing characters"),
    ] {
        let message = refused(text);
        assert!(message.contains("instances_val2017.json is not a file of COCO"), "{message}");
        assert!(message.contains(part) && message.contains("line 1 column"), "{message}");
    }
    let message = refused("{\"images\": []}");
    assert!(message.contains("0 lists \"categories\""), "{message}");
    let message = refused("{\"images\": [], \"categories\": [], \"images\": []}");
    assert!(message.contains("2 lists \"images\""), "{message}");
    let message = refused("{\"images\": [], \"categories\": []}");
    assert!(message.contains("names no image"), "{message}");
    let message = refused(&panoptic().to_string());
    assert!(message.contains("not a file of COCO instances"), "{message}");
    assert!(message.contains("annotation number 0: missing field"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = fixture.open(false).unwrap_err().to_string();
    assert!(message.contains("annotations/instances_val2017.json is missing"), "{message}");
    fixture.write("instances", &instances());
    fs::remove_dir_all(fixture.root.path().join("val2017")).unwrap();
    let message = fixture.open(false).unwrap_err().to_string();
    assert!(message.contains("val2017 is missing; COCO 2017 has"), "{message}");
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_annotation_or_image() {
    let (image, annotation) = (|i: usize| format!("/images/{i}"), |i| format!("/annotations/{i}"));
    let polygon = |values: Value| json!([values]);
    let runs = |size: Value, counts: Value| json!({ "size": size, "counts": counts });
    for (place, key, value, part) in [
        (image(1), "id", json!(7), "two images with the id 7"),
        (image(1), "width", json!(0), "image 3 is 0x2; sides of 1 to 16384"),
        (image(1), "height", json!(16385), "image 3 is 2x16385"),
        (image(1), "file_name", json!("../a.png"), "image 3 names the file \"../a.png\""),
        (image(1), "file_name", json!("/a.png"), "image 3 names the file \"/a.png\""),
        (image(1), "file_name", json!("a.png"), "val2017/a.png is missing"),
        (
            "/categories/1".into(),
            "name",
            json!("dog"),
            "category 17 \"dog\", but in COCO it is \"cat\"",
        ),
        (annotation(1), "image_id", json!(8), "annotation 11 is for image 8, which"),
        (annotation(3), "category_id", json!(2), "annotation 13 has the category 2, which"),
        (
            annotation(0),
            "segmentation",
            polygon(json!([1, 1, 2, 2])),
            "annotation 10 has a polygon of 4",
        ),
        (
            annotation(0),
            "segmentation",
            polygon(json!([1, 1, 2, 2, 3, 3, 4])),
            "polygon of 7 numbers",
        ),
        (annotation(0), "segmentation", polygon(json!([1, 1, 2, 2, 3, -4e4])), "coordinate -40000"),
        (annotation(0), "segmentation", json!(5), "annotation number 0: invalid type: integer `5`"),
        (
            annotation(0),
            "segmentation",
            polygon(json!([1, "2"])),
            "annotation number 0: invalid type",
        ),
        (annotation(0), "segmentation", json!({ "size": [3, 4] }), "missing field `counts`"),
        (
            annotation(2),
            "segmentation",
            runs(json!([4, 3]), json!([12])),
            "annotation 12 has a mask of 3x4, but its image is 4x3",
        ),
        (annotation(2), "segmentation", runs(json!([3, 4]), json!([11])), "cover 11 pixels"),
        (
            annotation(2),
            "segmentation",
            runs(json!([3, 4]), json!([5, -1, 8])),
            "annotation 12 has a mask that cannot be read",
        ),
        (
            annotation(2),
            "segmentation",
            runs(json!([3, 4]), json!("\u{7f}")),
            "damaged at character 0",
        ),
    ] {
        let message = Fixture::refused(|file| file.pointer_mut(&place).unwrap()[key] = value);
        assert!(message.contains(part), "{message}");
    }
    let message = Fixture::refused(|file| {
        let annotation = file["annotations"][0].as_object_mut().unwrap();
        annotation.remove("id");
        annotation["image_id"] = 8.into();
    });
    assert!(message.contains("annotation number 0 is for image 8"), "{message}");
    let fixture = Fixture::new();
    image::RgbImage::new(5, 3).save(fixture.root.path().join("val2017/seven.png")).unwrap();
    let message = fixture.open(false).unwrap_err().to_string();
    assert!(message.contains("instances_val2017.json are 4x3 but their image"), "{message}");
    assert!(message.contains("seven.png is 5x3"), "{message}");
}

#[test]
fn what_is_wrong_with_segments_is_named() {
    let (entry, segment) = ("/annotations/0", "/annotations/0/segments_info/0");
    for (place, key, value, part) in [
        (entry, "file_name", json!("../x.png"), "of image 3 names the file \"../x.png\""),
        (entry, "file_name", json!("x.png"), "panoptic_val2017/x.png is missing"),
        (entry, "image_id", json!(7), "the annotation of image 7 is there twice"),
        (entry, "image_id", json!(4), "is for image 4, which"),
        (segment, "id", json!(0), "has a segment with the id 0"),
        (segment, "id", json!(300), "two segments with the id 300"),
        (segment, "id", json!(301), "holds the segment 70000 at column 0, row 0"),
        (segment, "category_id", json!(5), "has the category 5, which the file does not list"),
    ] {
        let message = Fixture::refused_panoptic(|file| {
            file.pointer_mut(place).unwrap()[key] = value;
        });
        assert!(message.contains(part), "{message}");
    }
    let message = Fixture::refused_panoptic(|file| {
        file["annotations"].as_array_mut().unwrap().pop();
    });
    assert!(message.contains("image 7 has no annotation"), "{message}");
    let fixture = Fixture::new();
    fixture.write_mask("three.png", 2, 1, &[1, 1]);
    let message = fixture.open(true).unwrap_err().to_string();
    assert!(message.contains("three.png is 2x1, but"), "{message}");
    let mask = fixture.root.path().join("annotations/panoptic_val2017/three.png");
    LabelMap::background(2, 2).write_png(&mask).unwrap();
    let message = fixture.open(true).unwrap_err().to_string();
    assert!(message.contains("is a PNG of Indexed"), "{message}");
    fs::write(&mask, b"none").unwrap();
    let message = fixture.open(true).unwrap_err().to_string();
    assert!(message.contains("three.png is not a readable PNG"), "{message}");
    fixture.write("panoptic", &instances());
    let message = fixture.open(true).unwrap_err().to_string();
    assert!(message.contains("not a file of COCO panoptic segments"), "{message}");
}

/// Writes an instance file of about `bytes` bytes, annotations first, as COCO's own look: 80
/// categories of which 20 have a class, mostly polygons.
fn write_large(path: &Path, bytes: u64, images: u64) -> u64 {
    let mut out = BufWriter::new(fs::File::create(path).unwrap());
    let (mut written, mut id) = (0, 0);
    write!(out, "{{\"annotations\":[").unwrap();
    while written < bytes {
        let (image, category) = (id % images, id % 80);
        let category = CATEGORIES.get(category as usize + 1).map_or(1000 + category, |c| c.0);
        let comma = if id == 0 { "" } else { "," };
        let (x, y) = (f64::from(id as u32 % 500), f64::from(id as u32 % 377));
        let corners: Vec<String> = (0..40)
            .map(|i| f64::from(i) * std::f64::consts::TAU / 40.0)
            .map(|turn| format!("{:.2},{:.2}", x + 50.0 + 40.0 * turn.cos(), y + 50.0 * turn.sin()))
            .collect();
        let corners = corners.join(",");
        let text = format!(
            "{comma}{{\"segmentation\":[[{corners}]],\"area\":6283.1,\"iscrowd\":0,\"image_id\":{image},\
             \"bbox\":[{x},{y},80.0,100.0],\"category_id\":{category},\"id\":{id}}}"
        );
        out.write_all(text.as_bytes()).unwrap();
        written += text.len() as u64;
        id += 1;
    }
    write!(out, "],\"images\":[").unwrap();
    for image in 0..images {
        let comma = if image == 0 { "" } else { "," };
        let entry = json!({ "id": image, "file_name": "a.png", "width": 640, "height": 480 });
        write!(out, "{comma}{entry}").unwrap();
    }
    let mut known = Vec::new();
    for category in 0..80 {
        known.push(match CATEGORIES.get(category + 1) {
            Some((id, name)) => json!({ "id": id, "name": name }),
            None => json!({ "id": 1000 + category, "name": "other" }),
        });
    }
    write!(out, "],\"categories\":{}}}", json!(known)).unwrap();
    out.flush().unwrap();
    id
}

/// Opens a large file for 100 images, then as training images. Gives the peak of the memory in
/// MiB after each, and what the training images' shapes take.
fn open_large(bytes: u64, images: u64) -> [f64; 2] {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("instances.json");
    image::RgbImage::new(640, 480).save(root.path().join("a.png")).unwrap();
    write_large(&path, bytes, images);
    let source =
        Source { images: root.path().to_owned(), annotations: path.clone(), kind: Kind::Instances };
    let (set, _) = open(&source, None, Some(100)).unwrap();
    assert_eq!(set.images.len(), 100);
    let drawn = set.images.iter().map(|one| one.read_labels().unwrap());
    assert!(drawn.into_iter().any(|map| map.data.iter().any(|&id| id != 0)));
    let small = peak_mib();
    let (set, dropped) = open(&source, Some(MIN_TRAIN_PIXELS), None).unwrap();
    assert_eq!(set.images.len() + dropped, images as usize);
    [small, peak_mib()]
}

/// Highest resident memory of this process so far.
fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}

#[test]
fn a_file_of_tens_of_megabytes_is_read_in_any_order() {
    open_large(30 << 20, 1000);
}

#[test]
#[ignore = "writes 2 GB; run alone for the peak of memory: --ignored --exact --nocapture"]
fn two_gigabytes_are_streamed() {
    let start = std::time::Instant::now();
    let [small, train] = open_large(2 << 30, 120_000);
    println!(
        "2 GiB: peak {small:.0} MiB for 100 images, {train:.0} MiB for 120,000 training images; \
         {:.0} s",
        start.elapsed().as_secs_f64()
    );
    assert!(small < 200.0, "{small}");
}
