//! Lattice noise from integer hashes: the same bits on every machine.

/// A well mixed 32-bit hash of a lattice point (the finaliser is Wellons' "lowbias32").
pub(super) fn hash(x: i32, y: i32, seed: u32) -> u32 {
    let mut h = seed
        .wrapping_add((x as u32).wrapping_mul(0x9e37_79b1))
        .wrapping_add((y as u32).wrapping_mul(0x85eb_ca77))
        .wrapping_mul(0xc2b2_ae3d)
        ^ (x as u32).rotate_left(16)
        ^ (y as u32);
    h ^= h >> 16;
    h = h.wrapping_mul(0x7feb_352d);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846c_a68b);
    h ^ (h >> 16)
}

/// A hash as a number in `0.0..1.0`. 24 bits, so the conversion is exact.
pub(super) fn unit(hash: u32) -> f32 {
    (hash >> 8) as f32 / 16_777_216.0
}

/// The fade curve 3t² - 2t³, clamped outside `0..1`.
pub(super) fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Linear blend: `a` at 0, `b` at 1.
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// Value noise in `0..1`: random values on the integer lattice, blended in between.
pub(super) fn value(x: f32, y: f32, seed: u32) -> f32 {
    let (fx, fy) = (x.floor(), y.floor());
    let (ix, iy) = (fx as i32, fy as i32);
    let (tx, ty) = (smooth(x - fx), smooth(y - fy));
    let corner = |dx: i32, dy: i32| unit(hash(ix.wrapping_add(dx), iy.wrapping_add(dy), seed));
    mix(mix(corner(0, 0), corner(1, 0), tx), mix(corner(0, 1), corner(1, 1), tx), ty)
}

/// A sum of `octaves` value noises, each twice as fine and half as strong, scaled to `0..1`.
pub(super) fn fractal(x: f32, y: f32, seed: u32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut scale) = (0.0, 1.0, 0.0, 1.0);
    for octave in 0..octaves {
        // The offset keeps the lattices of two octaves from lining up at the origin.
        let shift = octave as f32 * 17.31;
        sum += weight * value(x * scale + shift, y * scale - shift, seed.wrapping_add(octave));
        total += weight;
        weight *= 0.5;
        scale *= 2.0;
    }
    sum / total
}

/// Distance to the nearest of one random point per lattice cell, and the hash of its cell.
pub(super) fn nearest_point(x: f32, y: f32, seed: u32) -> (f32, u32) {
    let (ix, iy) = (x.floor() as i32, y.floor() as i32);
    let (mut best, mut cell) = (f32::MAX, 0);
    for dy in -1..=1 {
        for dx in -1..=1 {
            let (cx, cy) = (ix.wrapping_add(dx), iy.wrapping_add(dy));
            let h = hash(cx, cy, seed);
            let px = cx as f32 + 0.2 + 0.6 * unit(h);
            let py = cy as f32 + 0.2 + 0.6 * unit(h.rotate_left(13).wrapping_mul(0x9e37_79b1));
            let distance = (px - x) * (px - x) + (py - y) * (py - y);
            if distance < best {
                (best, cell) = (distance, h);
            }
        }
    }
    (best.sqrt(), cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_stays_within_its_range_and_is_not_constant() {
        let values: Vec<f32> =
            (0..400).map(|i| fractal(i as f32 * 0.37 - 50.0, i as f32 * 0.11, 7, 4)).collect();
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((0.35..0.65).contains(&mean), "{mean}");
        let spread = values.iter().fold(0.0f32, |m, v| m.max((v - mean).abs()));
        assert!(spread > 0.15, "{spread}");
    }

    #[test]
    fn noise_is_continuous_across_lattice_lines() {
        let step = (value(2.999_9, 0.5, 3) - value(3.000_1, 0.5, 3)).abs();
        assert!(step < 1e-3, "{step}");
    }
}
