//! `conceptseg eval`: scores a bundle on data sets, through the same code that live streams use.

mod carry;
mod coco;
mod compare;
mod concepts;
mod davis;
#[cfg(test)]
pub mod fixtures;
pub mod model;
mod page;
mod pictures;
pub mod run;
mod segmentation;
mod setting;
mod sweep;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry the first mask of every DAVIS sequence through it and score the masks.
    ///
    /// Reads ROOT/JPEGImages/480p/<sequence>/*.jpg and ROOT/Annotations/480p/<sequence>/*.png
    /// (DAVIS 2016 or 2017) and checks every file before the work starts. J and F are those
    /// of `metrics davis`. The speed counts frame preparation, network and propagation, but
    /// not reading files and scoring.
    Davis(davis::DavisArgs),
    /// Classify the pixels of PASCAL VOC by their nearest labelled prototypes and score mIoU.
    ///
    /// Pixels are clustered image by image (k-means on embedding and place), clusters of
    /// the training images become prototypes with the class of most of their pixels, and each
    /// cluster of a validation image takes the class of most of its nearest prototypes. All
    /// files are checked before the work starts.
    Voc(segmentation::VocArgs),
    /// The same on COCO 2017 with the classes of PASCAL VOC, from instances or panoptic segments.
    Coco(Box<coco::CocoArgs>),
    /// The same on `CamVid` (11 classes; the folders of `SegNet`).
    Camvid(segmentation::CamVidArgs),
    /// The same on any folders of images and label PNGs.
    Folder(segmentation::FolderArgs),
    /// What the concepts of the live path show: purity, use of the dictionary, which occur
    /// together, and pictures of each.
    ///
    /// With labels: how far the segments of each concept show one class. Without (`--images`):
    /// all the rest. `--out` adds the histogram, the graph, tables, and sheets of segments.
    Concepts(Box<concepts::ConceptArgs>),
    /// Compare two reports on the same images or sequences: differences with their confidence.
    Compare(compare::Args),
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Davis(args) => davis::run(args, json),
        Command::Voc(args) => segmentation::voc(args, json),
        Command::Coco(args) => coco::run(args, json),
        Command::Camvid(args) => segmentation::camvid(args, json),
        Command::Folder(args) => segmentation::folder(args, json),
        Command::Concepts(args) => concepts::run(args, json),
        Command::Compare(args) => compare::run(args, json),
    }
}
