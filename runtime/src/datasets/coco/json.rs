//! Annotation files, read as a stream: a list's entries are handed out one by one, and what is
//! not asked for is passed over without being kept, so that memory does not grow with the file.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, IgnoredAny};
use serde::de::{MapAccess, SeqAccess, Visitor};

use super::CocoError;

/// Most corners of all polygons of one annotation, and most runs of a mask.
const MAX_VALUES: usize = 1 << 24;

/// An entry of `images`.
#[derive(Debug, Deserialize)]
pub(super) struct RawImage {
    pub(super) id: u64,
    pub(super) file_name: String,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// An entry of `categories`.
#[derive(Debug, Deserialize)]
pub(super) struct RawCategory {
    pub(super) id: u64,
    pub(super) name: String,
}

/// An entry of `annotations` in an instance file.
#[derive(Debug, Deserialize)]
pub(super) struct RawInstance {
    pub(super) id: Option<u64>,
    pub(super) image_id: u64,
    pub(super) category_id: u64,
    #[serde(default)]
    pub(super) iscrowd: u8,
    pub(super) segmentation: RawMask,
}

/// The pixels of an instance, as the file gives them.
#[derive(Debug)]
pub(super) enum RawMask {
    /// Coordinates of each polygon: x, y, x, y …
    Polygons(Vec<Vec<f64>>),
    /// Run lengths, and height and width where they are given.
    Runs(RawRuns, Option<[u32; 2]>),
}

/// Run lengths, column by column, background first.
#[derive(Debug)]
pub(super) enum RawRuns {
    /// As numbers.
    Plain(Vec<i64>),
    /// In the text form of [`crate::rle`].
    Text(String),
}

/// An entry of `annotations` in a panoptic file.
#[derive(Debug, Deserialize)]
pub(super) struct RawPanoptic {
    pub(super) image_id: u64,
    pub(super) file_name: String,
    pub(super) segments_info: Vec<RawSegment>,
}

/// An entry of `segments_info`.
#[derive(Debug, Deserialize)]
pub(super) struct RawSegment {
    pub(super) id: u32,
    pub(super) category_id: u64,
    #[serde(default)]
    pub(super) iscrowd: u8,
    pub(super) area: u64,
}

/// Takes the entries of a list, each with its place.
pub(super) type Take<'a, T> = &'a mut dyn FnMut(usize, T) -> Result<(), CocoError>;

/// Which lists of a file are read. What is `None` is passed over.
pub(super) struct Lists<'a, A> {
    pub(super) images: Option<Take<'a, RawImage>>,
    pub(super) categories: Option<Take<'a, RawCategory>>,
    pub(super) annotations: Option<Take<'a, A>>,
}

impl<A: DeserializeOwned> Lists<'_, A> {
    /// Reads the file, the lists in whatever order they come. `expected` is the file's kind, for
    /// messages.
    pub(super) fn read(self, path: &Path, expected: &'static str) -> Result<(), CocoError> {
        let file =
            File::open(path).map_err(|source| CocoError::Io { path: path.to_owned(), source })?;
        let refused = RefCell::new(None);
        let mut found = [0; 3];
        let asked = [self.images.is_some(), self.categories.is_some(), self.annotations.is_some()];
        let mut reader =
            serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 20, file));
        let top = Top { lists: self, found: &mut found, refused: &refused };
        let read = reader.deserialize_map(top).and_then(|()| reader.end());
        // What a taker refused comes first: the reader only knows that it was stopped.
        if let Some(error) = refused.into_inner() {
            return Err(error);
        }
        read.map_err(|e| match e.io_error_kind() {
            Some(kind) => CocoError::Io { path: path.to_owned(), source: kind.into() },
            None => CocoError::Json { path: path.to_owned(), expected, reason: e.to_string() },
        })?;
        for ((section, found), asked) in SECTIONS.iter().zip(found).zip(asked) {
            if asked && found != 1 {
                return Err(CocoError::Section { path: path.to_owned(), section, found });
            }
        }
        Ok(())
    }
}

const SECTIONS: [&str; 3] = ["images", "categories", "annotations"];

/// The object that a file is.
struct Top<'a, 'b, A> {
    lists: Lists<'a, A>,
    found: &'b mut [usize; 3],
    refused: &'b RefCell<Option<CocoError>>,
}

impl<'de, A: DeserializeOwned> Visitor<'de> for Top<'_, '_, A> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with images, annotations and categories")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let refused = self.refused;
            let section = SECTIONS.iter().position(|name| *name == key);
            if let Some(section) = section {
                self.found[section] += 1;
            }
            match section {
                Some(0) => map.next_value_seed(List::new("image", &mut self.lists.images, refused)),
                Some(1) => {
                    map.next_value_seed(List::new("category", &mut self.lists.categories, refused))
                }
                Some(_) => map.next_value_seed(List::new(
                    "annotation",
                    &mut self.lists.annotations,
                    refused,
                )),
                None => map.next_value::<IgnoredAny>().map(drop),
            }?;
        }
        Ok(())
    }
}

/// One list of the file.
struct List<'a, 'b, T> {
    /// What an entry is, for messages.
    what: &'static str,
    take: &'b mut Option<Take<'a, T>>,
    refused: &'b RefCell<Option<CocoError>>,
}

impl<'a, 'b, T> List<'a, 'b, T> {
    fn new(
        what: &'static str,
        take: &'b mut Option<Take<'a, T>>,
        refused: &'b RefCell<Option<CocoError>>,
    ) -> Self {
        Self { what, take, refused }
    }
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for List<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        match self.take {
            Some(_) => reader.deserialize_seq(self),
            None => reader.deserialize_ignored_any(IgnoredAny).map(drop),
        }
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for List<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list with an entry for each {}", self.what)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        let Some(take) = self.take else { return Ok(()) };
        for place in 0.. {
            let entry = seq
                .next_element()
                .map_err(|e| S::Error::custom(format!("{} number {place}: {e}", self.what)))?;
            let Some(entry) = entry else { break };
            if let Err(error) = take(place, entry) {
                *self.refused.borrow_mut() = Some(error);
                return Err(S::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RawMask {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Mask;
        impl<'de> Visitor<'de> for Mask {
            type Value = RawMask;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of polygons, or an object with size and counts")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<RawMask, S::Error> {
                let mut left = MAX_VALUES;
                let mut polygons = Vec::new();
                while let Some(polygon) = seq.next_element::<Bounded<f64>>()? {
                    // One more for the polygon itself: empty ones take memory too.
                    left = left
                        .checked_sub(polygon.0.len() + 1)
                        .ok_or_else(|| S::Error::custom(too_many()))?;
                    polygons.push(polygon.0);
                }
                Ok(RawMask::Polygons(polygons))
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<RawMask, M::Error> {
                let (mut runs, mut size) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "counts" => runs = Some(map.next_value()?),
                        "size" => size = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let runs = runs.ok_or_else(|| M::Error::missing_field("counts"))?;
                Ok(RawMask::Runs(runs, size))
            }
        }
        reader.deserialize_any(Mask)
    }
}

impl<'de> Deserialize<'de> for RawRuns {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Runs;
        impl<'de> Visitor<'de> for Runs {
            type Value = RawRuns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("run lengths as a list or as text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawRuns, E> {
                Ok(RawRuns::Text(text.to_owned()))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<RawRuns, S::Error> {
                BoundedVisitor(PhantomData).visit_seq(seq).map(|runs| RawRuns::Plain(runs.0))
            }
        }
        reader.deserialize_any(Runs)
    }
}

/// A list of at most [`MAX_VALUES`] numbers.
struct Bounded<T>(Vec<T>);

struct BoundedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedVisitor<T> {
    type Value = Bounded<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Bounded<T>, S::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            if values.len() == MAX_VALUES {
                return Err(S::Error::custom(too_many()));
            }
            values.push(value);
        }
        Ok(Bounded(values))
    }
}

fn too_many() -> String {
    format!("more than {MAX_VALUES} numbers for one mask")
}
