//! What the recipes can switch on beyond the paper.

use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::bundle::SizeRule;
use conceptseg::embed::{EmbeddingMap, Model};
use indicatif::ProgressBar;

use super::*;
use crate::data::flow::tests::window;
use crate::export::bundle::write_bundle;
use crate::network::pretrained::{load_network, load_teacher};
use crate::objective;

fn with(change: impl Fn(&mut TrainConfig)) -> TrainConfig {
    let mut config = config();
    change(&mut config);
    config.check().unwrap();
    config
}

/// Frames of a camera that moves to the right.
fn panning(dir: &Path, count: u32) -> Arc<Dataset> {
    let frame = |i| {
        let path = dir.join(format!("{i}.png"));
        window(40 + 3 * i, 50, 96, 80).save(&path).unwrap();
        path
    };
    let paths = (0..count).map(frame).collect();
    Arc::new(Dataset::load(paths, DatasetConfig::default(), &|_, _| ()).unwrap())
}

fn footage(config: &mut TrainConfig) {
    config.footage.max_distance = 2;
}

fn extra(config: &mut TrainConfig) {
    config.views.extra = 2;
    config.views.extra_size = 48;
}

fn teacher(config: &mut TrainConfig) {
    config.teacher.momentum = 0.9;
}

#[test]
fn a_resumed_run_is_the_unbroken_run_with_each_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 5);
    for config in [
        with(footage),
        with(extra),
        with(teacher),
        with(|config| {
            footage(config);
            extra(config);
            teacher(config);
            config.memory_batches = 64;
            config.network.dim = 64;
        }),
    ] {
        assert_resumes(&config, &dataset);
    }
}

#[test]
fn gradients_reach_the_network_from_neighbouring_frames_and_further_views() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = panning(dir.path(), 4);
    let logs = tempfile::tempdir().unwrap();
    let config = with(|config| {
        footage(config);
        extra(config);
        teacher(config);
    });
    let run = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap();
    let mut maker = BatchMaker::new(Arc::clone(&dataset), run.batches.clone()).unwrap();
    let mut batch = maker.make(0).unwrap();
    assert!(batch.second_index.iter().zip(&batch.image_index).any(|(a, b)| a != b));
    let both = objective::compute(&config, &run.state, &batch, Device::Cpu, None).unwrap().parts;
    // The further views alone are enough for a loss and for gradients.
    batch.ids.fill(VOID);
    let parts = objective::compute(&config, &run.state, &batch, Device::Cpu, None).unwrap().parts;
    // Two images, each with two views of 48 pixels: 12 x 12 cells after the enlargement.
    assert_eq!(parts.stats.pixels, 2 * 2 * 12 * 12);
    assert_eq!(both.stats.pixels, parts.stats.pixels + 2 * 2 * 16 * 16);
    parts.total.backward();
    for variable in run.state.network.parameters().iter().filter(|p| p.trainable) {
        let gradient = variable.tensor.grad();
        assert!(gradient.defined(), "{}", variable.name);
        assert!(gradient.isfinite().all().int64_value(&[]) == 1, "{}", variable.name);
    }
    assert!(run.state.sgd.gradient_norm() > 0.0);
    for variable in run.state.teacher.unwrap().network.parameters() {
        assert!(!variable.tensor.grad().defined(), "{}", variable.name);
    }
    batch.extra.ids.fill(VOID);
    let state = Run::open(&config, &dataset, &options(logs.path(), false)).unwrap().state;
    let none = objective::compute(&config, &state, &batch, Device::Cpu, None);
    assert!(matches!(none, Err(DistributedError::Loss(LossError::NoSegments))));
}

#[test]
fn the_memory_holds_the_segments_of_the_teacher() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let entries = |config: &TrainConfig, count| {
        let logs = tempfile::tempdir().unwrap();
        let mut run = Run::open(config, &dataset, &options(logs.path(), false)).unwrap();
        steps(&mut run, count);
        run.state.memory.entries.pop_back().unwrap()
    };
    let plain = with(|config| config.dictionary.dead_threshold = 0.0);
    let taught = with(|config| {
        config.dictionary.dead_threshold = 0.0;
        teacher(config);
    });
    let apart = with(|config| {
        config.dictionary.dead_threshold = 0.0;
        teacher(config);
        config.teacher.memory = false;
    });
    // It starts as a copy of the network, and stays behind it from the first step on.
    assert_eq!(entries(&plain, 1).z, entries(&taught, 1).z);
    let (a, b) = (entries(&plain, 3), entries(&taught, 3));
    assert_eq!((&a.image, &a.image_ids), (&b.image, &b.image_ids));
    assert_ne!(a.z, b.z);
    assert_eq!(a.z, entries(&apart, 3).z);
}

#[test]
fn a_run_leaves_its_teacher_and_so_does_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let variables = |network: &Network| -> Vec<Tensor> {
        network.parameters().iter().map(|p| p.tensor.detach().copy()).collect()
    };
    for export in [true, false] {
        let config = with(|config| {
            teacher(config);
            config.teacher.export = export;
            config.optimizer.iterations = 3;
        });
        let logs = tempfile::tempdir().unwrap();
        let outcome = train(&config, &dataset, &options(logs.path(), false)).unwrap();
        let Outcome::Finished(trained) = outcome else { panic!("not finished") };
        let file = logs.path().join(checkpoint::FILE_NAME);
        let stored = |load: &dyn Fn(&Network)| {
            let network = Network::new(&VarStore::new(Device::Cpu), &config.network, 9).unwrap();
            load(&network);
            variables(&network)
        };
        let student = stored(&|network| drop(load_network(network, &file).unwrap()));
        let teacher = stored(&|network| drop(load_teacher(network, &file).unwrap()));
        assert_ne!(student, teacher);
        assert_eq!(variables(&trained.network), if export { teacher } else { student });
    }
}

#[test]
fn a_checkpoint_from_before_a_key_had_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 3);
    let logs = tempfile::tempdir().unwrap();
    let config = config();
    Run::open(&config, &dataset, &options(logs.path(), false)).unwrap().save().unwrap();
    let path = logs.path().join(checkpoint::FILE_NAME);
    let mut file = std::fs::read(&path).unwrap();
    // The same length without the key: blanks in its place.
    let key = b"\\\"extra\\\":0,";
    let at = file.windows(key.len()).position(|w| w == key).unwrap();
    file[at..at + key.len()].fill(b' ');
    std::fs::write(&path, file).unwrap();
    assert!(Run::open(&config, &dataset, &options(logs.path(), true)).is_ok());
    let other = Run::open(&with(extra), &dataset, &options(logs.path(), true)).err().unwrap();
    assert!(other.to_string().contains("views.extra was 0, is 2"), "{other}");
}

#[test]
fn a_wider_embedding_goes_through_to_the_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(dir.path(), 4);
    let images: Vec<PathBuf> =
        (0..dataset.len()).map(|i| dataset.path(i).unwrap().to_owned()).collect();
    for dim in [64, 128] {
        let config = with(|config| {
            config.network.dim = dim;
            config.optimizer.iterations = 1;
            config.export_size = SizeRule::Dynamic;
            teacher(config);
        });
        let logs = tempfile::tempdir().unwrap();
        let outcome = train(&config, &dataset, &options(logs.path(), false)).unwrap();
        let Outcome::Finished(trained) = outcome else { panic!("not finished") };
        let out = tempfile::tempdir().unwrap();
        let hidden = |_: usize| ProgressBar::hidden();
        write_bundle(out.path(), &config, &trained, &images, &hidden).unwrap();
        let backend = BackendOptions::new(BackendKind::Rten, 1);
        let model = Model::open(out.path(), &backend).unwrap();
        assert_eq!(model.bundle().manifest.embedder.dim as i64, dim);
        assert_eq!(model.codebook().dim as i64, dim);
        let mut map = EmbeddingMap::default();
        let input = vec![0.1; 3 * 64 * 64];
        model.embed(&input, 64, 64, &mut Vec::new(), &mut map).unwrap();
        assert_eq!((map.dim as i64, map.data.len() as i64), (dim, 8 * 8 * dim));
    }
}
