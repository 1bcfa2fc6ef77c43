//! From soft labels on the grid to instance masks at frame size.

use super::Protocol;
use crate::labels::LabelMap;
use crate::memory::{self, OutOfMemory};
use crate::upsample::Upsampler;

/// An instance whose soft label is below this everywhere has left the view. Scaling its
/// channel to 0..1 (which the protocol does with every channel) would let a trace of
/// a thousandth claim cells again.
pub(crate) const TRACE: f32 = 1e-3;

/// A channel that varies by less than this is constant: what it varies by is rounding.
pub(crate) const FLAT: f32 = 1e-6;

/// One tracked instance in one frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InstanceStat {
    /// Its id in the first mask, 1..=254.
    pub id: u8,
    /// Pixels in the mask; 0 when the instance is not seen.
    pub area: u32,
    /// Smallest box around its pixels: x, y, width, height; all 0 when it is not seen.
    pub bbox: [u32; 4],
    /// Mean soft label of the instance over the grid cells that it wins, 0..1 (of its
    /// best cell where it wins only parts of cells); 0 when it is not seen.
    pub confidence: f32,
}

impl InstanceStat {
    fn unseen(id: u8) -> Self {
        Self { id, area: 0, bbox: [0; 4], confidence: 0.0 }
    }

    /// Adds the pixels `start..end` of row `y`, rows in rising order.
    fn add_run(&mut self, y: u32, start: u32, end: u32) {
        if self.area == 0 {
            self.bbox = [start, y, end - start, 1];
        } else {
            let [x, top, w, _] = self.bbox;
            let left = x.min(start);
            self.bbox = [left, top, (x + w).max(end) - left, y - top + 1];
        }
        self.area += end - start;
    }
}

/// Instance masks of one frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MaskMap {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Instance ids, `[height, width]`; 0 is background.
    pub labels: Vec<u8>,
    /// Every tracked instance by rising id, seen or not.
    pub instances: Vec<InstanceStat>,
}

impl MaskMap {
    /// Takes over a given mask: each of its instances with confidence 1, void (255) as
    /// background.
    pub fn set_given(&mut self, mask: &LabelMap) {
        (self.width, self.height) = (mask.width, mask.height);
        self.labels.clear();
        self.labels.extend(mask.data.iter().map(|&id| if id == 255 { 0 } else { id }));
        self.instances.clear();
        self.instances.extend(mask.instance_ids().into_iter().map(InstanceStat::unseen));
        self.measure();
        self.instances.iter_mut().for_each(|i| i.confidence = 1.0);
    }

    /// Takes over another map and keeps its own memory.
    pub fn copy_from(&mut self, other: &Self) {
        (self.width, self.height) = (other.width, other.height);
        self.labels.clone_from(&other.labels);
        self.instances.clone_from(&other.instances);
    }

    /// The labels at another size, to start from again.
    pub(crate) fn scaled(&self, width: u32, height: u32) -> LabelMap {
        let (from, data) = ((self.width, self.height), self.labels.clone());
        LabelMap { width: from.0, height: from.1, data }.resized_nearest(width, height)
    }

    /// Area and box of the listed instances.
    fn measure(&mut self) {
        let mut index = [None; 256];
        for (i, instance) in self.instances.iter().enumerate() {
            index[usize::from(instance.id)] = Some(i);
        }
        for (y, row) in self.labels.chunks_exact((self.width as usize).max(1)).enumerate() {
            let mut start = 0;
            for run in row.chunk_by(|a, b| a == b) {
                let end = start + run.len() as u32;
                if let Some(i) = index[usize::from(run[0])] {
                    self.instances[i].add_run(y as u32, start, end);
                }
                start = end;
            }
        }
    }
}

/// Turns soft labels into masks; keeps its scratch.
#[derive(Debug, Default)]
pub(super) struct MaskWriter {
    upsampler: Upsampler,
    /// The labels channel by channel, `[channels, height, width]`.
    planes: Vec<f32>,
    minmax: Vec<(f32, f32)>,
    affine: Vec<(f32, f32)>,
    /// Winning channel at network size.
    network: Vec<u8>,
    /// Network column of each output column.
    columns: Vec<u32>,
    /// Per channel: cells won, sum of their soft labels, largest soft label anywhere.
    wins: Vec<(u32, f32, f32)>,
}

impl MaskWriter {
    /// Upsamples to network size, scales each channel to 0..1, takes the highest and resizes
    /// by nearest neighbour to `out_w` x `out_h`. [`Protocol::TimeCycle`] scaled its labels
    /// before and [`Protocol::Crw`] takes them as they are, at once at output size.
    ///
    /// Where channels are scaled, one that is the same everywhere cannot be scaled and takes part with its own
    /// value: 1 for an instance that fills the view. An instance of which only a
    /// [`TRACE`] is left wins nothing.
    ///
    /// # Shapes
    /// - `labels`: `[height * width, 1 + ids.len()]`, background first
    pub(super) fn write(
        &mut self,
        labels: &[f32],
        (height, width, stride): (usize, usize, usize),
        ids: &[u8],
        protocol: Protocol,
        (out_w, out_h): (u32, u32),
        out: &mut MaskMap,
    ) -> Result<(), OutOfMemory> {
        let (cells, channels) = (height * width, ids.len() + 1);
        self.planes.resize(cells * channels, 0.0);
        for (channel, plane) in self.planes.chunks_exact_mut(cells).enumerate() {
            let values = labels.iter().skip(channel).step_by(channels);
            plane.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
        }
        let grid = (height, width);
        let network = match protocol {
            Protocol::TimeCycle | Protocol::Dino => (height * stride, width * stride),
            Protocol::Crw => (out_h as usize, out_w as usize),
        };
        memory::reserve(&mut self.network, network.0 * network.1, "the masks")?;
        let pixels = out_w as usize * out_h as usize;
        memory::reserve(&mut out.labels, pixels, "the masks at the size of the frame")?;
        self.affine.clear();
        if protocol == Protocol::Dino {
            self.upsampler.extremes(&self.planes, grid, network, &mut self.minmax);
            self.affine.extend(self.minmax.iter().map(|&(low, high)| {
                if high < TRACE {
                    // Below every scaled score, rounding included.
                    (0.0, -1.0)
                } else if high - low < FLAT {
                    (1.0, 0.0)
                } else {
                    let scale = 1.0 / (high - low);
                    (scale, -low * scale)
                }
            }));
        } else {
            self.affine.resize(channels, (1.0, 0.0));
        }
        let affine = Some(self.affine.as_slice());
        self.upsampler.argmax(&self.planes, grid, affine, network, &mut self.network);

        (out.width, out.height) = (out_w, out_h);
        let nearest = |i: u32, target: u32, source: usize| {
            ((u64::from(i) * 2 + 1) * source as u64 / (u64::from(target) * 2)) as u32
        };
        self.columns.clear();
        self.columns.extend((0..out_w).map(|x| nearest(x, out_w, network.1)));
        let mut id_of = [0u8; 256];
        id_of[1..channels].copy_from_slice(ids);
        out.labels.clear();
        for y in 0..out_h {
            let row = nearest(y, out_h, network.0) as usize * network.1;
            let row = &self.network[row..][..network.1];
            let ids = self.columns.iter().map(|&x| id_of[usize::from(row[x as usize])]);
            out.labels.extend(ids);
        }
        out.instances.clear();
        out.instances.extend(ids.iter().map(|&id| InstanceStat::unseen(id)));
        out.measure();
        self.rate(labels, channels);
        for (instance, &(cells, sum, highest)) in out.instances.iter_mut().zip(&self.wins[1..]) {
            if instance.area > 0 {
                let mean = if cells > 0 { sum / cells as f32 } else { highest };
                instance.confidence = mean.clamp(0.0, 1.0);
            }
        }
        Ok(())
    }

    /// Which cells each channel wins, by the same scaled scores as the mask.
    fn rate(&mut self, labels: &[f32], channels: usize) {
        self.wins.clear();
        self.wins.resize(channels, (0, 0.0, 0.0));
        for cell in labels.chunks_exact(channels) {
            let mut winner = 0;
            let mut best = f32::NEG_INFINITY;
            for (channel, (&value, (scale, offset))) in cell.iter().zip(&self.affine).enumerate() {
                let score = scale * value + offset;
                if score > best {
                    (winner, best) = (channel, score);
                }
                self.wins[channel].2 = self.wins[channel].2.max(value);
            }
            self.wins[winner].0 += 1;
            self.wins[winner].1 += cell[winner];
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.planes.as_slice())
            + size_of_val(self.network.as_slice())
            + size_of_val(self.columns.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two channels per instance list on a 2x4 grid of stride 2.
    fn write(instance: &[f32], size: (u32, u32)) -> MaskMap {
        let labels: Vec<f32> = instance.iter().flat_map(|&v| [1.0 - v, v]).collect();
        let mut out = MaskMap::default();
        MaskWriter::default()
            .write(&labels, (2, 4, 2), &[5], Protocol::Dino, size, &mut out)
            .unwrap();
        out
    }

    #[test]
    fn a_mask_has_the_frame_size_and_knows_its_box() {
        let out = write(&[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0], (16, 8));
        assert_eq!((out.width, out.height, out.labels.len()), (16, 8, 128));
        let [instance] = out.instances[..] else { panic!("one instance") };
        assert_eq!((instance.id, instance.area, instance.bbox), (5, 64, [8, 0, 8, 8]));
        assert_eq!(instance.confidence, 1.0);
        assert_eq!(out.labels[..16], [0, 0, 0, 0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5]);
    }

    #[test]
    fn a_weak_instance_is_scaled_up_but_keeps_its_low_confidence() {
        let out = write(&[0.0, 0.0, 0.2, 0.2, 0.0, 0.0, 0.2, 0.2], (8, 4));
        assert_eq!(out.instances[0].area, 16);
        assert!((out.instances[0].confidence - 0.2).abs() < 1e-6);
    }

    #[test]
    fn an_instance_that_left_stays_away() {
        for trace in [0.0, 1e-9, 9e-4] {
            let out = write(&[0.0, 0.0, trace, 0.0, 0.0, 0.0, 0.0, 0.0], (8, 4));
            assert_eq!(out.instances, [InstanceStat::unseen(5)]);
            assert!(out.labels.iter().all(|&id| id == 0));
        }
    }

    #[test]
    fn an_instance_can_fill_the_view() {
        let out = write(&[1.0; 8], (3, 3));
        assert_eq!(out.labels, [5; 9]);
        assert_eq!(out.instances[0].bbox, [0, 0, 3, 3]);
    }

    #[test]
    fn a_given_mask_is_taken_over_without_void() {
        let mask = LabelMap { width: 3, height: 2, data: vec![0, 4, 255, 2, 4, 4] };
        let mut out = MaskMap::default();
        out.set_given(&mask);
        assert_eq!(out.labels, [0, 4, 0, 2, 4, 4]);
        assert_eq!(
            out.instances,
            [
                InstanceStat { id: 2, area: 1, bbox: [0, 1, 1, 1], confidence: 1.0 },
                InstanceStat { id: 4, area: 3, bbox: [1, 0, 2, 2], confidence: 1.0 },
            ]
        );
    }
}
