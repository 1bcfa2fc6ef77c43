//! The compiled-in backend, pure Rust.

use std::sync::Arc;

use rten::{Model, NodeId, RunOptions, ThreadPool, Value};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensorView, Tensor};

use super::{Backend, BackendError, Observe, OutputShape, Source, check_input, one_line};

pub(super) const NAME: &str = "rten";

/// A network loaded by rten.
pub(super) struct Rten {
    model: Model,
    input: NodeId,
    output: NodeId,
    options: RunOptions,
    threads: usize,
}

impl Rten {
    pub(super) fn load(source: &Source<'_>) -> Result<Self, BackendError> {
        let model = Model::load(source.bytes.to_vec()).map_err(|e| source.refused(NAME, e))?;
        let names = |ids: &[NodeId]| -> Vec<String> {
            ids.iter().filter_map(|&id| Some(model.node_info(id)?.name()?.to_owned())).collect()
        };
        source.check_names(&names(model.input_ids()), &names(model.output_ids()))?;
        let node = |name| model.node_id(name).map_err(|e| source.refused(NAME, e));
        let (input, output) = (node(source.input)?, node(source.output)?);
        // Without a pool of its own a model runs on rten's global one, which has a thread per physical core.
        let pool =
            (source.threads > 0).then(|| Arc::new(ThreadPool::with_num_threads(source.threads)));
        let options = RunOptions::default().with_thread_pool(pool);
        Ok(Self { model, input, output, options, threads: source.threads })
    }
}

impl Backend for Rten {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        match self.threads {
            0 => format!("{NAME} (built in)"),
            n => format!("{NAME} (built in), {n} thread(s)"),
        }
    }

    fn run(
        &self,
        input: &[f32],
        width: usize,
        height: usize,
        out: &mut Vec<f32>,
    ) -> Result<OutputShape, BackendError> {
        check_input(input, width, height)?;
        let failed = |reason: String| BackendError::Run { backend: NAME, width, height, reason };
        let view = NdTensorView::from_data([1, 3, height, width], input);
        let [value]: [Value; 1] = self
            .model
            .run_n(vec![(self.input, view.into())], [self.output], Some(self.options.clone()))
            .map_err(|e| failed(one_line(e)))?;
        let tensor: Tensor<f32> =
            value.into_tensor().ok_or_else(|| failed("the output is not float32".to_owned()))?;
        let shape = OutputShape::from_dims(tensor.shape(), tensor.len())?;
        out.clear();
        match tensor.data() {
            Some(data) => out.extend_from_slice(data),
            None => out.extend(tensor.iter()),
        }
        Ok(shape)
    }
}

impl Observe for Rten {
    fn observe(
        &self,
        input: &[f32],
        width: usize,
        height: usize,
        see: &mut dyn FnMut(&str, &[f32]),
    ) -> Result<(), BackendError> {
        check_input(input, width, height)?;
        let failed = |reason: String| BackendError::Run { backend: NAME, width, height, reason };
        let view = NdTensorView::from_data([1, 3, height, width], input);
        let ids = self.model.output_ids();
        let values = self
            .model
            .run(vec![(self.input, view.into())], ids, Some(self.options.clone()))
            .map_err(|e| failed(one_line(e)))?;
        for (&id, value) in ids.iter().zip(values) {
            let tensor: Tensor<f32> =
                value.into_tensor().ok_or_else(|| failed("a map is not float32".to_owned()))?;
            let info = self.model.node_info(id);
            let name = info.as_ref().and_then(rten::NodeInfo::name).unwrap_or_default();
            see(name, &tensor.to_vec());
        }
        Ok(())
    }
}
