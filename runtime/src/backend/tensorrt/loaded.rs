//! An engine of one input size, and what runs in it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use conceptseg_tensorrt::cuda::{Context, DeviceBuffer, Stream};
use conceptseg_tensorrt::{DataType, Engine, ExecutionContext, TensorInfo, TensorMode};

use super::error::TensorRtError;
use super::key::InputShape;
use crate::backend::OutputShape;

/// Callers that run one engine at the same time, at most: more would take memory and not be faster.
const MOST_LANES: usize = 4;

/// An engine whose shapes are all fixed. Callers run it at the same time, each in a lane of its own.
#[derive(Debug)]
pub struct Loaded {
    engine: Engine,
    cuda: Arc<Context>,
    input: String,
    output: String,
    shape: InputShape,
    /// `[batch, dim, rows, columns]`.
    output_dims: [usize; 4],
    lanes: Lanes,
}

/// What one caller runs in. The context comes first: it waits for its last run before the buffers go.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) context: ExecutionContext,
    pub(crate) input: Arc<DeviceBuffer<f32>>,
    pub(crate) output: Arc<DeviceBuffer<f32>>,
    pub(crate) stream: Arc<Stream>,
    /// The input of a run with fewer images than the plan takes.
    padded: Vec<f32>,
}

#[derive(Debug)]
struct Lanes {
    state: Mutex<LaneState>,
    returned: Condvar,
}

#[derive(Debug)]
struct LaneState {
    idle: Vec<Lane>,
    /// Lanes that exist or are being made.
    made: usize,
    /// Lanes that the GPU has memory for.
    most: usize,
}

impl Loaded {
    /// Makes the first lane, which shows that the memory suffices and what the output looks like.
    pub(super) fn new(
        engine: Engine,
        cuda: &Arc<Context>,
        (input, output): (&str, &str),
        shape: InputShape,
    ) -> Result<Self, TensorRtError> {
        check_tensor(engine.tensor(input)?, TensorMode::Input)?;
        check_tensor(engine.tensor(output)?, TensorMode::Output)?;
        let mut context = engine.create_context()?;
        context.set_input_shape(input, &shape.dims())?;
        let output_dims = output_dims(&context.shape(output)?, shape)?;
        let mut loaded = Self {
            engine,
            cuda: Arc::clone(cuda),
            input: input.to_owned(),
            output: output.to_owned(),
            shape,
            output_dims,
            lanes: Lanes {
                state: Mutex::new(LaneState { idle: Vec::new(), made: 1, most: MOST_LANES }),
                returned: Condvar::new(),
            },
        };
        let lane = loaded.lane(context)?;
        loaded.lanes.state.get_mut().unwrap_or_else(PoisonError::into_inner).idle.push(lane);
        Ok(loaded)
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The images it takes.
    pub fn input_shape(&self) -> InputShape {
        self.shape
    }

    /// What it gives for each image.
    pub fn output_shape(&self) -> OutputShape {
        let [_, dim, height, width] = self.output_dims;
        OutputShape { dim, height, width }
    }

    /// Name of the input.
    pub fn input_name(&self) -> &str {
        &self.input
    }

    /// Name of the output.
    pub fn output_name(&self) -> &str {
        &self.output
    }

    /// Numbers of the input, `[batch, 3, height, width]`.
    pub fn input_len(&self) -> usize {
        self.shape.elements()
    }

    /// Numbers of the output, `[batch, dim, rows, columns]`.
    pub fn output_len(&self) -> usize {
        self.output_dims.iter().product()
    }

    /// Bytes of GPU memory that each caller takes: intermediate results, input and output.
    pub fn lane_bytes(&self) -> u64 {
        let buffers = (self.input_len() + self.output_len()) * size_of::<f32>();
        self.engine.device_memory().saturating_add(buffers as u64)
    }

    /// A context that reads and writes the given buffers, which may be longer than the tensors.
    ///
    /// # Errors
    /// [`TensorRtError`], mostly that the GPU has no memory left.
    pub fn context(
        &self,
        input: &Arc<DeviceBuffer<f32>>,
        output: &Arc<DeviceBuffer<f32>>,
    ) -> Result<ExecutionContext, TensorRtError> {
        let mut context = self.engine.create_context()?;
        context.set_input_shape(&self.input, &self.shape.dims())?;
        context.bind(&self.input, input)?;
        context.bind(&self.output, output)?;
        Ok(context)
    }

    fn lane(&self, mut context: ExecutionContext) -> Result<Lane, TensorRtError> {
        let input = Arc::new(DeviceBuffer::new(&self.cuda, self.input_len())?);
        let output = Arc::new(DeviceBuffer::new(&self.cuda, self.output_len())?);
        context.set_input_shape(&self.input, &self.shape.dims())?;
        context.bind(&self.input, &input)?;
        context.bind(&self.output, &output)?;
        Ok(Lane { context, input, output, stream: Stream::new(&self.cuda)?, padded: Vec::new() })
    }

    /// Runs the network on numbers in host memory: `input` holds as many images as the plan takes, or fewer, which cost
    /// as much. Their part of the output replaces `out`.
    ///
    /// # Errors
    /// [`TensorRtError`]; the lane is given up then.
    pub fn run(&self, input: &[f32], out: &mut Vec<f32>) -> Result<(), TensorRtError> {
        let mut lease = self.lease()?;
        if let Some(lane) = &mut lease.lane {
            if input.len() < self.input_len() {
                lane.padded.clear();
                lane.padded.extend_from_slice(input);
                lane.padded.resize(self.input_len(), 0.0);
                lane.input.write(&lane.stream, &lane.padded)?;
            } else {
                lane.input.write(&lane.stream, input)?;
            }
            lane.context.enqueue(&lane.stream)?;
            out.resize(self.output_len(), 0.0);
            lane.output.read(&lane.stream, out)?;
            let images = input.len() / InputShape { batch: 1, ..self.shape }.elements();
            out.truncate(images * self.output_shape().len());
        }
        lease.whole = true;
        Ok(())
    }

    /// Lends buffers, context and stream to whoever fills the input on the GPU and takes the output there. The work must
    /// have waited for the stream when it returns; after an error the lane is given up.
    pub(crate) fn with_lane<T, E: From<TensorRtError>>(
        &self,
        work: impl FnOnce(&mut Lane) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut lease = self.lease()?;
        let value = work(lease.lane.as_mut().ok_or(TensorRtError::Closed)?)?;
        lease.whole = true;
        Ok(value)
    }

    /// An idle lane, a new one, or the next that is given back.
    fn lease(&self) -> Result<Lease<'_>, TensorRtError> {
        let mut state = self.lanes.lock();
        loop {
            if let Some(lane) = state.idle.pop() {
                return Ok(Lease { lanes: &self.lanes, lane: Some(lane), whole: false });
            }
            if state.made < state.most {
                state.made += 1;
                drop(state);
                let mut lease = Lease { lanes: &self.lanes, lane: None, whole: false };
                match self.engine.create_context().map_err(Into::into).and_then(|c| self.lane(c)) {
                    Ok(lane) => {
                        lease.lane = Some(lane);
                        return Ok(lease);
                    }
                    // Without memory for one more, callers take turns.
                    Err(error) if error.is_out_of_memory() => {
                        drop(lease);
                        state = self.lanes.lock();
                        if state.made == 0 {
                            return Err(error);
                        }
                        state.most = state.made;
                    }
                    Err(error) => return Err(error),
                }
            } else {
                state = self.lanes.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lane in use. Given back when dropped, or given up where its run failed.
struct Lease<'a> {
    lanes: &'a Lanes,
    lane: Option<Lane>,
    whole: bool,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let lane = self.lane.take();
        let returned = if self.whole { lane } else { None };
        let mut state = self.lanes.lock();
        match returned {
            Some(lane) => state.idle.push(lane),
            None => state.made -= 1,
        }
        drop(state);
        self.lanes.returned.notify_one();
    }
}

fn check_tensor(info: &TensorInfo, mode: TensorMode) -> Result<(), TensorRtError> {
    if info.mode == mode && info.data_type == DataType::Float {
        return Ok(());
    }
    Err(conceptseg_tensorrt::Error::UnsupportedTensor {
        tensor: info.name.clone(),
        reason: format!(
            "it is an {:?} of {}, not an {mode:?} of float32",
            info.mode, info.data_type
        ),
    }
    .into())
}

fn output_dims(shape: &[i64], input: InputShape) -> Result<[usize; 4], TensorRtError> {
    let sizes: Option<Vec<usize>> =
        shape.iter().map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).collect();
    match sizes.as_deref() {
        Some(&[batch, dim, height, width]) if batch == input.batch as usize => {
            Ok([batch, dim, height, width])
        }
        _ => Err(conceptseg_tensorrt::Error::UnsupportedTensor {
            tensor: "of the output".to_owned(),
            reason: format!(
                "it has shape {shape:?} instead of [{}, dim, rows, columns]",
                input.batch
            ),
        }
        .into()),
    }
}
