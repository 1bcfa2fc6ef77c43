//! Images on the command line, with or without labels.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use conceptseg::datasets::images::ImageSet;
use conceptseg::datasets::segmentation::{Classes, SegmentationDataset};
use conceptseg::datasets::video::{self, VideoSampling};
use conceptseg::datasets::{camvid, coco, voc};

/// A set of images and what it is called.
pub struct Named {
    pub name: String,
    pub images: ImageSet,
}

/// The images, with or without labels.
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// Which kind of data set ROOT is.
    #[arg(long, value_enum, requires = "root")]
    data: Option<DataArg>,
    /// Folder of the data set; of a folder data set, that with images and labels.
    #[arg(long, value_name = "DIR", requires = "data")]
    root: Option<PathBuf>,
    /// Folder of images without labels, or a video, instead of a data set: all but the purity is
    /// told.
    #[arg(
        long,
        value_name = "DIR|VIDEO",
        conflicts_with_all = ["data", "root", "split", "list", "classes"]
    )]
    images: Option<PathBuf>,
    /// The split: train or val (of a folder data set: its folders are images and labels).
    #[arg(long, default_value = "val")]
    pub split: String,
    /// List of the images instead of the data set's own (VOC).
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Class names of a folder data set, one a line.
    #[arg(long, value_name = "FILE", required_if_eq("data", "folder"))]
    classes: Option<PathBuf>,
    /// The label of pixels that do not count in a folder data set.
    #[arg(long, default_value_t = 255, value_name = "ID")]
    void: u8,
    /// Frames taken from each second of a video.
    #[arg(long, default_value_t = VideoSampling::default().frames_per_second, value_name = "N")]
    fps: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DataArg {
    /// PASCAL VOC.
    Voc,
    /// `CamVid`.
    Camvid,
    /// ROOT/images and ROOT/labels.
    Folder,
    /// COCO's instances.
    Coco,
    /// COCO's panoptic segments.
    CocoPanoptic,
}

impl SetArgs {
    /// Whether any images are named.
    pub fn is_given(&self) -> bool {
        self.images.is_some() || self.data.is_some()
    }

    /// Whether it is a folder data set, which has no splits.
    pub fn is_folder(&self) -> bool {
        self.data == Some(DataArg::Folder)
    }

    /// What a person would call the images.
    pub fn title(&self) -> String {
        let path = self.images.as_ref().or(self.root.as_ref());
        let name = path.and_then(|path| path.file_name()).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The images; of more than `limit` that many, evenly spread.
    pub fn open(&self, limit: Option<usize>) -> Result<Named> {
        let Some(path) = &self.images else {
            return self.open_split(&self.split, self.list.as_deref(), limit);
        };
        let images = if path.is_file() {
            let sampling = VideoSampling { frames_per_second: self.fps, ..Default::default() };
            ImageSet::open_folder(&video::frames(path, &sampling)?, limit)?
        } else {
            ImageSet::open_folder(path, limit)?
        };
        Ok(Named { name: "images".to_owned(), images })
    }

    /// A split of the data set.
    pub fn open_split(
        &self,
        split: &str,
        list: Option<&Path>,
        limit: Option<usize>,
    ) -> Result<Named> {
        let (Some(data), Some(root)) = (self.data, &self.root) else {
            bail!("there is nothing to label; give --images, or --data and --root");
        };
        let set = match data {
            DataArg::Voc => voc::open(root, train_or_val(split)?, list, limit)?,
            DataArg::Coco | DataArg::CocoPanoptic => {
                let panoptic = data == DataArg::CocoPanoptic;
                let source = coco::Source::standard(root, train_or_val(split)?, panoptic);
                coco::open(&source, None, limit)?.0
            }
            DataArg::Camvid => camvid::open(root, split, limit)?,
            DataArg::Folder => {
                // The option is required for this kind.
                let classes = Classes::read(self.classes.as_deref().unwrap_or(root), self.void)?;
                let (images, labels) = (root.join("images"), root.join("labels"));
                SegmentationDataset::open_folders(&images, &labels, classes, limit)?
            }
        };
        Ok(Named { name: split.to_owned(), images: ImageSet::labelled(set)? })
    }
}

fn train_or_val(split: &str) -> Result<voc::Split> {
    match split {
        "train" => Ok(voc::Split::Train),
        "val" => Ok(voc::Split::Val),
        other => bail!("the data set has no split {other}; use train or val"),
    }
}
