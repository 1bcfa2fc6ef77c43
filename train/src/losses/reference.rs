//! The losses in plain loops over `f64`, straight from their definitions, to test against.

use std::collections::BTreeMap;

/// A batch in plain numbers.
#[derive(Clone, Debug)]
pub struct Case {
    /// `[2B][D][h][w]`
    pub embeddings: Vec<f64>,
    pub views: usize,
    pub d: usize,
    pub h: usize,
    pub w: usize,
    pub upsample: usize,
    /// `[2B][ids_h][ids_w]`
    pub ids: Vec<i64>,
    pub ids_h: usize,
    pub ids_w: usize,
    /// `[B]`
    pub image_ids: Vec<i64>,
    /// `[K][D]`
    pub codebook: Vec<Vec<f64>>,
    /// Unit embedding and image id of each memory segment, batch after batch.
    pub memory: Vec<Vec<(Vec<f64>, i64)>>,
    pub kappa: f64,
    pub beta: f64,
    pub by_pixel: bool,
    pub mask_own_image: bool,
    pub exclude_self: bool,
}

/// The three losses.
#[derive(Debug)]
pub struct Losses {
    pub local: f64,
    pub quantization: f64,
    pub cooccurrence: f64,
    pub segments: usize,
    pub pixels: usize,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

pub fn unit(a: &[f64]) -> Vec<f64> {
    let length = dot(a, a).sqrt().max(1e-12);
    a.iter().map(|x| x / length).collect()
}

/// Bilinear sample of channel `c` of view `v` at cell (`y`, `x`) of the enlarged grid.
fn sample(case: &Case, v: usize, c: usize, y: usize, x: usize) -> f64 {
    let at = |out: usize, size: usize| {
        let t = ((out as f64 + 0.5) / case.upsample as f64 - 0.5).max(0.0);
        let i = (t.floor() as usize).min(size - 1);
        (i, (i + 1).min(size - 1), t - i as f64)
    };
    let (y0, y1, fy) = at(y, case.h);
    let (x0, x1, fx) = at(x, case.w);
    let value = |y: usize, x: usize| case.embeddings[((v * case.d + c) * case.h + y) * case.w + x];
    (1.0 - fy) * ((1.0 - fx) * value(y0, x0) + fx * value(y0, x1))
        + fy * ((1.0 - fx) * value(y1, x0) + fx * value(y1, x1))
}

struct Candidate {
    z: Vec<f64>,
    image: i64,
    concept: usize,
    in_memory: bool,
}

pub fn losses(case: &Case) -> Losses {
    let (h, w) = (case.h * case.upsample, case.w * case.upsample);
    let pairs = case.image_ids.len();
    let mut pixels: Vec<(Vec<f64>, (i64, i64))> = Vec::new();
    for v in 0..case.views {
        for y in 0..h {
            for x in 0..w {
                let iy = ((y as f64 + 0.5) * case.ids_h as f64 / h as f64).floor() as usize;
                let ix = ((x as f64 + 0.5) * case.ids_w as f64 / w as f64).floor() as usize;
                let id = case.ids[(v * case.ids_h + iy) * case.ids_w + ix];
                if id != 65535 {
                    let f: Vec<f64> = (0..case.d).map(|c| sample(case, v, c, y, x)).collect();
                    pixels.push((unit(&f), (case.image_ids[v % pairs], id)));
                }
            }
        }
    }

    let mut sums: BTreeMap<(i64, i64), (Vec<f64>, usize)> = BTreeMap::new();
    for (z, key) in &pixels {
        let (sum, count) = sums.entry(*key).or_insert_with(|| (vec![0.0; case.d], 0));
        sum.iter_mut().zip(z).for_each(|(s, x)| *s += x);
        *count += 1;
    }
    let keys: Vec<(i64, i64)> = sums.keys().copied().collect();
    let areas: Vec<usize> = sums.values().map(|(_, count)| *count).collect();

    let concept = |z: &[f64]| {
        let scores: Vec<f64> = case.codebook.iter().map(|e| dot(z, &unit(e))).collect();
        (0..scores.len()).fold(0, |best, k| if scores[k] > scores[best] { k } else { best })
    };
    let mut all: Vec<Candidate> = Vec::new();
    for ((image, _), (sum, count)) in &sums {
        let mean: Vec<f64> = sum.iter().map(|x| x / *count as f64).collect();
        let z = unit(&mean);
        all.push(Candidate { concept: concept(&z), z, image: *image, in_memory: false });
    }
    for (z, image) in case.memory.iter().flatten() {
        let concept = concept(z);
        all.push(Candidate { z: z.clone(), image: *image, concept, in_memory: true });
    }

    let mut quantization = 0.0;
    let mut weight = 0.0;
    for (s, area) in areas.iter().enumerate() {
        let distance = 1.0 - dot(&all[s].z, &unit(&case.codebook[all[s].concept]));
        let share = if case.by_pixel { *area as f64 } else { 1.0 };
        quantization += share * (distance + case.beta * distance);
        weight += share;
    }

    let (mut local, mut cooccurrence) = (0.0, 0.0);
    for (z, key) in &pixels {
        let own = keys.iter().position(|k| k == key).unwrap();
        let seen = |a: usize| !(all[a].in_memory && all[a].image == key.0 && case.mask_own_image);
        let positive = |a: usize| {
            all.iter().any(|other| other.image == all[a].image && other.concept == all[own].concept)
        };
        let sum = |take: &dyn Fn(usize) -> bool| -> f64 {
            (0..all.len())
                .filter(|a| take(*a))
                .map(|a| (case.kappa * dot(z, &all[a].z)).exp())
                .sum()
        };
        local += sum(&seen).ln() - case.kappa * dot(z, &all[own].z);
        let others = sum(&|a| seen(a) && positive(a) && a != own);
        cooccurrence += if case.exclude_self {
            if others > 0.0 {
                sum(&|a| seen(a) && a != own).ln() - others.ln()
            } else {
                sum(&seen).ln() - case.kappa * dot(z, &all[own].z)
            }
        } else {
            sum(&seen).ln() - sum(&|a| seen(a) && positive(a)).ln()
        };
    }
    Losses {
        local: local / pixels.len() as f64,
        quantization: quantization / weight,
        cooccurrence: cooccurrence / pixels.len() as f64,
        segments: keys.len(),
        pixels: pixels.len(),
    }
}
