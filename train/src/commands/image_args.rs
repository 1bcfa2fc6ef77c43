//! The options that say which images a command works on.

use std::path::PathBuf;

use conceptseg_train::data::sources::{ImageQuery, ImageSource};
use conceptseg_train::data::video::VideoSampling;
use conceptseg_train::data::{DataError, ImageFile};

/// Which images.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Image files, videos or folders of images (searched in depth); may be given several times.
    ///
    /// A data set in its published layout is given as KIND:PATH, a part of it as
    /// KIND/PART:PATH, such as davis/train:/data/DAVIS. Kinds: voc, coco, davis, camvid, bsds,
    /// video (a folder of videos) and folder.
    #[arg(long, required = true, num_args = 1.., value_name = "SOURCE")]
    images: Vec<ImageSource>,
    #[command(flatten)]
    selection: Selection,
}

/// Which of the images, and how videos give them.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Text file with the names of the images to take, one per line; all others are left out.
    #[arg(long, value_name = "FILE")]
    list: Vec<PathBuf>,
    /// Images or folders, such as the sequences that are evaluated, to leave out.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    exclude: Vec<String>,
    /// Text file with the names of images or folders to leave out, one per line.
    #[arg(long, value_name = "FILE")]
    exclude_list: Vec<PathBuf>,
    /// Frames taken from each second of a video.
    #[arg(long, default_value_t = VideoSampling::default().frames_per_second)]
    fps: f64,
    /// Folder that keeps the frames of videos; conceptseg/frames in the user's cache where absent.
    #[arg(long, value_name = "DIR")]
    frames: Option<PathBuf>,
}

impl ImageArgs {
    /// The images.
    ///
    /// # Errors
    /// As [`ImageQuery::find`].
    pub fn find(&self) -> Result<Vec<ImageFile>, DataError> {
        self.selection.find(&self.images)
    }
}

impl Selection {
    /// The images of these sources.
    ///
    /// # Errors
    /// As [`ImageQuery::find`].
    pub fn find(&self, sources: &[ImageSource]) -> Result<Vec<ImageFile>, DataError> {
        let default = VideoSampling::default();
        let video = VideoSampling {
            frames_per_second: self.fps,
            folder: self.frames.clone().unwrap_or(default.folder),
            program: default.program,
        };
        ImageQuery {
            sources: sources.to_vec(),
            lists: self.list.clone(),
            excluded: self.exclude.clone(),
            excluded_lists: self.exclude_list.clone(),
            video,
        }
        .find()
    }
}
