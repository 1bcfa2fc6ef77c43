//! Instances of `instances_*.json`, kept as shapes and drawn when their labels are asked for.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::json::{Lists, RawInstance, RawMask, RawRuns};
use super::polygon::{CELLS, fill, fine, union};
use super::{CocoError, VOID, Wanted, class_of};
use crate::labels::{LabelMap, MAX_SIDE};
use crate::rle::{RleError, checked_runs, text_runs};

/// What a file without instances is told not to be.
const EXPECTED: &str = "a file of COCO instances (instances_*.json)";

/// The instances of one image that have one of the 20 classes, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceLabels {
    file: Arc<Path>,
    width: u32,
    height: u32,
    instances: Vec<Instance>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Instance {
    /// Id of the class, or void for crowds.
    class: u8,
    shape: Shape,
}

/// The pixels of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// Corners `[x, y]` of each polygon on the fine grid.
    Polygons(Box<[Box<[[i32; 2]]>]>),
    /// Run lengths, column by column, background first.
    Runs(Box<[u32]>),
}

impl InstanceLabels {
    /// The annotation file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Draws the labels: 0 where there is no instance, void where there are two (of the same
    /// class too) or a crowd.
    pub fn draw(&self) -> LabelMap {
        let (w, h) = (self.width as usize, self.height as usize);
        let mut map = LabelMap::background(self.width, self.height);
        let columns = self.columns();
        for (y, row) in map.data.chunks_exact_mut(w.max(1)).enumerate() {
            for (x, label) in row.iter_mut().enumerate() {
                *label = columns[x * h + y];
            }
        }
        map
    }

    /// Number of pixels that have one of the 20 classes.
    pub fn class_pixels(&self) -> u64 {
        self.columns().iter().filter(|&&label| label != 0 && label != VOID).count() as u64
    }

    /// The labels column by column, in which order shapes are ranges.
    fn columns(&self) -> Vec<u8> {
        let mut columns = vec![0; self.width as usize * self.height as usize];
        for instance in &self.instances {
            for [start, end] in instance.shape.spans(self.width, self.height) {
                for label in &mut columns[start as usize..end as usize] {
                    *label = if *label == 0 { instance.class } else { VOID };
                }
            }
        }
        columns
    }
}

impl Shape {
    /// The pixels inside as ranges of `column * height + row`, ascending and apart.
    pub(super) fn spans(&self, width: u32, height: u32) -> Vec<[u32; 2]> {
        let mut spans = Vec::new();
        match self {
            Self::Polygons(polygons) => {
                for polygon in polygons {
                    fill(polygon, width, height, &mut spans);
                }
            }
            Self::Runs(runs) => {
                let mut position = 0;
                for pair in runs.chunks(2) {
                    let start = position + pair[0];
                    position = start + pair.get(1).copied().unwrap_or(0);
                    if start < position {
                        spans.push([start, position]);
                    }
                }
            }
        }
        union(spans)
    }

    /// Checks what the file gives for an image of `size` (width, height). An error says what is
    /// wrong, as the end of a sentence.
    pub(super) fn new(raw: RawMask, size: (u32, u32)) -> Result<Self, String> {
        match raw {
            RawMask::Polygons(polygons) => polygons
                .into_iter()
                .map(|one| corners(&one))
                .collect::<Result<_, _>>()
                .map(Self::Polygons),
            RawMask::Runs(runs, given) => {
                let expected = [size.1, size.0];
                if let Some([h, w]) = given.filter(|given| *given != expected) {
                    return Err(format!(
                        "has a mask of {w}x{h}, but its image is {}x{}",
                        size.0, size.1
                    ));
                }
                let runs = match runs {
                    RawRuns::Plain(runs) => checked_runs(&runs, expected),
                    RawRuns::Text(text) => text_runs(&text, expected),
                };
                let refused = |e: RleError| format!("has a mask that cannot be read: {e}");
                Ok(Self::Runs(runs.map_err(refused)?.into()))
            }
        }
    }
}

/// The corners of a polygon on the fine grid.
fn corners(coordinates: &[f64]) -> Result<Box<[[i32; 2]]>, String> {
    let count = coordinates.len();
    if count < 6 || !count.is_multiple_of(2) {
        return Err(format!(
            "has a polygon of {count} numbers; x and y of at least three corners are needed"
        ));
    }
    // Far outside of any image, and near enough that corners can be counted with.
    let limit = 2.0 * f64::from(MAX_SIDE);
    if let Some(far) = coordinates.iter().find(|v| v.abs() > limit) {
        return Err(format!(
            "has a polygon with the coordinate {far}; at most {limit} is possible"
        ));
    }
    const { assert!(MAX_SIDE as i64 * 2 * (CELLS as i64) < 1 << 24) };
    Ok(coordinates.chunks_exact(2).map(|at| [fine(at[0]), fine(at[1])]).collect())
}

/// Reads the instances of the wanted images, in their order.
pub(super) fn read(path: &Path, wanted: &Wanted) -> Result<Vec<InstanceLabels>, CocoError> {
    let file: Arc<Path> = path.into();
    let mut labels: Vec<InstanceLabels> = wanted
        .images
        .iter()
        .map(|image| InstanceLabels {
            file: Arc::clone(&file),
            width: image.width,
            height: image.height,
            instances: Vec::new(),
        })
        .collect();
    let mut take = |place: usize, raw: RawInstance| {
        let called = || match raw.id {
            Some(id) => format!("annotation {id}"),
            None => format!("annotation number {place}"),
        };
        let slot = wanted.slot(path, raw.image_id, called)?;
        wanted.check_category(path, raw.category_id, called)?;
        let (Some(slot), Some(class)) = (slot, class_of(raw.category_id)) else { return Ok(()) };
        let labels = &mut labels[slot];
        let shape = Shape::new(raw.segmentation, labels.size()).map_err(|what| {
            CocoError::Annotation { path: path.to_owned(), annotation: called(), what }
        })?;
        let class = if raw.iscrowd == 0 { class } else { VOID };
        labels.instances.push(Instance { class, shape });
        Ok(())
    };
    Lists { images: None, categories: None, annotations: Some(&mut take) }.read(path, EXPECTED)?;
    Ok(labels)
}

/// Which images have more than `pixels` pixels of the 20 classes.
pub(super) fn exceeding(labels: &[InstanceLabels], pixels: u64) -> Vec<bool> {
    labels.par_iter().map(|one| one.class_pixels() > pixels).collect()
}
