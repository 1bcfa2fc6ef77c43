//! Which images to learn from: folders, data sets in their published layout, videos, lists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::DataError;
use super::images::{has_image_extension, read_bounded};
use super::video::{self, VideoSampling};

/// Folders are followed this deep; also what ends a loop of symbolic links.
const MAX_DEPTH: usize = 16;

/// Bytes of a list of images, at most.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// What lies under a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Image files or folders of images, searched in depth.
    Folder,
    /// PASCAL VOC: `JPEGImages`, lists in `ImageSets/Segmentation`.
    Voc,
    /// COCO: `train2017` and the like, also under `images`.
    Coco,
    /// DAVIS: `JPEGImages/480p/<sequence>` (else the other resolution), lists of sequences in
    /// `ImageSets/2017`, or of frames in `ImageSets/480p` or `ImageSets/2016`.
    Davis,
    /// `CamVid` as `SegNet` has it: `train`, `val`, `test`, without the `…annot` folders.
    Camvid,
    /// BSDS500: `images`, also under `data` or `BSDS500/data`.
    Bsds,
    /// Video files or folders of them, from which frames are taken.
    Video,
}

impl SourceKind {
    /// All kinds by their names.
    const NAMES: [(&'static str, Self); 7] = [
        ("folder", Self::Folder),
        ("voc", Self::Voc),
        ("coco", Self::Coco),
        ("davis", Self::Davis),
        ("camvid", Self::Camvid),
        ("bsds", Self::Bsds),
        ("video", Self::Video),
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Folder => "image folder",
            Self::Voc => "PASCAL VOC",
            Self::Coco => "COCO",
            Self::Davis => "DAVIS",
            Self::Camvid => "CamVid",
            Self::Bsds => "BSDS500",
            Self::Video => "video",
        }
    }
}

/// A place where images lie: `PATH`, `KIND:PATH` or `KIND/SPLIT:PATH`, such as
/// `davis/train:/data/DAVIS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// What lies there.
    pub kind: SourceKind,
    /// The part of a data set; all of it where absent.
    pub split: Option<String>,
    /// Root of the data set, folder or file.
    pub path: PathBuf,
}

impl From<PathBuf> for ImageSource {
    /// A video by its extension, else images.
    fn from(path: PathBuf) -> Self {
        let kind = if video::has_video_extension(&path) && !path.is_dir() {
            SourceKind::Video
        } else {
            SourceKind::Folder
        };
        Self { kind, split: None, path }
    }
}

impl FromStr for ImageSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((prefix, path)) = text.split_once(':') else {
            return Ok(PathBuf::from(text).into());
        };
        let (name, split) = match prefix.split_once('/') {
            Some((name, split)) => (name, Some(split)),
            None => (prefix, None),
        };
        let known = SourceKind::NAMES.iter().find(|(known, _)| *known == name);
        let Some(&(_, kind)) = known else {
            // A path may hold a colon; a file of that name is meant then.
            if Path::new(text).exists() {
                return Ok(PathBuf::from(text).into());
            }
            let names: Vec<_> = SourceKind::NAMES.iter().map(|(name, _)| *name).collect();
            return Err(format!("{name} is no kind of image source; use {}", names.join(", ")));
        };
        if path.is_empty() {
            return Err(format!("a path must follow {prefix}:"));
        }
        match split {
            Some(split) if matches!(kind, SourceKind::Folder | SourceKind::Video) => {
                Err(format!("{name} has no parts such as {split}; use {name}:{path}"))
            }
            // The part becomes a file name.
            Some(split) if split.is_empty() || split.contains(['/', '\\']) || split == ".." => {
                Err(format!("\"{split}\" is no part of a data set; use one such as train"))
            }
            _ => Ok(Self { kind, split: split.map(str::to_owned), path: path.into() }),
        }
    }
}

/// An image and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// The file.
    pub path: PathBuf,
    /// Its path under the source, without extension.
    pub name: PathBuf,
}

/// Which images are wanted.
#[derive(Debug, Clone, Default)]
pub struct ImageQuery {
    /// Where they lie.
    pub sources: Vec<ImageSource>,
    /// Text files of the names that alone are wanted; everything where there is none. One name
    /// per line (of several words the first), blank lines and lines that start with `#` apart:
    /// the path of an image under its source, with or without extension and with any folders
    /// before it; its bare name; or a folder, such as a sequence of DAVIS.
    pub lists: Vec<PathBuf>,
    /// Names, as in a list, of images and folders that are not wanted.
    pub excluded: Vec<String>,
    /// Lists of the same.
    pub excluded_lists: Vec<PathBuf>,
    /// How frames are taken from videos.
    pub video: VideoSampling,
}

impl ImageQuery {
    /// The images in ascending order of their paths, each once.
    ///
    /// An excluded name that no image has is reported as a warning.
    ///
    /// # Errors
    /// [`DataError::Read`], [`DataError::Layout`], [`DataError::Video`];
    /// [`DataError::NoImages`] when there is none, [`DataError::NotFound`] when a list names an
    /// image that is not there.
    pub fn find(&self) -> Result<Vec<ImageFile>, DataError> {
        let mut all = BTreeMap::new();
        for source in &self.sources {
            let files = source.files(&self.video)?;
            if files.is_empty() {
                return Err(DataError::NoImages { roots: source.path.display().to_string() });
            }
            all.extend(files.into_iter().map(|file| (file.path, file.name)));
        }
        let mut files: Vec<ImageFile> =
            all.into_iter().map(|(path, name)| ImageFile { path, name }).collect();
        if files.is_empty() {
            return Err(DataError::NoImages { roots: "no folder at all".into() });
        }
        if !self.lists.is_empty() {
            let mut chosen = BTreeSet::new();
            let index = Index::new(&files);
            for list in &self.lists {
                chosen.extend(index.select(list)?);
            }
            files = chosen.into_iter().map(|i| files[i].clone()).collect();
        }
        let mut excluded: Vec<(String, PathBuf)> =
            self.excluded.iter().map(|name| (name.clone(), "--exclude".into())).collect();
        for list in &self.excluded_lists {
            excluded.extend(read_list(list)?.into_iter().map(|name| (name, list.clone())));
        }
        let before = files.len();
        let mut dropped = vec![false; before];
        let index = Index::new(&files);
        let mut unknown = Vec::new();
        for (name, list) in &excluded {
            let found = index.find(name);
            if found.is_empty() {
                unknown.push((name, list));
            }
            for &i in found {
                dropped[i] = true;
            }
        }
        if let Some((name, list)) = unknown.first() {
            tracing::warn!(
                "{} excluded name(s) fit no image, the first is \"{name}\" of {}",
                unknown.len(),
                list.display()
            );
        }
        let mut dropped = dropped.iter();
        files.retain(|_| dropped.next() == Some(&false));
        if files.is_empty() {
            let reason = format!("the lists: {before} image(s) were found and all excluded");
            return Err(DataError::NoImages { roots: reason });
        }
        Ok(files)
    }
}

impl ImageSource {
    fn files(&self, sampling: &VideoSampling) -> Result<Vec<ImageFile>, DataError> {
        let path = &self.path;
        let split = self.split.as_deref();
        match self.kind {
            SourceKind::Folder => scan(path, path),
            SourceKind::Video => {
                let mut files = Vec::new();
                for video in video::find(path)? {
                    let frames = video::frames(&video, sampling)?;
                    let base = frames.parent().unwrap_or(&frames).to_owned();
                    files.extend(scan(&base, &frames)?);
                }
                Ok(files)
            }
            SourceKind::Voc => {
                let root = self.folder(&["JPEGImages"])?;
                self.listed(scan(&root, &root)?, &["ImageSets/Segmentation", "ImageSets/Main"])
            }
            SourceKind::Davis => {
                let root = self.folder(&["JPEGImages/480p", "JPEGImages/Full-Resolution"])?;
                let lists = ["ImageSets/2017", "ImageSets/480p", "ImageSets/2016", "ImageSets"];
                self.listed(scan(&root, &root)?, &lists)
            }
            SourceKind::Coco => {
                let base = self.folder(&["images", ""])?;
                self.parts(&base, split, |name| {
                    ["train", "val", "test", "unlabeled"].iter().any(|part| name.starts_with(part))
                })
            }
            SourceKind::Camvid => self.parts(path, split, |name| {
                ["train", "val", "test", "701_StillsRaw_full"].contains(&name)
            }),
            SourceKind::Bsds => {
                let base = self.folder(&["images", "data/images", "BSDS500/data/images"])?;
                match split {
                    Some(_) => self.parts(&base, split, |_| false),
                    None => scan(&base, &base),
                }
            }
        }
    }

    fn layout(&self, expected: impl Into<String>) -> DataError {
        let (path, kind) = (self.path.clone(), self.kind.title());
        DataError::Layout { path, kind, expected: expected.into() }
    }

    /// The first of `candidates` that is a folder.
    fn folder(&self, candidates: &[&str]) -> Result<PathBuf, DataError> {
        let folders = candidates.iter().map(|name| self.path.join(name));
        folders.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
            self.layout(format!("folder {}", candidates.join(" or ").trim_end_matches(" or ")))
        })
    }

    /// Those of `files` that the list of the part names, which lies in one of `folders`.
    fn listed(&self, files: Vec<ImageFile>, folders: &[&str]) -> Result<Vec<ImageFile>, DataError> {
        let Some(split) = &self.split else { return Ok(files) };
        let name = format!("{split}.txt");
        let lists = folders.iter().map(|folder| self.path.join(folder).join(&name));
        let list = lists
            .into_iter()
            .find(|list| list.is_file())
            .ok_or_else(|| self.layout(format!("list {name} in {}", folders.join(" or "))))?;
        let chosen = Index::new(&files).select(&list)?;
        Ok(chosen.into_iter().map(|i| files[i].clone()).collect())
    }

    /// The images of the folder `split` of `base`, or of all its folders that `is_part`.
    fn parts(
        &self,
        base: &Path,
        split: Option<&str>,
        is_part: impl Fn(&str) -> bool,
    ) -> Result<Vec<ImageFile>, DataError> {
        if let Some(split) = split {
            let folder = base.join(split);
            if !folder.is_dir() {
                return Err(self.layout(format!("folder {split}")));
            }
            return scan(base, &folder);
        }
        let failed = |source| DataError::Read { path: base.to_owned(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(base).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if path.is_dir() && name.is_some_and(&is_part) {
                files.extend(scan(base, &path)?);
            }
        }
        if files.is_empty() {
            return Err(self.layout("folder of images such as train"));
        }
        Ok(files)
    }
}

/// Images under `root`, named from `base` on.
fn scan(base: &Path, root: &Path) -> Result<Vec<ImageFile>, DataError> {
    let mut files = Vec::new();
    collect(root, MAX_DEPTH, &has_image_extension, &mut |path| {
        let relative = path.strip_prefix(base).unwrap_or(&path).with_extension("");
        // A source that is a file itself.
        let name = if relative.as_os_str().is_empty() {
            path.file_stem().map(PathBuf::from).unwrap_or_default()
        } else {
            relative
        };
        files.push(ImageFile { path, name });
    })?;
    Ok(files)
}

/// Calls `add` with every file under `path` that is `wanted`.
pub(super) fn collect(
    path: &Path,
    depth: usize,
    wanted: &impl Fn(&Path) -> bool,
    add: &mut impl FnMut(PathBuf),
) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        if wanted(path) {
            add(path.to_owned());
        }
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let child = entry.map_err(failed)?.path();
        // Files of other kinds are not touched at all: a dangling link among them is no error.
        if wanted(&child) || child.is_dir() {
            collect(&child, depth - 1, wanted, add)?;
        }
    }
    Ok(())
}

/// Images by everything that a list may call them.
struct Index<'a> {
    /// By path under the source.
    exact: HashMap<&'a Path, Vec<usize>>,
    /// By bare name and by folder, the whole path of a folder or its last part.
    loose: HashMap<&'a Path, Vec<usize>>,
}

impl<'a> Index<'a> {
    fn new(files: &'a [ImageFile]) -> Self {
        let (mut exact, mut loose) = (HashMap::new(), HashMap::new());
        let add = |map: &mut HashMap<&'a Path, Vec<usize>>, key: &'a Path, i: usize| {
            map.entry(key).or_default().push(i);
        };
        for (i, file) in files.iter().enumerate() {
            let name = file.name.as_path();
            add(&mut exact, name, i);
            let mut keys = BTreeSet::new();
            keys.extend(name.file_name().map(Path::new));
            for folder in name.ancestors().skip(1).filter(|f| !f.as_os_str().is_empty()) {
                keys.insert(folder);
                keys.extend(folder.file_name().map(Path::new));
            }
            for key in keys {
                add(&mut loose, key, i);
            }
        }
        Self { exact, loose }
    }

    fn find(&self, line: &str) -> &[usize] {
        let whole = self.find_name(line);
        match line.split_once(char::is_whitespace) {
            Some((first, _)) if whole.is_empty() => self.find_name(first),
            _ => whole,
        }
    }

    fn find_name(&self, name: &str) -> &[usize] {
        let path = Path::new(name.trim_start_matches('/').trim_start_matches("./"));
        let key = if has_image_extension(path) { path.with_extension("") } else { path.into() };
        if let Some(found) = self.exact.get(key.as_path()).or_else(|| self.loose.get(key.as_path()))
        {
            return found;
        }
        // With folders before it that are not under the source.
        let mut rest = key.components();
        while rest.next().is_some() {
            if let Some(found) = self.exact.get(rest.as_path()) {
                return found;
            }
        }
        &[]
    }

    /// The images that a list names.
    fn select(&self, list: &Path) -> Result<BTreeSet<usize>, DataError> {
        let mut chosen = BTreeSet::new();
        let mut missing = Vec::new();
        for name in read_list(list)? {
            let found = self.find(&name);
            if found.is_empty() {
                missing.push(name);
            }
            chosen.extend(found);
        }
        if let Some(first) = missing.first() {
            let (list, name, count) = (list.to_owned(), first.clone(), missing.len());
            return Err(DataError::NotFound { list, name, count });
        }
        if chosen.is_empty() {
            return Err(DataError::NoImages { roots: format!("the list {}", list.display()) });
        }
        Ok(chosen)
    }
}

/// The lines of a list.
fn read_list(list: &Path) -> Result<Vec<String>, DataError> {
    let text = String::from_utf8_lossy(&read_bounded(list, MAX_LIST_BYTES)?).into_owned();
    let lines = text.lines().map(str::trim);
    Ok(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect())
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
