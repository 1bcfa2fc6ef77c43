//! The three losses against the plain loops of [`reference`](super::reference), and their
//! gradients against central differences.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tch::{Device, Kind, Tensor};

use super::dictionary::DictionaryConfig;
use super::reference::{self, Case, unit};
use super::*;

const D: usize = 4;

fn random_vector(rng: &mut Pcg64, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Two images in two views on a 2 x 3 grid enlarged twice, ids on 8 x 12, with void pixels, ids
/// of one view only and ids too small to survive; memory of two batches, some of it of the
/// batch's own images.
fn case(seed: u64) -> Case {
    let mut rng = Pcg64::seed_from_u64(seed);
    let (views, h, w, ids_h, ids_w) = (4, 2, 3, 8, 12);
    let embeddings = random_vector(&mut rng, views * D * h * w);
    let mut ids = Vec::new();
    for view in 0..views {
        for y in 0..ids_h {
            for x in 0..ids_w {
                // Blocks of 4 x 4; view 2 has an id of its own, each view a stray pixel.
                let block = (y / 4) * 3 + x / 4;
                ids.push(match (view, block, y, x) {
                    (_, _, 0, 0) => 400 + view as i64,
                    (_, 5, _, _) => VOID,
                    (2, 1, _, _) => 77,
                    (_, block, _, _) => (block as i64) / 2,
                });
            }
        }
    }
    let memory = vec![
        (0..5).map(|i| (unit(&random_vector(&mut rng, D)), [3, 9, 11][i % 3])).collect(),
        (0..4).map(|i| (unit(&random_vector(&mut rng, D)), [11, 20][i % 2])).collect(),
    ];
    Case {
        embeddings,
        views,
        d: D,
        h,
        w,
        upsample: 2,
        ids,
        ids_h,
        ids_w,
        image_ids: vec![9, 3],
        codebook: (0..6).map(|_| random_vector(&mut rng, D)).collect(),
        memory,
        kappa: 10.0,
        beta: 0.5,
        by_pixel: false,
        mask_own_image: true,
        exclude_self: false,
    }
}

struct Inputs {
    config: LossConfig,
    embeddings: Tensor,
    ids: Tensor,
    dictionary: Dictionary,
    memory: MemoryBank,
}

fn inputs(case: &Case) -> Inputs {
    let config = LossConfig {
        kappa: case.kappa,
        beta: case.beta,
        vq_reduce: if case.by_pixel { VqReduce::Pixel } else { VqReduce::Segment },
        mask_own_image: case.mask_own_image,
        cooc_exclude_self: case.exclude_self,
        upsample: case.upsample as i64,
        ..LossConfig::default()
    };
    let shape = [case.views, case.d, case.h, case.w].map(|n| n as i64);
    let embeddings = Tensor::from_slice(&case.embeddings).reshape(shape).set_requires_grad(true);
    let ids = Tensor::from_slice(&case.ids).reshape([
        case.views as i64,
        case.ids_h as i64,
        case.ids_w as i64,
    ]);
    let k = case.codebook.len() as i64;
    let codebook = Tensor::from_slice(&case.codebook.concat()).reshape([k, case.d as i64]);
    let dictionary = Dictionary::restore(
        &codebook,
        vec![1.0 / k as f64; k as usize],
        0,
        DictionaryConfig { concepts: k, ..DictionaryConfig::default() },
        0,
    )
    .unwrap();
    let mut memory = MemoryBank::new(case.memory.len());
    for batch in &case.memory {
        let z: Vec<f64> = batch.iter().flat_map(|(z, _)| z.clone()).collect();
        let z = Tensor::from_slice(&z).reshape([batch.len() as i64, case.d as i64]);
        let images: Vec<i64> = batch.iter().map(|(_, image)| *image).collect();
        let (image_ids, index) = segments::distinct_images(&images);
        let index = Tensor::from_slice(&index[..batch.len()]);
        memory.push(MemoryEntry::new(&z, &index, image_ids, 0).unwrap());
    }
    Inputs { config, embeddings, ids, dictionary, memory }
}

fn run(case: &Case, inputs: &Inputs) -> LossParts {
    compute_pairs(
        &inputs.config,
        &inputs.embeddings,
        &inputs.ids,
        &case.image_ids,
        &inputs.dictionary,
        &inputs.memory,
        0,
    )
    .unwrap()
}

fn assert_matches(case: &Case, what: &str) {
    let want = reference::losses(case);
    let got = run(case, &inputs(case));
    assert_eq!(got.stats.segments as usize, want.segments, "{what}");
    assert_eq!(got.stats.pixels as usize, want.pixels, "{what}");
    for (name, got, want) in [
        ("local", &got.local, want.local),
        ("quantization", &got.quantization, want.quantization),
        ("cooccurrence", &got.cooccurrence, want.cooccurrence),
    ] {
        let got = got.double_value(&[]);
        assert!((got - want).abs() < 1e-10, "{what}: {name} is {got}, expected {want}");
    }
    let total = got.local + got.quantization * 2.0 + got.cooccurrence;
    assert!((total - got.total).abs().double_value(&[]) < 1e-12, "{what}");
}

#[test]
fn all_losses_follow_their_definitions() {
    for seed in 0..6 {
        let base = case(seed);
        assert_matches(&base, &format!("seed {seed}"));
        assert_matches(&Case { memory: vec![], ..base.clone() }, "without memory");
        assert_matches(&Case { by_pixel: true, ..base.clone() }, "L_v by pixel");
        assert_matches(&Case { mask_own_image: false, ..base.clone() }, "own image in memory");
        assert_matches(&Case { exclude_self: true, ..base.clone() }, "without self");
        let lonely = Case { exclude_self: true, memory: vec![], ..base.clone() };
        assert_matches(&lonely, "without self or memory");
        assert_matches(&Case { image_ids: vec![9, 9], ..base.clone() }, "one image twice");
        assert_matches(&Case { upsample: 1, ..base.clone() }, "without enlargement");
        assert_matches(&Case { kappa: 50.0, ..base }, "a high concentration");
    }
}

#[test]
fn the_cases_hold_what_they_claim_to_hold() {
    let stats = run(&case(0), &inputs(&case(0))).stats;
    // Per image ids 0, 1, 2, and 77 in the one image of view 2; stray ids vanish.
    assert_eq!((stats.segments, stats.memory_segments), (7, 9));
    // A twelfth of each view's 4 x 6 cells, block 5 of 6, is void.
    assert_eq!(stats.pixels, 4 * 20);
}

/// A mistake in an option must show in the comparison above: each one changes the value.
#[test]
fn every_option_of_the_cases_matters() {
    for seed in 0..6 {
        let base = case(seed);
        let plain = reference::losses(&base);
        let differs = |a: f64, b: f64| (a - b).abs() > 1e-4;
        assert!(plain.cooccurrence > 0.0 && differs(plain.cooccurrence, plain.local));
        let seen = reference::losses(&Case { mask_own_image: false, ..base.clone() });
        assert!(differs(seen.local, plain.local));
        assert!(differs(seen.cooccurrence, plain.cooccurrence));
        let alone = reference::losses(&Case { memory: vec![], ..base.clone() });
        assert!(differs(alone.local, plain.local));
        let others = reference::losses(&Case { exclude_self: true, ..base.clone() });
        assert!(differs(others.cooccurrence, plain.cooccurrence));
        let by_pixel = reference::losses(&Case { by_pixel: true, ..base });
        assert!(differs(by_pixel.quantization, plain.quantization));
    }
}

#[test]
fn a_single_segment_without_memory_costs_nothing_but_its_quantization() {
    let base = case(1);
    for exclude_self in [false, true] {
        let single = Case {
            ids: vec![5; base.ids.len()],
            image_ids: vec![4, 4],
            memory: vec![],
            exclude_self,
            ..base.clone()
        };
        assert_matches(&single, "single segment");
        let inputs = inputs(&single);
        let parts = run(&single, &inputs);
        assert!(parts.local.double_value(&[]).abs() < 1e-12);
        assert!(parts.cooccurrence.double_value(&[]).abs() < 1e-12);
        parts.total.backward();
        assert_eq!(inputs.embeddings.grad().isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn cooccurrence_vanishes_when_one_concept_rules() {
    let one_concept = Case { codebook: vec![vec![1.0; D]], ..case(2) };
    let parts = run(&one_concept, &inputs(&one_concept));
    assert!(parts.cooccurrence.double_value(&[]).abs() < 1e-12);
    assert_eq!(parts.stats.codes_used, 1);
    assert!((parts.stats.perplexity - 1.0).abs() < 1e-12);
}

/// Central differences of `f` at `x`.
fn numeric(x: &[f64], f: &dyn Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    (0..x.len())
        .map(|i| {
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let up = f(&moved);
            moved[i] = x[i] - step;
            (up - f(&moved)) / (2.0 * step)
        })
        .collect()
}

fn assert_close(what: &str, got: &Tensor, want: &[f64], scale: f64) {
    let got: Vec<f64> = Vec::try_from(got.reshape([-1])).unwrap();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let want = want * scale;
        assert!((got - want).abs() < 1e-6 * (1.0 + want.abs()), "{what}[{i}]: {got} != {want}");
    }
}

#[test]
fn gradients_of_the_embeddings_are_those_of_the_definitions() {
    for seed in 0..2 {
        for exclude_self in [false, true] {
            let case = Case { exclude_self, ..case(seed) };
            let value = |pick: fn(&reference::Losses) -> f64| {
                numeric(&case.embeddings, &|x| {
                    pick(&reference::losses(&Case { embeddings: x.to_vec(), ..case.clone() }))
                })
            };
            let gradient = |pick: fn(&LossParts) -> &Tensor| {
                let inputs = inputs(&case);
                pick(&run(&case, &inputs)).backward();
                inputs.embeddings.grad()
            };
            assert_close("local", &gradient(|p| &p.local), &value(|l| l.local), 1.0);
            let cooccurrence = gradient(|p| &p.cooccurrence);
            assert_close("cooccurrence", &cooccurrence, &value(|l| l.cooccurrence), 1.0);
            // Of the value (1 + β)(1 − cos) only the share β reaches the segments.
            let share = case.beta / (1.0 + case.beta);
            let quantization = gradient(|p| &p.quantization);
            assert_close("quantization", &quantization, &value(|l| l.quantization), share);
        }
    }
}

#[test]
fn the_dictionary_learns_from_the_first_half_of_the_quantization_loss_only() {
    for by_pixel in [false, true] {
        let case = Case { by_pixel, ..case(3) };
        let inputs = inputs(&case);
        let parts = run(&case, &inputs);
        (&parts.local + &parts.cooccurrence).backward();
        assert!(!inputs.dictionary.codebook.grad().defined());

        let parts = run(&case, &inputs);
        parts.quantization.backward();
        let want = numeric(&case.codebook.concat(), &|x| {
            let codebook = x.chunks(D).map(<[f64]>::to_vec).collect();
            reference::losses(&Case { codebook, ..case.clone() }).quantization
        });
        let got = inputs.dictionary.codebook.grad();
        assert_close("codebook", &got, &want, 1.0 / (1.0 + case.beta));
        assert!(got.abs().max().double_value(&[]) > 1e-3);
    }
}

#[test]
fn nothing_flows_into_the_memory() {
    let case = case(4);
    let mut inputs = inputs(&case);
    for entry in &mut inputs.memory.entries {
        entry.z = entry.z.copy().set_requires_grad(true);
    }
    let parts = run(&case, &inputs);
    parts.total.backward();
    assert!(inputs.memory.entries.iter().all(|entry| !entry.z.grad().defined()));
    assert!(!parts.entry.z.requires_grad());
}

#[test]
fn cooccurrence_counts_from_its_start_on() {
    let case = case(5);
    let mut inputs = inputs(&case);
    inputs.config.cooc_start = 10;
    let at = |step| {
        let Inputs { config, embeddings, ids, dictionary, memory } = &inputs;
        compute_pairs(config, embeddings, ids, &case.image_ids, dictionary, memory, step).unwrap()
    };
    let value = |t: &Tensor| t.double_value(&[]);
    let (before, after) = (at(9), at(10));
    assert!(
        (value(&after.total) - value(&before.total) - value(&after.cooccurrence)).abs() < 1e-12
    );
    assert!(value(&after.cooccurrence) > 0.0);
    assert_eq!(after.entry.step, 10);
}

#[test]
fn single_and_half_precision_agree_with_double() {
    let case = Case { kappa: MAX_KAPPA, ..case(6) };
    let exact = run(&case, &inputs(&case)).total.double_value(&[]);
    for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.05)] {
        let mut inputs = inputs(&case);
        inputs.embeddings = inputs.embeddings.detach().to_kind(kind).set_requires_grad(true);
        let total = run(&case, &inputs).total;
        total.backward();
        let relative = (total.double_value(&[]) / exact - 1.0).abs();
        assert!(relative < tolerance, "{kind:?}: {relative}");
        assert_eq!(inputs.embeddings.grad().isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn tensors_that_do_not_belong_together_are_refused() {
    let case = case(7);
    let good = inputs(&case);
    let fails = |embeddings: &Tensor, ids: &Tensor, images: &[i64]| {
        compute_pairs(&good.config, embeddings, ids, images, &good.dictionary, &good.memory, 0)
            .unwrap_err()
            .to_string()
    };
    let message = fails(&good.embeddings.narrow(1, 0, 3), &good.ids, &case.image_ids);
    assert!(message.contains("the dictionary has shape [6, 4]"), "{message}");
    let message = fails(&good.embeddings, &good.ids, &[1]);
    assert!(message.contains("[2, D, h, w]"), "{message}");
    let message = fails(&good.embeddings, &good.ids.get(0), &case.image_ids);
    assert!(message.contains("segment ids"), "{message}");
    let message = fails(&good.embeddings, &(&good.ids + 1), &case.image_ids);
    assert!(message.contains("0..=65535"), "{message}");
    let void = Tensor::full_like(&good.ids, VOID);
    let message = fails(&good.embeddings, &void, &case.image_ids);
    assert!(message.contains("no pixel"), "{message}");
}

#[test]
fn views_in_groups_are_views_all_the_same() {
    let case = case(4);
    let inputs = inputs(&case);
    let whole = run(&case, &inputs);
    let group = |embeddings: Tensor, start| ViewGroup {
        embeddings: embeddings.narrow(0, start, 2),
        ids: inputs.ids.narrow(0, start, 2),
        per_image: 1,
    };
    let groups = [0, 2].map(|start| group(inputs.embeddings.shallow_clone(), start));
    let compute = |groups: &[ViewGroup]| {
        let (dictionary, memory) = (&inputs.dictionary, &inputs.memory);
        compute(&inputs.config, groups, &case.image_ids, dictionary, memory, 0)
    };
    let parts = compute(&groups).unwrap();
    assert_eq!(parts.stats, whole.stats);
    assert_eq!((&parts.total, &parts.entry.z), (&whole.total, &whole.entry.z));
    assert_eq!(pool(&inputs.config, &groups, &case.image_ids).unwrap().z, whole.entry.z);
    // A group of another size that is void throughout changes nothing.
    let [a, b] = groups;
    let void = ViewGroup {
        embeddings: Tensor::ones([4, D as i64, 1, 1], (Kind::Double, Device::Cpu)),
        ids: Tensor::full([4, 3, 3], VOID, (Kind::Int64, Device::Cpu)),
        per_image: 2,
    };
    assert_eq!(compute(&[a, void, b]).unwrap().total, whole.total);
    let wrong = ViewGroup { per_image: 3, ..group(inputs.embeddings.shallow_clone(), 0) };
    assert!(matches!(compute(&[wrong]), Err(LossError::Shape { .. })));
}

#[test]
fn settings_outside_their_range_are_refused() {
    let default = LossConfig::default;
    for (key, config) in [
        ("kappa", LossConfig { kappa: 0.0, ..default() }),
        ("kappa", LossConfig { kappa: f64::NAN, ..default() }),
        ("kappa", LossConfig { kappa: 100.0, ..default() }),
        ("beta", LossConfig { beta: -0.1, ..default() }),
        ("lambda_v", LossConfig { lambda_v: f64::INFINITY, ..default() }),
        ("upsample", LossConfig { upsample: 0, ..default() }),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
    default().validate().unwrap();
}

/// `cargo test -p conceptseg-train --lib losses -- --ignored --nocapture`
#[test]
#[ignore = "a timing, not a check"]
fn time_of_a_full_batch() {
    let (views, grid, crop) = (16, 16, 128);
    let f =
        Tensor::randn([views, 32, grid, grid], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let ids = Tensor::arange(crop * crop, (Kind::Int64, Device::Cpu)).reshape([crop, crop]);
    let ids = (ids.divide_scalar_mode(crop * 20, "floor") * 7
        + ids.remainder(crop).divide_scalar_mode(20, "floor"))
    .expand([views, crop, crop], false);
    let samples = Tensor::randn([2000, 32], (Kind::Float, Device::Cpu));
    let start = std::time::Instant::now();
    let dictionary = Dictionary::init_kmeans(&samples, DictionaryConfig::default(), 0).unwrap();
    println!("k-means: {:?}", start.elapsed());
    let mut memory = MemoryBank::new(2);
    for step in 0..5u64 {
        let start = std::time::Instant::now();
        let images: Vec<i64> = (0..8).map(|i| i + 8 * step as i64).collect();
        let parts =
            compute_pairs(&LossConfig::default(), &f, &ids, &images, &dictionary, &memory, step)
                .unwrap();
        let forward = start.elapsed();
        parts.total.backward();
        println!("forward {forward:?}, with backward {:?}, {:?}", start.elapsed(), parts.stats);
        memory.push(parts.entry);
    }
}
