use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use conceptseg::backend::BackendOptions;
use conceptseg::backend::tensorrt::GpuOptions;
use conceptseg::embed::{Batching, MAX_BATCH};
use conceptseg::errors::sentence;
use conceptseg::stream::StreamConfig;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;

use super::stage::{EmbedStage, Input};
use crate::element::{
    self, Properties, Property, analyzer_methods, element_methods, field, in_place, object_methods,
};
use crate::gpu::{self, gpu_methods};
use crate::live::{Analyzer, Moment, Shown};
use crate::models::Loaded;
use crate::settings::{self, Backend, Lateness, Precision};
use crate::{lock, meta, models, video};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| element::category("conceptembed", "The network that embeds frames"));

/// Short sides that the network is run at, in pixels.
const SHORT_SIDES: std::ops::RangeInclusive<u32> = 64..=2160;

/// Longest `batch-timeout`, in milliseconds: a flush or the end of a stream may have to wait for it.
const LONGEST_TIMEOUT: u32 = 1000;

#[derive(Debug, Clone)]
struct Settings {
    bundle: Option<PathBuf>,
    backend: Backend,
    threads: u32,
    device: u32,
    precision: Precision,
    cpu_fallback: bool,
    engine_id: Option<String>,
    batch_size: u32,
    /// Milliseconds.
    batch_timeout: u32,
    short_side: u32,
    interval: u32,
    lateness: Lateness,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bundle: None,
            backend: Backend::Auto,
            threads: 0,
            device: 0,
            precision: Precision::default(),
            cpu_fallback: false,
            engine_id: None,
            batch_size: 1,
            batch_timeout: 20,
            short_side: StreamConfig::default().short_side,
            interval: 1,
            lateness: Lateness::default(),
        }
    }
}

impl Settings {
    fn open(&self, renew: bool) -> Result<Loaded, models::OpenError> {
        let precision = self.precision.into();
        let gpu = GpuOptions {
            device: self.device,
            precision: Option::unwrap_or_default(precision),
            cpu_fallback: self.cpu_fallback,
            ..GpuOptions::FIRST
        };
        let options = BackendOptions {
            cpu_precision: precision,
            gpu,
            ..BackendOptions::new(self.backend.into(), self.threads as usize)
        };
        models::open(self.bundle.as_deref(), &options, self.engine_id.as_deref(), renew)
    }

    fn batching(&self) -> Batching {
        Batching {
            size: self.batch_size as usize,
            timeout: Duration::from_millis(self.batch_timeout.into()),
        }
    }
}

pub static PROPERTIES: Properties<ConceptEmbed> = Properties::new(|| {
    let default = Settings::default();
    vec![
        Property::new(
            glib::ParamSpecString::builder("bundle")
                .nick("Bundle")
                .blurb("Folder of the model bundle; when set while playing, the new model is loaded beside the old one and takes over between two frames")
                .mutable_playing()
                .build(),
            |element| lock(&element.settings).bundle.to_value(),
            |element, value| element.set_bundle(settings::path(value)),
        ),
        field!(
            glib::ParamSpecEnum::builder_with_default("backend", default.backend)
                .nick("Backend")
                .blurb("Backend that runs the network")
                .mutable_ready()
                .build(),
            backend
        ),
        field!(
            glib::ParamSpecUInt::builder("threads")
                .nick("Threads")
                .blurb("CPU threads for the network (0 = one per core)")
                .maximum(1024)
                .default_value(default.threads)
                .mutable_ready()
                .build(),
            threads
        ),
        field!(
            glib::ParamSpecUInt::builder("device")
                .nick("Device")
                .blurb("Number of the GPU, from 0 (TensorRT only)")
                .default_value(default.device)
                .mutable_ready()
                .build(),
            device
        ),
        field!(
            glib::ParamSpecEnum::builder_with_default("precision", default.precision)
                .nick("Precision")
                .blurb("How the network computes; bf16 and fp16 on the CPU need OpenVINO and a CPU that has them")
                .mutable_ready()
                .build(),
            precision
        ),
        field!(
            glib::ParamSpecBoolean::builder("cpu-fallback")
                .nick("CPU fallback")
                .blurb("Go on with the CPU when the GPU fails for good; backend=auto does so anyway")
                .default_value(default.cpu_fallback)
                .mutable_ready()
                .build(),
            cpu_fallback
        ),
        field!(
            glib::ParamSpecString::builder("engine-id")
                .nick("Engine id")
                .blurb("Elements of one process with the same id share one loaded model, also when one of them loads another bundle; those without a bundle take that of the others")
                .mutable_ready()
                .build(),
            engine_id,
            settings::text
        ),
        field!(
            glib::ParamSpecUInt::builder("batch-size")
                .nick("Batch size")
                .blurb("Most frames in one inference, each of another stream; of the elements of one process that share a model, 1 for no batches")
                .minimum(1)
                .maximum(MAX_BATCH as u32)
                .default_value(default.batch_size)
                .mutable_ready()
                .build(),
            batch_size
        ),
        field!(
            glib::ParamSpecUInt::builder("batch-timeout")
                .nick("Batch timeout")
                .blurb("Milliseconds that a frame waits for those of other streams before an inference with fewer begins")
                .maximum(LONGEST_TIMEOUT)
                .default_value(default.batch_timeout)
                .mutable_ready()
                .build(),
            batch_timeout
        ),
        field!(
            glib::ParamSpecUInt::builder("short-side")
                .nick("Short side")
                .blurb("Shorter side of the frame as the network sees it, in pixels, rounded to a multiple of 8; less is faster and coarser")
                .minimum(*SHORT_SIDES.start())
                .maximum(*SHORT_SIDES.end())
                .default_value(default.short_side)
                .mutable_playing()
                .build(),
            short_side
        ),
        field!(
            glib::ParamSpecUInt::builder("inference-interval")
                .nick("Inference interval")
                .blurb("Analyse one in so many frames; the others show its result")
                .minimum(1)
                .default_value(default.interval)
                .mutable_playing()
                .build(),
            interval
        ),
        field!(settings::late_policy(), lateness.policy),
        field!(settings::max_age(), lateness.max_age),
        Property::read_only(settings::stats(), |element| {
            element.analyzer.stats().to_structure().to_value()
        }),
    ]
});

#[derive(Default)]
pub struct ConceptEmbed {
    settings: Mutex<Settings>,
    /// The model of the next frame.
    loaded: Mutex<Option<Loaded>>,
    /// Counts bundles that were set while running; only the latest one takes over.
    reload: Mutex<u64>,
    /// Whether somebody was told why frames in GPU memory are not taken.
    told: AtomicBool,
    analyzer: Analyzer<EmbedStage>,
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptEmbed {
    const NAME: &'static str = "GstConceptEmbed";
    type Type = super::ConceptEmbed;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for ConceptEmbed {
    object_methods!(PROPERTIES);
}

impl GstObjectImpl for ConceptEmbed {}

impl ElementImpl for ConceptEmbed {
    element_methods! {
        name: "ConceptSeg embedding",
        class: "Filter/Analyzer/Video",
        description: "Embeds the pixels of frames with a network that learnt without labels",
        pads: gpu::caps(&video::FORMATS),
    }
}

impl BaseTransformImpl for ConceptEmbed {
    in_place!(analyse);
    analyzer_methods!(CAT);
    gpu_methods!(refusal);

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        let loaded = settings.open(false)?;
        let backend = loaded.model.backend_name();
        gst::info!(CAT, imp = self, "Started with backend {backend}");
        *lock(&self.loaded) = Some(loaded);
        self.told.store(false, Ordering::Relaxed);
        self.analyzer.start(EmbedStage::new(settings.batching()), backend);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.reload) += 1;
        self.analyzer.stop();
        *lock(&self.loaded) = None;
        Ok(())
    }
}

impl ConceptEmbed {
    fn tell(&self, reason: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            gst::element_imp_warning!(self, gst::StreamError::Format, ("{reason}"));
        }
    }

    /// Why frames in GPU memory cannot be taken, if so. Before the start nobody knows.
    fn refusal(&self) -> Option<String> {
        let loaded = lock(&self.loaded);
        let model = &loaded.as_ref()?.model;
        // Who had such frames before the GPU was lost goes on with them.
        if model.is_on_gpu() || self.analyzer.memory() != gpu::Memory::System {
            return None;
        }
        let backend = model.backend_name();
        Some(format!(
            "The network runs with {backend} on the CPU, which cannot read frames in GPU memory: put cudadownload \
             (nvvideoconvert for NVMM) before, or use backend=tensorrt"
        ))
    }

    fn set_bundle(&self, bundle: Option<PathBuf>) {
        let settings = {
            let mut settings = lock(&self.settings);
            settings.bundle = bundle;
            settings.clone()
        };
        // Only an element that runs has something to replace.
        if self.analyzer.is_running() {
            self.reload(settings);
        }
    }

    fn analyse(&self, buffer: &mut gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        let index = self.analyzer.count();
        let now = Moment::now(index, buffer.pts());
        let loaded = self.present_model(&settings);
        let (Some(loaded), Some(info)) = (loaded, self.analyzer.info()) else { return Ok(()) };
        // Results that a frame brings along are of another analysis.
        meta::remove_results(buffer)?;
        let due = index.is_multiple_of(u64::from(settings.interval.max(1)));
        let shown =
            self.analyzer.frame(self.obj().upcast_ref(), settings.lateness.rules(), now, || {
                if !due {
                    return Ok(None);
                }
                // Shares the pixels; whoever writes to them downstream gets a copy.
                let frame = buffer
                    .copy_region(gst::BufferCopyFlags::MEMORY | gst::BufferCopyFlags::META, ..);
                let frame = frame.map_err(|e| {
                    crate::errors::message(
                        gst::ResourceError::NoSpaceLeft,
                        &format!("Cannot keep a frame: {e}"),
                    )
                })?;
                let short_side = settings.short_side;
                let memory = self.analyzer.memory();
                Ok(Some(Input { loaded, memory, short_side, frame, info, moment: now }))
            })?;
        let Some(Shown { found, age, new }) = shown else { return Ok(()) };
        if new {
            let mut stats = self.analyzer.stats();
            stats.stage("preprocess", found.source.times.preprocess);
            stats.stage("network", found.source.times.network);
            stats.batch(found.value.batch);
        }
        found.value.embedding.attach(buffer, age)?;
        Ok(())
    }

    /// The model for the next frame: its own, or the one that its engine has got meanwhile.
    fn present_model(&self, settings: &Settings) -> Option<Loaded> {
        let mut loaded = lock(&self.loaded);
        if let Some(id) = &settings.engine_id
            && let Some(shared) = models::engine(id)
            && loaded.as_ref().is_some_and(|own| own.id != shared.id)
        {
            *loaded = Some(shared);
        }
        loaded.clone()
    }

    /// Loads a bundle beside the present one.
    fn reload(&self, settings: Settings) {
        let number = {
            let mut reload = lock(&self.reload);
            *reload += 1;
            *reload
        };
        let element = self.obj().downgrade();
        let work = move || {
            let opened = settings.open(true);
            let Some(element) = element.upgrade() else { return };
            let this = element.imp();
            if *lock(&this.reload) != number {
                return;
            }
            match opened {
                Ok(loaded) => {
                    gst::info!(CAT, obj = element, "The new bundle takes over");
                    loaded.model.backend_name().clone_into(&mut this.analyzer.stats().backend);
                    *lock(&this.loaded) = Some(loaded);
                }
                Err(error) => gst::element_warning!(
                    element,
                    gst::ResourceError::NotFound,
                    ("The new bundle cannot be used, the old one stays: {}", sentence(&error))
                ),
            }
        };
        if let Err(e) = std::thread::Builder::new().name("conceptseg-load".to_owned()).spawn(work) {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::Failed,
                ("The new bundle cannot be loaded, the old one stays: no thread to do it in: {e}")
            );
        }
    }
}
