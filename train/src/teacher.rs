//! The mean teacher: a network whose variables are moving averages of the trained one's.
//!
//! After Tarvainen and Valpola (`NeurIPS` 2017). Here it fills the memory with segments that
//! change less from step to step than those of the network in training, and it is what a run
//! leaves behind. It costs one more forward pass for each batch and nothing when the network
//! is used.

use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Device, Tensor, no_grad};

use crate::network::{Network, NetworkError};

/// The mean teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// Share that the teacher keeps of itself in each step, from 0 to below 1, such as 0.99; 0:
    /// no teacher, as in the paper.
    pub momentum: f64,
    /// The segments that go to the memory and that replace dead concepts are the teacher's.
    pub memory: bool,
    /// The run leaves the teacher, not the network that was trained.
    pub export: bool,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self { momentum: 0.0, memory: true, export: true }
    }
}

/// A network that follows another one.
#[derive(Debug)]
pub struct Teacher {
    /// The averages.
    pub network: Network,
}

impl Teacher {
    /// A copy of `student`; `None` when there is to be no teacher.
    ///
    /// # Errors
    /// [`NetworkError`] when memory runs out.
    pub fn start(config: &TeacherConfig, student: &Network) -> Result<Option<Self>, NetworkError> {
        if config.momentum == 0.0 {
            return Ok(None);
        }
        let variables = student.parameters();
        let device = variables.first().map_or(Device::Cpu, |first| first.tensor.device());
        let network = Network::new(&VarStore::new(device), student.config(), 0)?;
        for (mut own, variable) in network.parameters().into_iter().zip(variables) {
            let _ = own.tensor.set_requires_grad(false);
            no_grad(|| own.tensor.copy_(&variable.tensor));
        }
        Ok(Some(Self { network }))
    }

    /// Moves every variable, running statistics included, to the `student` after its step
    /// number `step` (from 0). The first steps count more than `momentum` says: it is at most
    /// `(1 + step) / (10 + step)`, so that the start is soon forgotten.
    pub fn follow(&self, student: &Network, momentum: f64, step: u64) {
        let momentum = momentum.min((1.0 + step as f64) / (10.0 + step as f64));
        no_grad(|| {
            for (own, variable) in self.network.parameters().iter().zip(student.parameters()) {
                let mut own = own.tensor.shallow_clone();
                let _ = own.lerp_(&variable.tensor.detach(), 1.0 - momentum);
            }
        });
    }

    /// Embeds images as the student does in training, with the statistics of the batch, but
    /// without gradient, and without recording the statistics.
    pub fn forward(&self, images: &Tensor) -> Tensor {
        no_grad(|| {
            let recorded: Vec<(Tensor, Tensor)> = self
                .network
                .parameters()
                .into_iter()
                .filter(|variable| !variable.trainable)
                .map(|variable| (variable.tensor.copy(), variable.tensor))
                .collect();
            let output = self.network.forward(images, true);
            for (before, mut variable) in recorded {
                variable.copy_(&before);
            }
            output
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::network::{NetworkConfig, Preset};

    fn student() -> Network {
        let preset = Preset::EdgeMobilenetV2;
        let config = NetworkConfig { preset, dim: 8, head_channels: 8, ..NetworkConfig::default() };
        Network::new(&VarStore::new(Device::Cpu), &config, 4).unwrap()
    }

    fn teacher(student: &Network) -> Teacher {
        let config = TeacherConfig { momentum: 0.9, ..TeacherConfig::default() };
        Teacher::start(&config, student).unwrap().unwrap()
    }

    #[test]
    fn there_is_none_by_default() {
        assert!(Teacher::start(&TeacherConfig::default(), &student()).unwrap().is_none());
    }

    #[test]
    fn every_variable_is_the_moving_average() {
        let student = student();
        let teacher = teacher(&student);
        let mut expected: Vec<Tensor> =
            student.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
        for (step, share) in [(0, 0.9), (1, 9.0 / 11.0), (1000, 0.1)] {
            for (variable, mean) in student.parameters().iter().zip(&mut expected) {
                let _ = variable.tensor.detach().g_add_scalar_(0.5);
                *mean = &*mean * (1.0 - share) + variable.tensor.detach() * share;
            }
            teacher.follow(&student, 0.9, step);
            for (own, mean) in teacher.network.parameters().iter().zip(&expected) {
                assert!(own.tensor.allclose(mean, 1e-5, 1e-6, false), "{} {step}", own.name);
                assert!(!own.tensor.requires_grad());
            }
        }
    }

    #[test]
    fn it_sees_a_batch_as_the_student_and_records_nothing() {
        let student = student();
        let teacher = teacher(&student);
        let values = |network: &Network| -> Vec<Tensor> {
            network.parameters().iter().map(|p| p.tensor.detach().copy()).collect()
        };
        let before = values(&teacher.network);
        let images = Tensor::randn([4, 3, 64, 64], (Kind::Float, Device::Cpu));
        let own = teacher.forward(&images);
        assert_eq!(own, student.forward(&images, true).detach());
        assert!(!own.requires_grad());
        assert_eq!(before, values(&teacher.network));
    }
}
