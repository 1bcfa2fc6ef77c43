//! Where the nodes of a drawn graph lie.

/// Rounds of the spring layout.
const ROUNDS: usize = 500;
/// Rounds in which overlapping nodes are pushed apart, at most.
const PUSHES: usize = 500;

/// Length of a spring at rest in pixels, at most: small graphs do not fill the box.
const LONGEST: f64 = 170.0;

/// Places nodes of the given radii in a `width` x `height` box: joined ones close to each other,
/// none over another where the box has room.
///
/// Springs and repulsion as in Fruchterman and Reingold (1991), with a pull to the centre that
/// keeps separate parts together. The start is a spiral, so that the same graph is always drawn
/// the same.
pub(super) fn place(
    radii: &[f64],
    edges: &[(usize, usize)],
    (width, height): (f64, f64),
) -> Vec<[f64; 2]> {
    let mut at = spiral(radii.len());
    let ideal = springs(&mut at, edges);
    fit(&mut at, radii, (width, height), LONGEST / ideal);
    push_apart(&mut at, radii, (width, height));
    at
}

/// Points spread over the unit disc.
fn spiral(count: usize) -> Vec<[f64; 2]> {
    let golden = std::f64::consts::PI * (3.0 - 5.0_f64.sqrt());
    (0..count)
        .map(|i| {
            let (radius, angle) = (((i as f64 + 0.5) / count as f64).sqrt(), i as f64 * golden);
            [radius * libm::cos(angle), radius * libm::sin(angle)]
        })
        .collect()
}

/// Lets the nodes move, and gives the length of a spring at rest.
fn springs(at: &mut [[f64; 2]], edges: &[(usize, usize)]) -> f64 {
    let ideal = (4.0 / at.len().max(1) as f64).sqrt();
    let mut forces = vec![[0.0; 2]; at.len()];
    for round in 0..ROUNDS {
        forces.fill([0.0; 2]);
        for i in 0..at.len() {
            for j in i + 1..at.len() {
                let [x, y] = [at[i][0] - at[j][0], at[i][1] - at[j][1]];
                let scale = ideal * ideal / (x * x + y * y).max(1e-9);
                add(&mut forces, i, [x * scale, y * scale], 1.0);
                add(&mut forces, j, [x * scale, y * scale], -1.0);
            }
            add(&mut forces, i, at[i], -ideal);
        }
        for &(i, j) in edges {
            let [x, y] = [at[i][0] - at[j][0], at[i][1] - at[j][1]];
            let scale = (x * x + y * y).sqrt() / ideal;
            add(&mut forces, i, [x * scale, y * scale], -1.0);
            add(&mut forces, j, [x * scale, y * scale], 1.0);
        }
        // Steps shrink, so that the nodes come to rest.
        let step = 0.1 * (1.0 - round as f64 / ROUNDS as f64);
        for (point, force) in at.iter_mut().zip(&forces) {
            let length = (force[0] * force[0] + force[1] * force[1]).sqrt().max(1e-12);
            for axis in 0..2 {
                point[axis] += force[axis] / length * length.min(step);
            }
        }
    }
    ideal
}

fn add(forces: &mut [[f64; 2]], node: usize, [x, y]: [f64; 2], sign: f64) {
    forces[node][0] += sign * x;
    forces[node][1] += sign * y;
}

/// Stretches the drawing over the box, less the radii, by at most `longest`.
fn fit(at: &mut [[f64; 2]], radii: &[f64], (width, height): (f64, f64), longest: f64) {
    let margin = radii.iter().copied().fold(0.0, f64::max);
    for (axis, side) in [width, height].into_iter().enumerate() {
        let low = at.iter().map(|p| p[axis]).fold(f64::INFINITY, f64::min);
        let high = at.iter().map(|p| p[axis]).fold(f64::NEG_INFINITY, f64::max);
        let scale = ((side - 2.0 * margin) / (high - low).max(1e-9)).clamp(0.0, longest);
        for point in at.iter_mut() {
            point[axis] = 0.5 * side + scale * (point[axis] - 0.5 * (low + high));
        }
    }
}

fn push_apart(at: &mut [[f64; 2]], radii: &[f64], (width, height): (f64, f64)) {
    for _ in 0..PUSHES {
        let mut moved = false;
        for i in 0..at.len() {
            for j in i + 1..at.len() {
                let [x, y] = [at[i][0] - at[j][0], at[i][1] - at[j][1]];
                let (distance, wanted) = ((x * x + y * y).sqrt(), radii[i] + radii[j]);
                if distance >= wanted {
                    continue;
                }
                moved = true;
                // A little more than needed, or they would creep.
                let way = 0.5 * (wanted - distance) + 0.1;
                let [x, y] =
                    if distance > 1e-9 { [x / distance, y / distance] } else { [1.0, 0.0] };
                add(at, i, [x * way, y * way], 1.0);
                add(at, j, [x * way, y * way], -1.0);
            }
        }
        for (point, &radius) in at.iter_mut().zip(radii) {
            for (axis, side) in [width, height].into_iter().enumerate() {
                point[axis] = point[axis].min(side - radius).max(radius);
            }
        }
        if !moved {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stay_in_the_box_without_overlap_and_joined_ones_are_closer() {
        // Two rings of 20 without a link between them.
        let edges: Vec<(usize, usize)> = (0..40).map(|i| (i, i / 20 * 20 + (i + 1) % 20)).collect();
        let radii: Vec<f64> = (0..40).map(|i| 12.0 + f64::from(i % 5) * 3.0).collect();
        let at = place(&radii, &edges, (900.0, 700.0));
        assert_eq!(at, place(&radii, &edges, (900.0, 700.0)));
        let distance = |i: usize, j: usize| {
            ((at[i][0] - at[j][0]).powi(2) + (at[i][1] - at[j][1]).powi(2)).sqrt()
        };
        for i in 0..40 {
            assert!(at[i][0] >= radii[i] && at[i][0] <= 900.0 - radii[i], "{:?}", at[i]);
            assert!(at[i][1] >= radii[i] && at[i][1] <= 700.0 - radii[i], "{:?}", at[i]);
            for j in 0..i {
                assert!(distance(i, j) >= radii[i] + radii[j] - 1e-6, "{i} {j}");
            }
        }
        let joined = edges.iter().map(|&(i, j)| distance(i, j)).sum::<f64>() / 40.0;
        let across = (0..20).map(|i| distance(i, i + 20)).sum::<f64>() / 20.0;
        assert!(3.0 * joined < across, "{joined} {across}");
    }

    #[test]
    fn nothing_and_a_single_node_have_a_place() {
        assert!(place(&[], &[], (10.0, 10.0)).is_empty());
        assert_eq!(place(&[2.0], &[], (10.0, 20.0)), [[5.0, 10.0]]);
    }
}
