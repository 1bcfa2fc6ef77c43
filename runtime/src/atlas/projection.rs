//! The codebook in the plane: concepts that are alike lie close to each other.
//!
//! t-SNE (van der Maaten and Hinton, 2008) on the cosine distances of unit rows. It starts from
//! the two principal axes instead of chance and sums in a fixed order, so that the same codebook
//! always gives the same picture.

use rayon::prelude::*;

use crate::bundle::Codebook;

/// Neighbours that a concept attends to, about.
const PERPLEXITY: f64 = 15.0;
/// Rounds of gradient descent.
const ROUNDS: usize = 500;
/// Rounds with all attractions [`EXAGGERATION`] times as strong, in which groups form.
const EARLY: usize = 100;
const EXAGGERATION: f64 = 12.0;
/// Bisections to find the width of a concept's neighbourhood.
const BISECTIONS: usize = 50;
/// Rounds of power iteration for each principal axis.
const POWERS: usize = 60;

/// A place for each concept, both coordinates 0..1.
pub fn project(codebook: &Codebook) -> Vec<[f32; 2]> {
    let n = codebook.count;
    let mut at = principal(codebook);
    if n > 3 {
        descend(&mut at, &attractions(codebook));
    }
    spread(&at)
}

/// Cosine between two concepts.
pub(super) fn cosine(codebook: &Codebook, i: usize, j: usize) -> f64 {
    codebook.row(i).iter().zip(codebook.row(j)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Scales each axis to 0..1.
fn spread(at: &[[f64; 2]]) -> Vec<[f32; 2]> {
    let range = |axis: usize| {
        let values = at.iter().map(|p| p[axis]);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        (low, values.fold(f64::NEG_INFINITY, f64::max) - low)
    };
    let ranges = [range(0), range(1)];
    let place = |p: &[f64; 2]| {
        [0, 1].map(|axis| {
            let (low, width) = ranges[axis];
            if width > 0.0 { ((p[axis] - low) / width) as f32 } else { 0.5 }
        })
    };
    at.iter().map(place).collect()
}

/// The coordinates along the two principal axes, small.
fn principal(codebook: &Codebook) -> Vec<[f64; 2]> {
    let (n, d) = (codebook.count, codebook.dim);
    let mut mean = vec![0.0; d];
    for id in 0..n {
        for (sum, &v) in mean.iter_mut().zip(codebook.row(id)) {
            *sum += f64::from(v) / n as f64;
        }
    }
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|id| codebook.row(id).iter().zip(&mean).map(|(&v, m)| f64::from(v) - m).collect())
        .collect();
    let mut at = vec![[0.0; 2]; n];
    for axis in 0..2 {
        // Any start that is not orthogonal to the axis will do; all of one sign could be.
        let mut direction: Vec<f64> = (0..d).map(|i| libm::cos(1.0 + i as f64)).collect();
        for _ in 0..POWERS {
            let mut next = vec![0.0; d];
            for row in &rows {
                let along: f64 = row.iter().zip(&direction).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(row).for_each(|(sum, v)| *sum += along * v);
            }
            let length = next.iter().map(|v| v * v).sum::<f64>().sqrt();
            if length < 1e-12 {
                break;
            }
            direction = next.into_iter().map(|v| v / length).collect();
        }
        for (point, row) in at.iter_mut().zip(&mut rows) {
            let along: f64 = row.iter().zip(&direction).map(|(a, b)| a * b).sum();
            point[axis] = 1e-2 * along;
            row.iter_mut().zip(&direction).for_each(|(v, d)| *v -= along * d);
        }
    }
    at
}

/// For each concept its neighbours and how strongly they attract each other; the sum over all
/// pairs in both directions is 1.
fn attractions(codebook: &Codebook) -> Vec<Vec<(usize, f64)>> {
    let n = codebook.count;
    let perplexity = PERPLEXITY.min((n - 1) as f64 / 3.0);
    let kept = ((3.0 * perplexity) as usize).clamp(1, n - 1);
    let one_way: Vec<Vec<(usize, f64)>> = (0..n)
        .into_par_iter()
        .map(|i| {
            let distance = |j| 2.0 - 2.0 * cosine(codebook, i, j);
            let mut near: Vec<(usize, f64)> =
                (0..n).filter(|&j| j != i).map(|j| (j, distance(j).max(0.0))).collect();
            near.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            near.truncate(kept);
            weigh(&near, perplexity)
        })
        .collect();
    let mut both: Vec<Vec<(usize, f64)>> = vec![Vec::new(); n];
    for (i, near) in one_way.iter().enumerate() {
        for &(j, p) in near {
            let p = p / (2.0 * n as f64);
            both[i].push((j, p));
            both[j].push((i, p));
        }
    }
    both
}

/// Gaussian weights of squared distances, rising, whose perplexity is as asked for.
fn weigh(near: &[(usize, f64)], perplexity: f64) -> Vec<(usize, f64)> {
    let nearest = near.first().map_or(0.0, |&(_, d)| d);
    let weights = |beta: f64| -> (Vec<f64>, f64) {
        let raw: Vec<f64> = near.iter().map(|&(_, d)| libm::exp(-beta * (d - nearest))).collect();
        let sum: f64 = raw.iter().sum();
        let shares: Vec<f64> = raw.iter().map(|w| w / sum).collect();
        let entropy = -shares.iter().filter(|&&p| p > 0.0).map(|&p| p * libm::log(p)).sum::<f64>();
        (shares, entropy)
    };
    let (mut low, mut high) = (1e-3_f64, 1e6_f64);
    for _ in 0..BISECTIONS {
        let middle = (low * high).sqrt();
        if weights(middle).1 > libm::log(perplexity) { low = middle } else { high = middle }
    }
    near.iter().map(|&(j, _)| j).zip(weights((low * high).sqrt()).0).collect()
}

fn descend(at: &mut [[f64; 2]], attractions: &[Vec<(usize, f64)>]) {
    let n = at.len();
    // A rate that grows with the number of points, as usual.
    let rate = (n as f64 / EXAGGERATION).max(50.0);
    let mut speed = vec![[0.0; 2]; n];
    let mut gain = vec![[1.0; 2]; n];
    for round in 0..ROUNDS {
        let (pull, momentum) = if round < EARLY { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let forces: Vec<([f64; 2], [f64; 2], f64)> = (0..n)
            .into_par_iter()
            .map(|i| {
                let offset = |j: usize| [at[i][0] - at[j][0], at[i][1] - at[j][1]];
                let heavy = |[x, y]: [f64; 2]| 1.0 / (1.0 + x * x + y * y);
                let (mut apart, mut sum, mut together) = ([0.0; 2], 0.0, [0.0; 2]);
                for j in (0..n).filter(|&j| j != i) {
                    let [x, y] = offset(j);
                    let q = heavy([x, y]);
                    sum += q;
                    apart[0] += q * q * x;
                    apart[1] += q * q * y;
                }
                for &(j, p) in &attractions[i] {
                    let [x, y] = offset(j);
                    let q = heavy([x, y]);
                    together[0] += p * q * x;
                    together[1] += p * q * y;
                }
                (together, apart, sum)
            })
            .collect();
        let total: f64 = forces.iter().map(|f| f.2).sum::<f64>().max(1e-12);
        for (i, (together, apart, _)) in forces.iter().enumerate() {
            for axis in 0..2 {
                let gradient = 4.0 * (pull * together[axis] - apart[axis] / total);
                let same = (gradient > 0.0) == (speed[i][axis] > 0.0);
                let g: &mut f64 = &mut gain[i][axis];
                *g = if same { (*g * 0.8).max(0.01) } else { *g + 0.2 };
                speed[i][axis] = momentum * speed[i][axis] - rate * *g * gradient;
                at[i][axis] += speed[i][axis];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three bundles of vectors around different axes, `each` of them.
    fn bundles(each: usize) -> Codebook {
        let mut vectors = Vec::new();
        for i in 0..3 * each {
            let mut row = [0.0f32; 8];
            row[i % 3] = 1.0;
            for (axis, v) in row.iter_mut().enumerate() {
                *v += 0.2 * libm::cosf((7 * i + 3 * axis) as f32);
            }
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            vectors.extend(row.map(|v| v / norm));
        }
        Codebook::new(3 * each, 8, vectors).unwrap()
    }

    #[test]
    fn alike_concepts_lie_together_in_every_run() {
        let codebook = bundles(20);
        let at = project(&codebook);
        assert_eq!(at, project(&codebook));
        assert!(at.iter().flatten().all(|v| (0.0..=1.0).contains(v)));
        let distance =
            |i: usize, j: usize| (at[i][0] - at[j][0]).powi(2) + (at[i][1] - at[j][1]).powi(2);
        let same = (0..60).filter(|&i| {
            let nearest = (0..60).filter(|&j| j != i);
            let nearest = nearest.min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
            nearest.unwrap() % 3 == i % 3
        });
        assert!(same.count() >= 58);
    }

    #[test]
    fn the_smallest_dictionaries_have_places() {
        for count in 1..6 {
            let vectors = (0..count).flat_map(|i| if i % 2 == 0 { [1.0, 0.0] } else { [0.0, 1.0] });
            let at = project(&Codebook::new(count, 2, vectors.collect()).unwrap());
            assert_eq!(at.len(), count);
            assert!(at.iter().flatten().all(|v| v.is_finite()));
        }
    }
}
