//! Reads what `conceptseg` found in an application: one line per frame, until the end or Ctrl-C.
//!
//! ```sh
//! cargo run -p gst-plugin-conceptseg --example appsink -- models/starter videotestsrc
//! cargo run -p gst-plugin-conceptseg --example appsink -- models/starter 'v4l2src ! videoconvert' first.png
//! ```
//!
//! The elements come with the program here; an installed plugin works the same.

use anyhow::{Context as _, bail};
use gst::prelude::*;
use gst_app::{AppSink, AppSinkCallbacks};
use gstconceptseg::meta::Analysis;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (bundle, source, mask) = match arguments.as_slice() {
        [bundle, source] => (bundle, source, None),
        [bundle, source, mask] => (bundle, source, Some(mask)),
        _ => bail!(
            "give a model bundle, a source as for gst-launch-1.0, and maybe a first-frame mask"
        ),
    };
    gst::init().context("GStreamer does not start")?;
    gstconceptseg::plugin_register_static().context("the elements cannot be registered")?;

    let source = gst::parse::bin_from_description(source, true)
        .with_context(|| format!("the source {source} cannot be made"))?;
    let element = gst::ElementFactory::make("conceptseg")
        .property("bundle", bundle)
        .property_from_str("draw", "0")
        .property("first-frame-mask", mask)
        .build()?;
    let sink = AppSink::builder().sync(false).build();
    sink.set_callbacks(
        AppSinkCallbacks::builder()
            .new_sample(|sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                if let Some(buffer) = sample.buffer() {
                    show(buffer).map_err(|error| {
                        gst::element_error!(sink, gst::StreamError::Failed, ("{error:#}"));
                        gst::FlowError::Error
                    })?;
                }
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );
    let pipeline = gst::Pipeline::new();
    let elements = [source.upcast_ref(), &element, sink.upcast_ref()];
    pipeline.add_many(elements)?;
    gst::Element::link_many(elements)?;

    // The end of the stream goes through all elements, so that nothing under way is lost.
    let handle = pipeline.downgrade();
    ctrlc::set_handler(move || {
        if let Some(pipeline) = handle.upgrade() {
            pipeline.send_event(gst::event::Eos::new());
        }
    })?;
    let finished = play(&pipeline);
    pipeline.set_state(gst::State::Null)?;
    println!("{}", element.property::<gst::Structure>("stats"));
    finished
}

/// Plays to the end of the stream.
fn play(pipeline: &gst::Pipeline) -> anyhow::Result<()> {
    let bus = pipeline.bus().context("the pipeline has no bus")?;
    // Where this fails, the reason comes as a message.
    let started = pipeline.set_state(gst::State::Playing);
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => return Ok(()),
            gst::MessageView::Error(error) => bail!("{}", error.error()),
            gst::MessageView::Warning(warning) => eprintln!("{}", warning.error()),
            // The measured latency has grown: all sinks wait a little longer.
            gst::MessageView::Latency(_) => pipeline.recalculate_latency()?,
            _ => {}
        }
    }
    started.map(drop).context("the pipeline does not start")
}

/// One line about one frame.
fn show(buffer: &gst::BufferRef) -> anyhow::Result<()> {
    // Live streams have frames before the first result.
    let Some(analysis) = Analysis::from_buffer(buffer)? else { return Ok(()) };
    let concepts: Vec<_> = analysis
        .summary()
        .iter()
        .take(3)
        .map(|concept| {
            let name = concept.name.clone().unwrap_or_else(|| format!("concept {}", concept.id));
            format!("{name} {:.0} %", concept.area * 100.0)
        })
        .collect();
    let instances: Vec<_> = analysis
        .instances()
        .iter()
        .map(|instance| format!("{} {:?}", instance.id, instance.bbox))
        .collect();
    let age = analysis.concepts_source().map_or(0, |(_, age)| age.age.mseconds());
    println!("{} ms old: {} | {}", age, concepts.join(", "), instances.join(", "));
    Ok(())
}
