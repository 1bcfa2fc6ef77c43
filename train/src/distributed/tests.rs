//! Processes as threads, over TCP on this machine.

use std::net::TcpListener;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use tch::nn::VarStore;

use super::*;
use crate::losses::dictionary::{Dictionary, DictionaryConfig};
use crate::losses::memory::{MemoryBank, MemoryEntry};
use crate::losses::segments::{VOID, normalize};
use crate::losses::{self, LossConfig, ViewGroup, VqReduce};
use crate::network::{Network, NetworkConfig, Preset};

/// Runs `work` in `size` threads that are connected.
pub(crate) fn in_processes<T: Send>(
    size: usize,
    work: impl Fn(&dyn Communicator) -> T + Sync,
) -> Vec<T> {
    // The port is free again when the listener goes at the end of the statement.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|rank| {
                let place = Place { rank, size, local_rank: rank, address: address.clone() };
                let work = &work;
                scope.spawn(move || {
                    let patience = Duration::from_mins(1);
                    work(&tcp::TcpCommunicator::connect(&place, patience).unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().reshape([-1])).unwrap()
}

#[test]
fn the_launcher_says_which_process_this_is() {
    let read = |pairs: &[(&str, &str)]| {
        Place::read(|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_owned()))
    };
    assert_eq!(read(&[]).unwrap(), None);
    assert_eq!(read(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(), None);
    let host = [("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")];
    let torchrun = [&host[..], &[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")]].concat();
    let place = read(&torchrun).unwrap().unwrap();
    assert_eq!((place.rank, place.size, place.local_rank), (3, 4, 1));
    assert_eq!(place.address, "node1:29500");
    let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
    assert_eq!(read(&agent).unwrap().unwrap().address, "node1:29501");
    let slurm =
        [&host[..], &[("SLURM_PROCID", "2"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0")]];
    assert_eq!(read(&slurm.concat()).unwrap().unwrap().rank, 2);
    let error = read(&[("WORLD_SIZE", "2"), ("RANK", "2")]).unwrap_err().to_string();
    assert_eq!(error, "the environment variable RANK is 2; it must be a number from 0 to 1");
    let error = read(&[("WORLD_SIZE", "2"), ("RANK", "0")]).unwrap_err().to_string();
    assert!(error.contains("MASTER_ADDR is not set"), "{error}");
}

#[test]
fn sums_and_gathered_bytes_are_the_same_everywhere() {
    let results = in_processes(3, |all| {
        let rank = all.rank() as f32;
        let mut flat = Tensor::from_slice(&[0.1 + rank, 1e8 * rank, -3.7]);
        all.all_reduce_sum(&mut flat).unwrap();
        let mut first = Tensor::from_slice(&[rank + 5.0]);
        all.broadcast(&mut first).unwrap();
        let bytes = all.all_gather(&vec![all.rank() as u8; all.rank()]).unwrap();
        (floats(&flat), floats(&first), bytes, all.any(all.rank() == 1).unwrap())
    });
    assert_eq!(results[0].0, [0.1f32 + 1.1 + 2.1, 3e8, -3.7 - 3.7 - 3.7]);
    assert_eq!(results[0].1, [5.0]);
    assert_eq!(results[0].2, [vec![], vec![1], vec![2, 2]]);
    assert!(results[0].3);
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn a_difference_and_a_process_that_is_gone_are_named() {
    let errors = in_processes(2, |all| {
        let hash = [u8::from(all.rank() == 1)];
        all.agree("recipe", &hash).unwrap_err().to_string()
    });
    assert!(errors[1].starts_with("rank 1 has another recipe than rank 0"), "{}", errors[1]);
    let errors = in_processes(2, |all| match all.rank() {
        0 => all.barrier().unwrap_err().to_string(),
        _ => String::new(),
    });
    assert!(errors[0].starts_with("rank 1 is gone"), "{}", errors[0]);
    let errors = in_processes(2, |all| {
        let mut flat = Tensor::zeros([1 + all.rank() as i64], (Kind::Float, Device::Cpu));
        all.all_reduce_sum(&mut flat).err().map(|error| error.to_string())
    });
    let text = errors[0].as_deref().unwrap();
    assert!(text.contains("sends 8 bytes where 4 are expected"), "{text}");
}

const SIDE: i64 = 64;

/// Views and segments of four images; the second half is void where `void` says so.
fn batch(void: bool) -> (Tensor, Tensor) {
    // Not libtorch's generator, which all tests share: every process needs the same images.
    let mut rng = Pcg64::seed_from_u64(3);
    let values: Vec<f32> = (0..8 * 3 * SIDE * SIDE).map(|_| rng.random_range(-2.0..2.0)).collect();
    let images = Tensor::from_slice(&values).view([8, 3, SIDE, SIDE]);
    let blocks = Tensor::arange(SIDE, (Kind::Int64, Device::Cpu)).divide_scalar_mode(16, "floor");
    let ids = (blocks.unsqueeze(1) * 2 + blocks.divide_scalar_mode(2, "floor").unsqueeze(0))
        .unsqueeze(0)
        + Tensor::arange(8, (Kind::Int64, Device::Cpu)).fmod(3).reshape([8, 1, 1]);
    if void {
        // Views of images 2 and 3.
        for view in [2, 3, 6, 7] {
            let _ = ids.get(view).fill_(VOID);
        }
    }
    (images, ids)
}

/// Gradients of network and dictionary, the losses and the new memory entry, of the given
/// images.
fn gradients(
    all: Option<&dyn Communicator>,
    config: &LossConfig,
    views: &[i64],
    void: bool,
) -> (Vec<Vec<f32>>, Vec<f64>, Vec<f32>) {
    let network = NetworkConfig { dim: 8, head_channels: 8, ..NetworkConfig::default() };
    assert_eq!(network.preset, Preset::EdgeMobilenetV2);
    let network = Network::new(&VarStore::new(Device::Cpu), &network, 7).unwrap();
    let codes = normalize(&(Tensor::eye(8, (Kind::Float, Device::Cpu)) - 0.2));
    let settings = DictionaryConfig { concepts: 8, ..DictionaryConfig::default() };
    let dictionary = Dictionary::restore(&codes, vec![0.125; 8], 0, settings, 1).unwrap();
    let mut memory = MemoryBank::new(2);
    let image = Tensor::from_slice(&[0i64, 0, 0, 0, 1, 1, 1, 1]);
    memory.push(MemoryEntry::new(&codes, &image, vec![11, 90], 0).unwrap());

    let (images, ids) = batch(void);
    let both: Vec<i64> = views.iter().copied().chain(views.iter().map(|v| v + 4)).collect();
    let both = Tensor::from_slice(&both);
    let image_ids: Vec<i64> = views.iter().map(|v| 10 + v).collect();
    // Recorded statistics: those of a batch would be of each process's own part.
    let output = network.forward(&images.index_select(0, &both), false);
    let ids = ids.index_select(0, &both);
    let group =
        ViewGroup { embeddings: output.shallow_clone(), ids: ids.shallow_clone(), per_image: 2 };
    let mut trained: Vec<Tensor> =
        network.parameters().into_iter().filter(|p| p.trainable).map(|p| p.tensor).collect();
    trained.push(dictionary.codebook.shallow_clone());
    let grads = |trained: &[Tensor]| -> Vec<Tensor> {
        trained.iter().map(Tensor::grad).filter(Tensor::defined).collect()
    };
    let parts = if let Some(all) = all {
        let (parts, graph) =
            joint::compute(all, config, &[group], &image_ids, &dictionary, &memory, 1).unwrap();
        graph.backward(all, 1.0).unwrap();
        sum(all, &mut grads(&trained)).unwrap();
        parts
    } else {
        let parts =
            losses::compute_pairs(config, &output, &ids, &image_ids, &dictionary, &memory, 1)
                .unwrap();
        parts.total.backward();
        parts
    };
    let values = [&parts.total, &parts.local, &parts.quantization, &parts.cooccurrence];
    let mut values: Vec<f64> = values.iter().map(|value| value.double_value(&[])).collect();
    values.extend([parts.stats.pixels as f64, parts.stats.segments as f64]);
    values.push(parts.code_use.perplexity());
    (grads(&trained).iter().map(floats).collect(), values, floats(&parts.entry.z))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn two_processes_have_the_gradients_of_one_with_the_joint_batch() {
    let pixel = LossConfig { vq_reduce: VqReduce::Pixel, ..LossConfig::default() };
    let exclude = LossConfig { cooc_exclude_self: true, ..LossConfig::default() };
    for (config, void) in [(LossConfig::default(), false), (pixel, true), (exclude, false)] {
        let (expected, values, entry) = gradients(None, &config, &[0, 1, 2, 3], void);
        let found = in_processes(2, |all| {
            let first = 2 * all.rank() as i64;
            gradients(Some(all), &config, &[first, first + 1], void)
        });
        assert!(found[0] == found[1], "the processes differ");
        assert_eq!(found[0].0.len(), expected.len());
        let length = |values: &[f32]| distance(values, &vec![0.0; values.len()]);
        let whole = length(&expected.concat());
        for (found, expected) in found[0].0.iter().zip(&expected) {
            let error = distance(found, expected);
            assert!(error <= 1e-4 * length(expected) + 1e-6 * whole, "{error}");
        }
        let error = distance(&found[0].0.concat(), &expected.concat());
        assert!(error <= 1e-4 * whole, "{error} of {whole}");
        for (found, expected) in found[0].1.iter().zip(&values) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{found} {expected}");
        }
        assert!(distance(&found[0].2, &entry) <= 1e-5);
    }
}

#[test]
fn a_joint_batch_of_void_is_refused_everywhere() {
    let refused = in_processes(2, |all| {
        let codes = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let settings = DictionaryConfig { concepts: 4, ..DictionaryConfig::default() };
        let dictionary = Dictionary::restore(&codes, vec![0.25; 4], 0, settings, 1).unwrap();
        let output = Tensor::ones([2, 4, 2, 2], (Kind::Float, Device::Cpu));
        let ids = Tensor::full([2, 4, 4], VOID, (Kind::Int64, Device::Cpu));
        let (config, memory) = (LossConfig::default(), MemoryBank::new(0));
        let groups = [ViewGroup { embeddings: output, ids, per_image: 2 }];
        let images = [all.rank() as i64];
        joint::compute(all, &config, &groups, &images, &dictionary, &memory, 0).err()
    });
    for error in refused {
        assert!(matches!(error, Some(DistributedError::Loss(LossError::NoSegments))));
    }
}
