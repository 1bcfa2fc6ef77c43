//! One training run: start or resume, loop, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;
use tch::{Device, Tensor};

use crate::checkpoint::{self, CheckpointError, ImageList};
use crate::config::TrainConfig;
use crate::data::loader::{Batch, BatchPart, Loader, LoaderConfig};
use crate::data::{DataError, Dataset};
use crate::distributed::joint::JointGraph;
use crate::distributed::{self, Communicator, DistributedError};
use crate::diverged;
use crate::losses::dictionary::{CodeUse, Dictionary};
use crate::losses::{LossError, LossParts};
use crate::network::pretrained::PretrainedError;
use crate::network::{Network, NetworkError};
use crate::objective::{self, Objective};
use crate::progress::Progress;
use crate::state::{DICTIONARY, MAX_VOID, TrainState, loader_config};

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The backbone's weights could not be loaded.
    #[error(transparent)]
    Pretrained(#[from] PretrainedError),
    /// The images could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The losses refused a batch.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// A checkpoint could not be written or continued from.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The processes of the run cannot work together.
    #[error(transparent)]
    Distributed(#[from] DistributedError),
    /// The log could not be written.
    #[error("cannot write the log in {dir}: {source}")]
    Log {
        /// Folder of the log.
        dir: PathBuf,
        /// What the file system answered.
        source: std::io::Error,
    },
    /// [`RunOptions::stop`] was set before the first step.
    #[error("stopped before the first step; there is nothing to continue from")]
    Stopped,
    /// A loss or a gradient is not a number any more.
    #[error(
        "{what} at step {step}; {kept}; lower optimizer.lr, or set optimizer.warmup or \
         optimizer.clip_norm, and start again"
    )]
    Diverged {
        /// The step, from 0.
        step: u64,
        /// What is no number.
        what: String,
        /// Where the batch was kept.
        kept: String,
    },
}

/// Where and how a run takes place.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    /// Weights that the backbone starts from; random ones where absent. Not read on resuming.
    pub backbone: Option<&'a Path>,
    /// Folder of the event file and the checkpoint.
    pub log_dir: &'a Path,
    /// Where the tensors live.
    pub device: Device,
    /// Continue from the checkpoint in `log_dir`.
    pub resume: bool,
    /// Once set, the run ends after the step it is in.
    pub stop: &'a AtomicBool,
    /// The processes that train together; `None` for one on its own.
    pub processes: Option<&'a dyn Communicator>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// All steps are done.
    Finished(Box<Trained>),
    /// [`RunOptions::stop`] was set.
    Interrupted {
        /// Steps done.
        step: u64,
        /// The file to continue from.
        checkpoint: PathBuf,
    },
}

/// What a finished run leaves.
#[derive(Debug)]
pub struct Trained {
    /// The network with its variables, or its teacher where `teacher.export` says so.
    pub network: Network,
    /// The concept dictionary.
    pub dictionary: Dictionary,
    /// Whether the backbone started from a file.
    pub pretrained: bool,
    /// Wall time of all steps in seconds.
    pub seconds: f64,
    /// Median of the wall times of the steps that this call took, in seconds; 0 without any.
    /// Unlike a mean it does not count what the first steps set up.
    pub pace: f64,
    /// Mean of the total loss over the first and the last tenth of the steps.
    pub loss_start_end: (f64, f64),
    /// Batches passed over because they had no segment.
    pub void_batches: u64,
}

/// Trains with `config` on the images of `dataset`, as `options` say.
///
/// # Errors
/// [`TrainError`]. The last checkpoint is left as it is.
pub fn train(
    config: &TrainConfig,
    dataset: &Arc<Dataset>,
    options: &RunOptions<'_>,
) -> Result<Outcome, TrainError> {
    let mut run = Run::open(config, dataset, options)?;
    let steps = config.optimizer.iterations;
    let every = config.checkpoint.every;
    while run.state.step < steps {
        if run.stopped(options.stop)? {
            run.save()?;
            return Ok(Outcome::Interrupted { step: run.state.step, checkpoint: run.checkpoint });
        }
        run.step()?;
        let step = run.state.step;
        if step == steps || (every > 0 && step.is_multiple_of(every)) {
            // The run goes on: a full disk may have room again by the next one.
            if let Err(error) = run.save() {
                run.progress.warn(&error.to_string());
            }
        }
    }
    let pace = median(run.durations);
    let TrainState {
        network, teacher, dictionary, pretrained, seconds, totals, void_batches, ..
    } = run.state;
    let teacher = teacher.filter(|_| config.teacher.export);
    let network = teacher.map_or(network, |teacher| teacher.network);
    Ok(Outcome::Finished(Box::new(Trained {
        network,
        dictionary,
        pretrained,
        seconds,
        pace,
        loss_start_end: start_end(&totals),
        void_batches,
    })))
}

/// Where batches come from.
type NextBatch = Box<dyn FnMut() -> Result<Batch, DataError>>;

/// A run in its loop.
struct Run<'a> {
    config: &'a TrainConfig,
    dataset: &'a Dataset,
    device: Device,
    log_dir: &'a Path,
    checkpoint: PathBuf,
    images: ImageList,
    batches: LoaderConfig,
    next: NextBatch,
    progress: Progress,
    state: TrainState,
    processes: Option<&'a dyn Communicator>,
    /// Seconds of the steps taken here.
    durations: Vec<f64>,
}

/// Sums over the batches of a step.
#[derive(Default)]
struct StepSums {
    total: f64,
    local: f64,
    quantization: f64,
    cooccurrence: f64,
    segments: f64,
    /// Seconds waited for batches.
    waited: f64,
    /// Seconds in the network.
    forward: f64,
    /// Seconds in the losses.
    loss: f64,
    /// Seconds in the backward pass, the sum over processes included.
    backward: f64,
    /// Length of the gradient after the last batch.
    norm: f64,
    code_use: Vec<i64>,
    /// Segments of each batch.
    fresh: Vec<Tensor>,
}

impl<'a> Run<'a> {
    fn open(
        config: &'a TrainConfig,
        dataset: &'a Arc<Dataset>,
        options: &RunOptions<'a>,
    ) -> Result<Self, TrainError> {
        let (log_dir, device) = (options.log_dir, options.device);
        let checkpoint = log_dir.join(checkpoint::FILE_NAME);
        let images = ImageList::of(dataset);
        let state = if options.resume {
            let state = checkpoint::load(&checkpoint, config, &images, device)?;
            tracing::info!("continuing after step {}", state.step);
            state
        } else {
            if checkpoint.exists() {
                tracing::warn!(
                    "this run will replace {}; add --resume to continue from it instead",
                    checkpoint.display()
                );
            }
            TrainState::fresh(config, dataset, options.backbone, device, options.stop)?
        };
        let mut batches = loader_config(config, state.next_batch);
        let mut first = true;
        if let Some(all) = options.processes {
            first = all.rank() == 0;
            batches.part = BatchPart { index: all.rank(), of: all.size() };
            let hash = checkpoint::fingerprint(config, &images, &state).map_err(|e| {
                CheckpointError::Write { path: checkpoint.clone(), source: e.into() }
            })?;
            all.agree("recipe, list of images, version or checkpoint", &hash)?;
            let mut tensors: Vec<Tensor> =
                state.network.parameters().into_iter().map(|p| p.tensor).collect();
            tensors.push(state.dictionary.codebook.shallow_clone());
            distributed::copy_first(all, &mut tensors)?;
        }
        let mut loader = Loader::new(dataset, &batches)?;
        let per_step = (config.data.batch * batches.part.of) as u64 * config.optimizer.accumulate;
        let steps = config.optimizer.iterations;
        let progress = if first {
            Progress::open(log_dir, steps, state.step, per_step)
                .map_err(|source| TrainError::Log { dir: log_dir.to_owned(), source })?
        } else {
            Progress::silent(steps, state.step)
        };
        Ok(Self {
            config,
            dataset,
            device,
            log_dir,
            checkpoint,
            images,
            batches,
            next: Box::new(move || loader.next_batch()),
            progress,
            state,
            processes: options.processes,
            durations: Vec::new(),
        })
    }

    /// Whether this process, or another one of the run, was told to stop.
    fn stopped(&self, stop: &AtomicBool) -> Result<bool, DistributedError> {
        let own = stop.load(Ordering::SeqCst);
        self.processes.map_or(Ok(own), |all| all.any(own))
    }

    fn save(&self) -> Result<(), CheckpointError> {
        if self.processes.is_some_and(|all| all.rank() != 0) {
            return Ok(());
        }
        checkpoint::save(&self.checkpoint, &self.state, self.config, &self.images)
    }

    /// One step of the optimiser over `optimizer.accumulate` batches.
    fn step(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        let settings = &self.config.optimizer;
        let rate = settings.rate(step);
        let mut sums = StepSums::default();
        for batch in 1..=settings.accumulate {
            self.add_batch(rate, batch == settings.accumulate, &mut sums)?;
        }
        let updating = Instant::now();
        let state = &mut self.state;
        state.sgd.step(rate, settings.momentum, settings.clip(sums.norm));
        let code_use = CodeUse { counts: sums.code_use };
        state.dictionary.renormalise();
        state.dictionary.observe(&code_use);
        let replaced = state.dictionary.revive(&Tensor::cat(&sums.fresh, 0), step);
        state.sgd.forget_rows(DICTIONARY, &replaced);
        if let Some(all) = self.processes {
            // Each process has recorded the statistics of its own part.
            let parameters = state.network.parameters().into_iter();
            let mut recorded: Vec<Tensor> =
                parameters.filter(|p| !p.trainable).map(|p| p.tensor).collect();
            distributed::average(all, &mut recorded)?;
        }
        if let Some(teacher) = &state.teacher {
            teacher.follow(&state.network, self.config.teacher.momentum, step);
        }
        let batches = settings.accumulate as f64;
        let total = sums.total / batches;
        let figures = [
            ("loss/total", total),
            ("loss/local", sums.local / batches),
            ("loss/quantization", sums.quantization / batches),
            ("loss/cooccurrence", sums.cooccurrence / batches),
            ("concepts/used", code_use.used() as f64),
            ("concepts/perplexity", code_use.perplexity()),
            ("concepts/replaced", replaced.len() as f64),
            ("segments", sums.segments),
            ("gradient/norm", sums.norm),
            ("rate", rate),
            ("batches/void", state.void_batches as f64),
            ("seconds/input", sums.waited),
            ("seconds/forward", sums.forward),
            ("seconds/loss", sums.loss),
            ("seconds/backward", sums.backward),
            ("seconds/update", updating.elapsed().as_secs_f64()),
        ];
        state.step += 1;
        state.totals.push(total);
        let seconds = self
            .progress
            .step(state.step, &figures)
            .map_err(|source| TrainError::Log { dir: self.log_dir.to_owned(), source })?;
        state.seconds += seconds;
        self.durations.push(seconds);
        Ok(())
    }

    /// Adds the gradient of the next batch that has segments.
    fn add_batch(&mut self, rate: f64, last: bool, sums: &mut StepSums) -> Result<(), TrainError> {
        let (batch, parts, joint) = self.losses_of_next(sums)?;
        let losses_done = Instant::now();
        let total = parts.total.double_value(&[]);
        if !total.is_finite() {
            return Err(self.diverged(&format!("the loss is {total}"), rate, &batch, &parts));
        }
        let share = 1.0 / self.config.optimizer.accumulate as f64;
        match (self.processes, &joint) {
            (Some(all), Some(joint)) => {
                joint.backward(all, share)?;
                if last {
                    distributed::sum(all, &mut self.state.sgd.gradient_tensors())?;
                }
            }
            _ => (&parts.total * share).backward(),
        }
        // Until the sum over the processes is taken, each has another part of the gradient.
        if last || self.processes.is_none() {
            sums.norm = self.state.sgd.gradient_norm();
        }
        sums.backward += losses_done.elapsed().as_secs_f64();
        if !sums.norm.is_finite() {
            let what = match self.state.sgd.not_finite().as_slice() {
                [] => format!("the length of the gradient is {}", sums.norm),
                [name] => format!("the gradient of {name} is not finite"),
                [name, rest @ ..] => {
                    format!("the gradients of {name} and {} more are not finite", rest.len())
                }
            };
            return Err(self.diverged(&what, rate, &batch, &parts));
        }
        sums.total += total;
        sums.local += parts.local.double_value(&[]);
        sums.quantization += parts.quantization.double_value(&[]);
        sums.cooccurrence += parts.cooccurrence.double_value(&[]);
        sums.segments += parts.stats.segments as f64;
        sums.code_use.resize(parts.code_use.counts.len(), 0);
        for (sum, count) in sums.code_use.iter_mut().zip(&parts.code_use.counts) {
            *sum += count;
        }
        sums.fresh.push(parts.entry.z.shallow_clone());
        self.state.memory.push(parts.entry);
        Ok(())
    }

    /// The next batch that has segments, with its losses; the others are counted.
    fn losses_of_next(
        &mut self,
        sums: &mut StepSums,
    ) -> Result<(Batch, LossParts, Option<JointGraph>), TrainError> {
        let mut void = 0;
        loop {
            let asked = Instant::now();
            let batch = (self.next)()?;
            let begun = Instant::now();
            sums.waited += (begun - asked).as_secs_f64();
            let state = &mut self.state;
            let number = state.next_batch;
            state.next_batch += 1;
            let computed =
                objective::compute(self.config, state, &batch, self.device, self.processes);
            let spent = begun.elapsed();
            match computed {
                Ok(Objective { parts, joint, forward }) => {
                    sums.forward += forward.as_secs_f64();
                    sums.loss += spent.saturating_sub(forward).as_secs_f64();
                    return Ok((batch, parts, joint));
                }
                Err(DistributedError::Loss(LossError::NoSegments)) if void < MAX_VOID => {
                    void += 1;
                    state.void_batches += 1;
                    if state.void_batches == 1 {
                        let text = "has no pixel that belongs to a segment and is passed over; \
                                    further ones are counted as batches/void";
                        self.progress.warn(&format!("batch {number} {text}"));
                    }
                }
                Err(DistributedError::Loss(error)) => return Err(error.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Keeps the batch and says so.
    fn diverged(&self, what: &str, rate: f64, batch: &Batch, parts: &LossParts) -> TrainError {
        let step = self.state.step;
        let value = |loss: &Tensor| diverged::number(loss.double_value(&[]));
        let report = json!({
            "step": step,
            "batch": self.state.next_batch - 1,
            "what": what,
            "rate": rate,
            "total": value(&parts.total),
            "local": value(&parts.local),
            "quantization": value(&parts.quantization),
            "cooccurrence": value(&parts.cooccurrence),
            "gradients_not_finite": self.state.sgd.not_finite(),
        });
        // Every process keeps its own part.
        let folder = match self.processes.map_or(0, Communicator::rank) {
            0 => self.log_dir.to_owned(),
            rank => self.log_dir.join(format!("rank-{rank}")),
        };
        let saved =
            diverged::save_batch(&folder, step, batch, &self.batches, self.dataset, &report);
        let kept = match saved {
            Ok(folder) => format!("the batch is kept in {}", folder.display()),
            Err(error) => format!("the batch could not be kept ({error})"),
        };
        TrainError::Diverged { step, what: what.to_owned(), kept }
    }
}

/// Mean over the first and over the last tenth.
fn start_end(totals: &[f64]) -> (f64, f64) {
    let tenth = totals.len().div_ceil(10);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    (mean(&totals[..tenth]), mean(&totals[totals.len() - tenth..]))
}

/// The middle one, 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests;
