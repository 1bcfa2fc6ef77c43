//! A run on a handful of generated images.

use std::collections::BTreeMap;

use image::RgbImage;
use tch::Kind;
use tch::nn::VarStore;

use super::*;
use crate::config::Precision;
use crate::data::loader::BatchMaker;
use crate::data::{DatasetConfig, VOID};
use crate::network::{NetworkConfig, Preset};

/// Coloured shapes, so that there is more than one segment to learn from.
fn dataset(dir: &Path, count: u32) -> Arc<Dataset> {
    let paths = (0..count)
        .map(|i| {
            let path = dir.join(format!("{i}.png"));
            RgbImage::from_fn(96, 80, |x, y| {
                let disk = (x as i32 - 30 - 5 * i as i32).pow(2) + (y as i32 - 40).pow(2) < 400;
                let shade = (x + y + 10 * i) as u8;
                if disk { image::Rgb([220, shade, 30]) } else { image::Rgb([30, 90, shade]) }
            })
            .save(&path)
            .unwrap();
            path
        })
        .collect();
    Arc::new(Dataset::load(paths, DatasetConfig::default(), &|_, _| ()).unwrap())
}

fn config() -> TrainConfig {
    let mut config = TrainConfig {
        network: NetworkConfig {
            preset: Preset::EdgeMobilenetV2,
            dim: 8,
            head_channels: 8,
            ..NetworkConfig::default()
        },
        start_segments: 30,
        seed: 5,
        ..TrainConfig::default()
    };
    config.data.batch = 2;
    config.data.crop = 64;
    config.data.threads = 1;
    config.dictionary.concepts = 6;
    // Entries die at once, so that the replacement is part of what is compared.
    config.dictionary.usage_decay = 0.5;
    config.dictionary.dead_threshold = 0.5;
    config.optimizer.iterations = 6;
    config.optimizer.freeze_early = false;
    config.checkpoint.every = 0;
    config
}

mod beyond;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn options(log_dir: &Path, resume: bool) -> RunOptions<'_> {
    RunOptions {
        backbone: None,
        log_dir,
        device: Device::Cpu,
        resume,
        stop: &GO_ON,
        processes: None,
    }
}

/// Bytes of everything that a step changes, by name.
fn bytes(state: &TrainState) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut add = |name: String, tensor: &Tensor| {
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.detach().contiguous().copy_data_u8(&mut bytes, tensor.numel());
        all.insert(name, bytes);
    };
    for parameter in state.network.parameters() {
        add(format!("network {}", parameter.name), &parameter.tensor);
    }
    for parameter in state.teacher.iter().flat_map(|teacher| teacher.network.parameters()) {
        add(format!("teacher {}", parameter.name), &parameter.tensor);
    }
    for (name, momentum) in state.sgd.momenta() {
        add(format!("momentum {name}"), momentum);
    }
    add("codebook".into(), &state.dictionary.codebook);
    add("usage".into(), &Tensor::from_slice(&state.dictionary.usage));
    add("totals".into(), &Tensor::from_slice(&state.totals));
    for (i, entry) in state.memory.entries.iter().enumerate() {
        add(format!("memory {i} z"), &entry.z);
        add(format!("memory {i} image"), &entry.image);
        add(format!("memory {i} ids"), &Tensor::from_slice(&entry.image_ids));
    }
    let counts = [state.step, state.next_batch, state.void_batches, state.dictionary.revived];
    all.insert("counts".into(), counts.iter().flat_map(|n| n.to_le_bytes()).collect());
    all
}

fn steps(run: &mut Run<'_>, count: u64) {
    for _ in 0..count {
        run.step().unwrap();
    }
}

#[test]
fn a_resumed_run_is_the_unbroken_run_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 5);
    for accumulate in [1, 2] {
        let mut config = config();
        config.optimizer.accumulate = accumulate;
        assert_resumes(&config, &dataset);
    }
}

/// Six steps are three steps and, after a checkpoint, three more.
fn assert_resumes(config: &TrainConfig, dataset: &Arc<Dataset>) {
    let logs = tempfile::tempdir().unwrap();
    let mut straight = Run::open(config, dataset, &options(logs.path(), false)).unwrap();
    steps(&mut straight, 6);
    assert!(straight.state.dictionary.revived > 0, "no entry was replaced");
    assert_eq!(straight.state.next_batch, 6 * config.optimizer.accumulate);

    let mut first = Run::open(config, dataset, &options(logs.path(), false)).unwrap();
    steps(&mut first, 3);
    first.save().unwrap();
    let saved = bytes(&first.state);
    drop(first);
    let mut second = Run::open(config, dataset, &options(logs.path(), true)).unwrap();
    assert_eq!(bytes(&second.state), saved);
    steps(&mut second, 3);

    let (expected, found) = (bytes(&straight.state), bytes(&second.state));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, value) in &expected {
        assert!(found[name] == *value, "{name} differs");
    }
}

#[test]
fn a_run_that_is_stopped_continues_and_leaves_a_checkpoint_of_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let logs = tempfile::tempdir().unwrap();
    let mut config = config();
    config.optimizer.iterations = 2;
    let stop = AtomicBool::new(true);
    let stopped = |resume| {
        train(&config, &dataset, &RunOptions { stop: &stop, ..options(logs.path(), resume) })
    };
    assert!(matches!(stopped(false), Err(TrainError::Stopped)));
    let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    steps(&mut run, 1);
    run.save().unwrap();
    let stopped = stopped(true).unwrap();
    let Outcome::Interrupted { step: 1, checkpoint } = stopped else {
        panic!("{stopped:?}");
    };
    assert_eq!(checkpoint, logs.path().join(checkpoint::FILE_NAME));
    let Outcome::Finished(trained) = train(&config, &dataset, &options(logs.path(), true)).unwrap()
    else {
        panic!("not finished");
    };
    assert!(trained.loss_start_end.0.is_finite() && trained.seconds > 0.0 && !trained.pretrained);
    // What comes after the training can be repeated without it.
    let Outcome::Finished(again) = train(&config, &dataset, &options(logs.path(), true)).unwrap()
    else {
        panic!("not finished");
    };
    assert_eq!(again.loss_start_end, trained.loss_start_end);
    assert_eq!(again.dictionary.codebook, trained.dictionary.codebook);
}

#[test]
fn two_accumulated_batches_average_their_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let mut config = config();
    // Without memory and statistics of the batch the gradient of a batch is its own.
    config.memory_batches = 0;
    let logs = tempfile::tempdir().unwrap();
    let gradients = |run: &Run<'_>| -> Vec<Tensor> {
        run.state.network.parameters().iter().map(|p| p.tensor.grad()).collect()
    };
    let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    let mut parts = Vec::new();
    for _ in 0..2 {
        run.add_batch(0.0, true, &mut StepSums::default()).unwrap();
        parts.push(gradients(&run).iter().map(Tensor::copy).collect::<Vec<_>>());
        run.state.sgd.step(0.0, 0.0, 1.0);
    }
    config.optimizer.accumulate = 2;
    let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    for _ in 0..2 {
        run.add_batch(0.0, true, &mut StepSums::default()).unwrap();
    }
    for (i, mean) in gradients(&run).iter().enumerate().filter(|(_, g)| g.defined()) {
        let expected = (&parts[0][i] + &parts[1][i]) / 2.0;
        let error = (mean - &expected).abs().max().double_value(&[]);
        assert!(error <= 1e-5 * (1.0 + expected.abs().max().double_value(&[])), "{i}: {error}");
    }
}

#[test]
fn a_checkpoint_of_another_recipe_or_of_other_images_is_refused_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 3);
    let logs = tempfile::tempdir().unwrap();
    let config = config();
    let run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    run.save().unwrap();
    let reopen = |config: &TrainConfig, dataset: &Arc<Dataset>| {
        Run::open(config, dataset, &options(logs.path(), true)).err().map(|e| e.to_string())
    };
    // What does not change the run may change.
    let mut other = config.clone();
    other.name = "another".into();
    other.data.threads = 2;
    other.checkpoint.every = 7;
    assert_eq!(reopen(&other, &dataset), None);
    other.optimizer.lr = 0.5;
    other.loss.kappa = 12.0;
    let text = reopen(&other, &dataset).unwrap();
    assert!(
        text.contains("loss.kappa was 10.0, is 12.0, optimizer.lr was 0.001, is 0.5;"),
        "{text}"
    );
    let more = tempfile::tempdir().unwrap();
    let text = reopen(&config, &self::dataset(more.path(), 4)).unwrap();
    assert!(text.contains("3 images") && text.contains("4 images"), "{text}");
    // The same images at another place are the same.
    let moved = tempfile::tempdir().unwrap();
    assert_eq!(reopen(&config, &self::dataset(moved.path(), 3)), None);
}

#[test]
fn a_damaged_or_absent_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 3);
    let logs = tempfile::tempdir().unwrap();
    let config = config();
    let reopen = || Run::open(&config, &dataset, &options(logs.path(), true)).err().unwrap();
    let missing = TrainError::Checkpoint(CheckpointError::Missing {
        path: logs.path().join(checkpoint::FILE_NAME),
    });
    assert_eq!(reopen().to_string(), missing.to_string());
    let run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    run.save().unwrap();
    let good = std::fs::read(&run.checkpoint).unwrap();
    let text = |bytes: &[u8]| {
        std::fs::write(&run.checkpoint, bytes).unwrap();
        reopen().to_string()
    };
    assert!(text(&good[..good.len() - 1]).contains("no checkpoint that can be used"));
    assert!(text(b"").contains("no checkpoint that can be used"));
    // A tensor that is called otherwise, and a later format. The lengths stay.
    let replaced = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let renamed = text(&replaced("dictionary.usage", "dictionary.usagf"));
    assert!(renamed.contains("it has no `dictionary.usage`"), "{renamed}");
    let later = text(&replaced("\\\"format\\\":1", "\\\"format\\\":2"));
    assert!(later.contains("its format is 2, this program has 1"), "{later}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 3);
    let logs = tempfile::tempdir().unwrap();
    let config = config();
    let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    run.step().unwrap();
    let parameters = run.state.network.parameters();
    let last = parameters.iter().rfind(|p| p.trainable).unwrap();
    let _ = last.tensor.detach().fill_(f64::NAN);
    let error = run.step().unwrap_err();
    let folder = logs.path().join("diverged-step-1");
    let text = error.to_string();
    assert!(text.starts_with("the loss is NaN at step 1; the batch is kept in "), "{text}");
    assert!(text.contains(&folder.display().to_string()), "{text}");

    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("batch.json")).unwrap()).unwrap();
    assert_eq!(report["report"]["total"], "NaN");
    assert_eq!(report["report"]["step"], 1);
    let batch = run.state.next_batch - 1;
    let mut maker = BatchMaker::new(Arc::clone(&dataset), run.batches.clone()).unwrap();
    let batch = maker.make(batch).unwrap();
    for (b, described) in report["images"].as_array().unwrap().iter().enumerate() {
        assert_eq!(described["index"], batch.image_index[b]);
        for view in 0..2 {
            let names = &described["views"][view];
            let open = |key: &str| image::open(folder.join(names[key].as_str().unwrap())).unwrap();
            let entry = view * 2 + b;
            let ids = open("ids").into_luma16();
            assert_eq!(ids.as_raw().as_slice(), &batch.ids[entry * 4096..(entry + 1) * 4096]);
            assert_eq!(names["finite"], true);
            let picture = open("pixels").into_rgb8();
            let pixel = f64::from(picture.get_pixel(3, 2)[1]) / 255.0;
            let value = batch.images[entry * 3 * 4096 + 4096 + 2 * 64 + 3];
            let value = f64::from(value * run.batches.std[1] + run.batches.mean[1]);
            assert!((pixel - value).abs() < 0.003, "{pixel} {value}");
        }
    }
}

#[test]
fn a_gradient_that_is_no_number_stops_the_run_before_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 3);
    let logs = tempfile::tempdir().unwrap();
    let config = config();
    let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    // A gradient left behind is added to.
    (&run.state.dictionary.codebook * f64::INFINITY).sum(Kind::Float).backward();
    let before = run.state.dictionary.codebook.copy();
    let text = run.step().unwrap_err().to_string();
    assert!(text.starts_with("the gradient of dictionary is not finite at step 0;"), "{text}");
    assert_eq!(run.state.dictionary.codebook, before);
    assert!(logs.path().join("diverged-step-0/batch.json").exists());
}

/// Outputs and gradients of all variables of one pass.
fn pass(network: &Network, images: &Tensor, kind: Kind, train: bool) -> (Tensor, Tensor) {
    let out = network.forward(&images.to_kind(kind), train);
    assert_eq!(out.kind(), kind);
    out.to_kind(Kind::Float).square().mean(Kind::Float).backward();
    let mut all = Vec::new();
    for parameter in network.parameters().iter().filter(|p| p.trainable) {
        let mut gradient = parameter.tensor.grad();
        assert_eq!((gradient.kind(), parameter.tensor.kind()), (Kind::Float, Kind::Float));
        all.push(gradient.to_kind(Kind::Double).reshape([-1]));
        let _ = gradient.zero_();
    }
    (out.detach().to_kind(Kind::Double), Tensor::cat(&all, 0))
}

#[test]
fn a_bfloat16_pass_has_single_precision_gradients() {
    let cosine = |a: &Tensor, b: &Tensor| {
        let product = (a * b).sum(Kind::Double).double_value(&[]);
        product / (a.norm().double_value(&[]) * b.norm().double_value(&[]))
    };
    // A batch norm over the two cells that this batch has in the paper's 1x1 bin gives 1 and -1
    // whatever goes in, so there the recorded statistics are used.
    for (preset, train) in [
        (Preset::EdgeMobilenetV2, true),
        (Preset::EdgeResnet18, true),
        (Preset::PaperResnet50, false),
    ] {
        let settings = NetworkConfig { preset, ..NetworkConfig::default() };
        let network = Network::new(&VarStore::new(Device::Cpu), &settings, 3).unwrap();
        let images = Tensor::randn([2, 3, 48, 48], (Kind::Float, Device::Cpu));
        let (full, full_gradient) = pass(&network, &images, Kind::Float, train);
        let (half, half_gradient) = pass(&network, &images, Kind::BFloat16, train);
        let (out, gradient) = (cosine(&full, &half), cosine(&full_gradient, &half_gradient));
        println!("{preset:?}: cosine of the output {out:.5}, of the gradient {gradient:.5}");
        assert!(out > 0.99 && gradient > 0.95, "{preset:?}: {out} {gradient}");
    }
}

#[test]
fn bfloat16_follows_single_precision() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let losses = |precision| {
        let mut config = config();
        config.precision = precision;
        config.dictionary.dead_threshold = 0.0;
        let logs = tempfile::tempdir().unwrap();
        let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
        steps(&mut run, 4);
        run.state.totals
    };
    let (full, half) = (losses(Precision::Fp32), losses(Precision::Bf16));
    println!("losses in single precision {full:?}, in bfloat16 {half:?}");
    // Batch statistics over the few cells of these views magnify the rounding.
    for (a, b) in full.iter().zip(&half) {
        assert!((a - b).abs() < 0.2 * a, "{full:?} {half:?}");
    }
}

#[test]
fn batches_without_segments_are_passed_over_and_counted_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let logs = tempfile::tempdir().unwrap();
    let config = config();
    let mut run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    let mut maker = BatchMaker::new(Arc::clone(&dataset), run.batches.clone()).unwrap();
    let real = maker.make(2).unwrap();
    let void = Batch { ids: vec![VOID; real.ids.len()], ..real.clone() };
    let mut batches = vec![real, void.clone(), void.clone()];
    run.next = Box::new(move || Ok(batches.pop().unwrap()));
    run.step().unwrap();
    assert_eq!((run.state.step, run.state.next_batch, run.state.void_batches), (1, 3, 2));
    run.next = Box::new(move || Ok(void.clone()));
    assert!(matches!(run.step(), Err(TrainError::Loss(LossError::NoSegments))));
}

#[test]
fn two_processes_hold_the_same_state_and_only_the_first_writes() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 5);
    let logs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let config = config();
    let states = crate::distributed::tests::in_processes(2, |all| {
        let log = logs[all.rank()].path();
        let options = RunOptions { processes: Some(all), ..options(log, false) };
        let mut run = Run::open(&config, &dataset, &options).unwrap();
        steps(&mut run, 3);
        run.save().unwrap();
        assert!(!run.stopped(&GO_ON).unwrap());
        assert!(run.stopped(&AtomicBool::new(all.rank() == 1)).unwrap());
        bytes(&run.state)
    });
    for (name, value) in &states[0] {
        assert!(states[1][name] == *value, "{name} differs");
    }
    assert!(logs[0].path().join(checkpoint::FILE_NAME).exists());
    assert_eq!(std::fs::read_dir(logs[1].path()).unwrap().count(), 0);

    // Both continue from the one file.
    let resumed = crate::distributed::tests::in_processes(2, |all| {
        let options = RunOptions { processes: Some(all), ..options(logs[0].path(), true) };
        let mut run = Run::open(&config, &dataset, &options).unwrap();
        assert_eq!(run.state.step, 3);
        steps(&mut run, 1);
        bytes(&run.state)
    });
    for (name, value) in &resumed[0] {
        assert!(resumed[1][name] == *value, "{name} differs");
    }
}
