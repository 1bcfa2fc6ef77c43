use super::*;

/// A folder with empty files of these names.
fn tree(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    dir
}

/// The names of what `query` finds in `KIND[/SPLIT]:` of a folder.
fn names_with(
    kind: &str,
    dir: &Path,
    change: impl FnOnce(&mut ImageQuery),
) -> Result<Vec<String>, DataError> {
    let source = format!("{kind}:{}", dir.display()).parse().unwrap();
    let mut query = ImageQuery { sources: vec![source], ..ImageQuery::default() };
    change(&mut query);
    let files = query.find()?;
    Ok(files.iter().map(|file| file.name.to_str().unwrap().to_owned()).collect())
}

fn names(kind: &str, dir: &Path) -> Vec<String> {
    names_with(kind, dir, |_| ()).unwrap()
}

#[test]
fn sources_are_written_as_kind_part_and_path() {
    let parse = |text: &str| text.parse::<ImageSource>();
    let plain = parse("/data/x").unwrap();
    assert_eq!((plain.kind, plain.split), (SourceKind::Folder, None));
    assert_eq!(parse("clip.MP4").unwrap().kind, SourceKind::Video);
    let davis = parse("davis/train:/data/DAVIS").unwrap();
    assert_eq!((davis.kind, davis.split.as_deref()), (SourceKind::Davis, Some("train")));
    assert_eq!(davis.path, Path::new("/data/DAVIS"));
    for (text, part) in [
        ("imagenet:/x", "use folder, voc"),
        ("voc:", "must follow"),
        ("folder/a:/x", "no parts"),
        ("voc/../x:/x", "no part"),
        ("voc/..:/x", "no part"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    // A name with a colon that exists.
    let dir = tree(&["a:b/1.png"]);
    let path = dir.path().join("a:b");
    assert_eq!(parse(path.to_str().unwrap()).unwrap().path, path);
}

#[test]
fn voc_takes_photographs_by_its_lists() {
    let dir = tree(&["JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png"]);
    assert_eq!(names("voc", dir.path()), ["a", "b"]);
    let lists = dir.path().join("ImageSets/Segmentation");
    fs::create_dir_all(&lists).unwrap();
    fs::write(lists.join("train.txt"), "b\n").unwrap();
    // As the lists of the augmented set have it.
    fs::write(lists.join("aug.txt"), "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n").unwrap();
    assert_eq!(names("voc/train", dir.path()), ["b"]);
    assert_eq!(names("voc/aug", dir.path()), ["a"]);
    let error = names_with("voc/val", dir.path(), |_| ()).unwrap_err();
    assert!(error.to_string().contains("list val.txt"), "{error}");
    let error = names_with("voc", &lists, |_| ()).unwrap_err();
    assert!(matches!(error, DataError::Layout { kind: "PASCAL VOC", .. }), "{error}");
}

#[test]
fn davis_takes_sequences_and_leaves_out_those_that_are_evaluated() {
    let dir = tree(&[
        "JPEGImages/480p/bear/00000.jpg",
        "JPEGImages/480p/bear/00001.jpg",
        "JPEGImages/480p/dog/00000.jpg",
        "JPEGImages/480p/dog-agility/00000.jpg",
        "Annotations/480p/bear/00000.png",
    ]);
    let lists = dir.path().join("ImageSets");
    fs::create_dir_all(lists.join("2017")).unwrap();
    fs::create_dir_all(lists.join("480p")).unwrap();
    fs::write(lists.join("2017/train.txt"), "bear\n").unwrap();
    fs::write(
        lists.join("480p/frames.txt"),
        "/JPEGImages/480p/bear/00001.jpg /Annotations/480p/bear/00001.png\n",
    )
    .unwrap();
    assert_eq!(names("davis", dir.path()).len(), 4);
    assert_eq!(names("davis/train", dir.path()), ["bear/00000", "bear/00001"]);
    assert_eq!(names("davis/frames", dir.path()), ["bear/00001"]);

    let without = |excluded: &str| {
        names_with("davis", dir.path(), |query| query.excluded = vec![excluded.to_owned()])
    };
    assert_eq!(without("dog").unwrap(), ["bear/00000", "bear/00001", "dog-agility/00000"]);
    assert_eq!(without("bear/00000.jpg").unwrap().len(), 3);
    assert_eq!(without("no such sequence").unwrap().len(), 4);
    fs::write(lists.join("val.txt"), "dog\nbear\n").unwrap();
    let kept = names_with("davis", dir.path(), |query| {
        query.excluded_lists = vec![lists.join("val.txt")];
    });
    assert_eq!(kept.unwrap(), ["dog-agility/00000"]);
    let error = names_with("davis/train", dir.path(), |query| {
        query.excluded_lists = vec![lists.join("val.txt")];
    });
    assert!(error.unwrap_err().to_string().contains("2 image(s) were found and all excluded"));
}

#[test]
fn other_sets_are_read_without_their_annotations() {
    let coco = tree(&["images/train2017/1.jpg", "images/val2017/2.jpg", "annotations/p/1.png"]);
    assert_eq!(names("coco", coco.path()), ["train2017/1", "val2017/2"]);
    assert_eq!(names("coco/val2017", coco.path()), ["val2017/2"]);
    let camvid = tree(&["train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png"]);
    assert_eq!(names("camvid", camvid.path()), ["train/a", "val/b"]);
    assert_eq!(names("camvid/train", camvid.path()), ["train/a"]);
    let bsds = tree(&["BSDS500/data/images/train/1.jpg", "BSDS500/data/images/test/2.jpg"]);
    assert_eq!(names("bsds", bsds.path()), ["test/2", "train/1"]);
    assert_eq!(names("bsds/train", bsds.path()), ["train/1"]);
    assert!(names_with("bsds/valid", bsds.path(), |_| ()).is_err());
}

#[test]
fn a_single_file_has_its_own_name() {
    let dir = tree(&["x/a.b.jpg"]);
    let query =
        ImageQuery { sources: vec![dir.path().join("x/a.b.jpg").into()], ..ImageQuery::default() };
    assert_eq!(query.find().unwrap()[0].name, Path::new("a.b"));
}

#[test]
fn the_shared_sets_have_the_published_layouts() {
    let count = |kind: &str, relative: &str| {
        conceptseg::testdata::shared(relative).map(|path| names(kind, &path).len())
    };
    for (kind, relative, expected) in [
        ("davis", "data/davis", 471),
        ("davis/with_frames", "data/davis", 471),
        ("voc", "data/voc/val", 100),
        ("camvid/train", "data/camvid", 62),
        ("camvid", "data/camvid", 96),
        ("bsds", "data/bsds500", 10),
    ] {
        if let Some(found) = count(kind, relative) {
            assert_eq!(found, expected, "{kind}");
        }
    }
}
