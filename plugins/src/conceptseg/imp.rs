use std::collections::HashSet;
use std::sync::LazyLock;

use gst::glib;
use gst::glib::subclass::Signal;
use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::conceptembed::{self, ConceptEmbed};
use crate::conceptlabel::{self, ConceptLabel};
use crate::conceptmetasink::{self, ConceptMetaSink};
use crate::conceptoverlay::{self, ConceptOverlay};
use crate::element::{self, element_methods};
use crate::maskpropagate::{self, MaskPropagate};
use crate::{gpu, refusal, video};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| element::category("conceptseg", "Concept labelling and mask propagation"));

/// What the bin calls properties of the elements inside whose own names say too little here.
const RENAMED: [(&str, &str); 2] = [("location", "results-location"), ("fd", "results-fd")];

/// Name inside of a property of the bin.
fn inside(name: &str) -> &str {
    RENAMED.iter().find(|(_, outside)| *outside == name).map_or(name, |(inside, _)| inside)
}

/// All properties of the elements inside, each once, the two of the results file by names that
/// fit the whole.
fn properties() -> Vec<glib::ParamSpec> {
    let mut seen = HashSet::new();
    let inner = conceptembed::properties()
        .into_iter()
        .chain(conceptlabel::properties())
        .chain(maskpropagate::properties())
        .chain(conceptoverlay::properties())
        .chain(conceptmetasink::properties());
    inner
        .filter(|property| seen.insert(property.name().to_owned()))
        .map(|property| match property.name() {
            "location" => glib::ParamSpecString::builder("results-location")
                .nick("Results location")
                .blurb(property.blurb().map_or("", |blurb| blurb))
                .mutable_ready()
                .build(),
            "fd" => glib::ParamSpecInt::builder("results-fd")
                .nick("Results file descriptor")
                .blurb(property.blurb().map_or("", |blurb| blurb))
                .minimum(-1)
                .default_value(-1)
                .mutable_ready()
                .build(),
            _ => property,
        })
        .collect()
}

pub struct ConceptSeg {
    embed: ConceptEmbed,
    label: ConceptLabel,
    propagate: MaskPropagate,
    overlay: ConceptOverlay,
    sink: ConceptMetaSink,
}

impl Default for ConceptSeg {
    fn default() -> Self {
        Self {
            embed: glib::Object::builder().property("name", "embed").build(),
            label: glib::Object::builder().property("name", "label").build(),
            propagate: glib::Object::builder().property("name", "propagate").build(),
            overlay: glib::Object::builder().property("name", "overlay").build(),
            sink: glib::Object::builder().property("name", "sink").build(),
        }
    }
}

impl ConceptSeg {
    /// The elements inside in the order in which frames pass them.
    fn elements(&self) -> [&gst::Element; 5] {
        [
            self.embed.upcast_ref(),
            self.label.upcast_ref(),
            self.propagate.upcast_ref(),
            self.overlay.upcast_ref(),
            self.sink.upcast_ref(),
        ]
    }

    /// Those that have a property.
    fn with_property(&self, name: &str) -> impl Iterator<Item = &gst::Element> {
        self.elements().into_iter().filter(move |element| element.find_property(name).is_some())
    }

    /// Puts the elements inside and shows the outer ends.
    fn build(&self) -> Result<(), glib::BoolError> {
        let bin = self.obj();
        bin.add_many(self.elements())?;
        gst::Element::link_many(self.elements())?;
        for (name, element) in [("sink", self.elements()[0]), ("src", self.elements()[4])] {
            let Some(pad) = element.static_pad(name) else { continue };
            let template = bin.pad_template(name);
            let ghost = match template {
                Some(template) => {
                    gst::GhostPad::builder_from_template_with_target(&template, &pad)?
                }
                None => gst::GhostPad::builder_with_target(&pad)?,
            };
            let ghost = ghost.name(name).build();
            if name == "sink" {
                // It refuses what the first element inside would, which does not see it then.
                refusal::explain(ghost.upcast_ref());
            }
            bin.add_pad(&ghost)?;
        }
        Ok(())
    }

    /// The figures of the network, and of the other two what they took; the age and the counts
    /// are those of the last element that works.
    fn stats(&self) -> gst::Structure {
        let of = |element: &gst::Element| element.property::<gst::Structure>("stats");
        let mut all = of(self.embed.upcast_ref());
        for (element, stage) in [
            (self.label.upcast_ref::<gst::Element>(), "concepts"),
            (self.propagate.upcast_ref(), "propagation"),
        ] {
            let own = of(element);
            if own.get::<u64>("inferred").is_ok_and(|inferred| inferred > 0)
                && let Ok(times) = own.value(stage)
            {
                all.set_value(stage, times.clone());
                if let Ok(age) = own.value("age") {
                    all.set_value("age", age.clone());
                }
            }
        }
        all
    }
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptSeg {
    const NAME: &'static str = "GstConceptSeg";
    type Type = super::ConceptSeg;
    type ParentType = gst::Bin;
}

impl ObjectImpl for ConceptSeg {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(properties);
        &PROPERTIES
    }

    fn signals() -> &'static [Signal] {
        static SIGNALS: LazyLock<Vec<Signal>> = LazyLock::new(|| {
            maskpropagate::signals()
                .into_iter()
                .map(|(name, parameter)| {
                    Signal::builder(name)
                        .action()
                        .param_types([parameter])
                        .return_type::<bool>()
                        .class_handler(move |values| {
                            let bin = values.first()?.get::<super::ConceptSeg>().ok()?;
                            bin.imp().propagate.emit_by_name_with_values(name, values.get(1..)?)
                        })
                        .build()
                })
                .collect()
        });
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let name = inside(pspec.name());
        for element in self.with_property(name) {
            element.set_property_from_value(name, value);
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        let name = inside(pspec.name());
        let first = self.with_property(name).next();
        first.map_or_else(|| pspec.default_value().clone(), |element| element.property_value(name))
    }

    fn constructed(&self) {
        self.parent_constructed();
        if let Err(e) = self.build() {
            gst::error!(CAT, imp = self, "Cannot put the elements together: {e}");
        }
    }
}

impl GstObjectImpl for ConceptSeg {}

impl ElementImpl for ConceptSeg {
    element_methods! {
        name: "ConceptSeg segmentation",
        class: "Filter/Analyzer/Effect/Video",
        description: "Labels frames with concepts learnt without labels, carries instance masks along a stream, and draws both",
        pads: gpu::caps(&video::FORMATS),
    }
}

impl BinImpl for ConceptSeg {}
