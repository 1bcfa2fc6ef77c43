//! The compiled-in backend, pure Rust.

use std::sync::Arc;

use rten::{Model, NodeId, RunOptions, ThreadPool, Value};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensorView, Tensor};

use super::{Backend, BackendError, Batches, Images, Observe, OutputShape, Source, one_line};

pub(super) const NAME: &str = "rten";

/// A network loaded by rten.
pub(super) struct Rten {
    model: Model,
    input: NodeId,
    output: NodeId,
    options: RunOptions,
    threads: usize,
    batches: Batches,
}

impl Rten {
    pub(super) fn load(source: &Source<'_>) -> Result<Self, BackendError> {
        let (bytes, batches) = Batches::open(source.bytes);
        let model = Model::load(bytes.into_owned()).map_err(|e| source.refused(NAME, e))?;
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
        Ok(Self { model, input, output, options, threads: source.threads, batches })
    }
}

impl Rten {
    fn run_at_once(
        &self,
        images: Images<'_>,
        out: &mut Vec<f32>,
    ) -> Result<OutputShape, BackendError> {
        let Images { data, count, width, height, .. } = images;
        let failed =
            |reason: String| BackendError::Run { backend: NAME, count, width, height, reason };
        let view = NdTensorView::from_data(images.dims(), data);
        let [value]: [Value; 1] = self
            .model
            .run_n(vec![(self.input, view.into())], [self.output], Some(self.options.clone()))
            .map_err(|e| failed(one_line(e)))?;
        let tensor: Tensor<f32> =
            value.into_tensor().ok_or_else(|| failed("the output is not float32".to_owned()))?;
        let shape = OutputShape::from_dims(tensor.shape(), count, tensor.len())?;
        out.clear();
        match tensor.data() {
            Some(data) => out.extend_from_slice(data),
            None => out.extend(tensor.iter()),
        }
        Ok(shape)
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

    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        self.batches.run(images, out, |images, out| self.run_at_once(images, out))
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
        let image = Images::one(input, width, height);
        image.check()?;
        let failed =
            |reason: String| BackendError::Run { backend: NAME, count: 1, width, height, reason };
        let view = NdTensorView::from_data(image.dims(), input);
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
