//! What all elements are made of, each once: a debug category, pad templates, a table of
//! properties, and macros for the methods that are the same in every `impl` of a trait of
//! `GStreamer`. A macro stands inside of the `impl`, in place of the methods that it names.

use std::sync::OnceLock;

use gst::glib;
use gst::subclass::prelude::*;

/// A debug category, which lives as long as the process.
pub fn category(name: &str, description: &str) -> gst::DebugCategory {
    gst::DebugCategory::new(name, gst::DebugColorFlags::empty(), Some(description))
}

/// One sink and one source pad that are always there, both for `caps`.
pub fn pad_templates(caps: &gst::Caps) -> Vec<gst::PadTemplate> {
    [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
        .into_iter()
        .filter_map(|(name, direction)| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps).ok()
        })
        .collect()
}

/// A property of the element `E`: its description, and how it is read and set.
pub struct Property<E> {
    spec: glib::ParamSpec,
    get: fn(&E) -> glib::Value,
    /// `None` where it is read-only.
    set: Option<fn(&E, &glib::Value)>,
}

impl<E> Property<E> {
    /// One that can be set.
    pub fn new(
        spec: glib::ParamSpec,
        get: fn(&E) -> glib::Value,
        set: fn(&E, &glib::Value),
    ) -> Self {
        Self { spec, get, set: Some(set) }
    }

    /// One that cannot.
    pub fn read_only(spec: glib::ParamSpec, get: fn(&E) -> glib::Value) -> Self {
        Self { spec, get, set: None }
    }
}

/// All properties of the element `E`, in the order in which they are shown.
pub struct Properties<E> {
    make: fn() -> Vec<Property<E>>,
    table: OnceLock<Vec<Property<E>>>,
    specs: OnceLock<Vec<glib::ParamSpec>>,
}

impl<E> Properties<E> {
    /// Those that `make` answers when they are needed first.
    pub const fn new(make: fn() -> Vec<Property<E>>) -> Self {
        Self { make, table: OnceLock::new(), specs: OnceLock::new() }
    }

    /// Their descriptions, made anew: an object class wants its own ones.
    pub fn describe(&self) -> Vec<glib::ParamSpec> {
        (self.make)().into_iter().map(|property| property.spec).collect()
    }

    /// Their descriptions in the class of the element.
    pub fn specs(&self) -> &[glib::ParamSpec] {
        self.specs.get_or_init(|| self.describe())
    }

    /// Reads one of them.
    pub fn get(&self, element: &E, spec: &glib::ParamSpec) -> glib::Value {
        let property = self.find(spec.name());
        property.map_or_else(|| spec.default_value().clone(), |property| (property.get)(element))
    }

    /// Sets one of them.
    pub fn set(&self, element: &E, value: &glib::Value, spec: &glib::ParamSpec) {
        if let Some(set) = self.find(spec.name()).and_then(|property| property.set) {
            set(element, value);
        }
    }

    fn find(&self, name: &str) -> Option<&Property<E>> {
        self.table.get_or_init(self.make).iter().find(|property| property.spec.name() == name)
    }
}

/// The [`Property`] that is a field of the element's `settings`, as it is, or as a function makes it
/// of the value.
macro_rules! field {
    ($spec:expr, $($field:ident).+, $read:path) => {
        $crate::element::Property::new(
            $spec,
            |element| $crate::lock(&element.settings).$($field).+.to_value(),
            |element, value| $crate::lock(&element.settings).$($field).+ = $read(value),
        )
    };
    ($spec:expr, $($field:ident).+) => {
        $crate::element::Property::new(
            $spec,
            |element| $crate::lock(&element.settings).$($field).+.to_value(),
            |element, value| {
                $crate::settings::assign(&mut $crate::lock(&element.settings).$($field).+, value);
            },
        )
    };
}

/// In an `impl ObjectImpl`: `properties`, `set_property`, `property` and `constructed`.
macro_rules! object_methods {
    ($properties:ident) => {
        fn properties() -> &'static [gst::glib::ParamSpec] {
            $properties.specs()
        }

        fn set_property(&self, _: usize, value: &gst::glib::Value, spec: &gst::glib::ParamSpec) {
            $properties.set(self, value, spec);
        }

        fn property(&self, _: usize, spec: &gst::glib::ParamSpec) -> gst::glib::Value {
            $properties.get(self, spec)
        }

        fn constructed(&self) {
            self.parent_constructed();
            // Dropping whole frames because one was late would lose their masks.
            gst_base::prelude::BaseTransformExt::set_qos(&*self.obj(), false);
            $crate::refusal::explain(gst_base::prelude::BaseTransformExtManual::sink_pad(
                &*self.obj(),
            ));
        }
    };
}

/// In an `impl ElementImpl`: `metadata` and `pad_templates`.
macro_rules! element_methods {
    (name: $name:literal, class: $class:literal, description: $description:literal, pads: $caps:expr $(,)?) => {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: std::sync::LazyLock<gst::subclass::ElementMetadata> =
                std::sync::LazyLock::new(|| {
                    gst::subclass::ElementMetadata::new(
                        $name,
                        $class,
                        $description,
                        concat!("ConceptSeg developers <", env!("CARGO_PKG_REPOSITORY"), ">"),
                    )
                });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: std::sync::LazyLock<Vec<gst::PadTemplate>> =
                std::sync::LazyLock::new(|| $crate::element::pad_templates(&$caps));
            &TEMPLATES
        }
    };
}

/// What the framework is answered for a frame; an error is posted and ends the stream.
pub fn flow<T: ElementImpl>(
    element: &T,
    result: Result<(), gst::ErrorMessage>,
) -> Result<gst::FlowSuccess, gst::FlowError> {
    result.map(|()| gst::FlowSuccess::Ok).map_err(|message| {
        element.post_error_message(message);
        gst::FlowError::Error
    })
}

/// In an `impl BaseTransformImpl`: all frames are handed to the method `frame` in place, and an
/// error that it answers ends the stream.
macro_rules! in_place {
    ($frame:ident) => {
        const MODE: gst_base::subclass::BaseTransformMode =
            gst_base::subclass::BaseTransformMode::AlwaysInPlace;
        const PASSTHROUGH_ON_SAME_CAPS: bool = false;
        const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

        fn transform_ip(
            &self,
            buffer: &mut gst::BufferRef,
        ) -> Result<gst::FlowSuccess, gst::FlowError> {
            $crate::element::flow(self, self.$frame(buffer))
        }
    };
}

/// In an `impl BaseTransformImpl`: all frames are shown to the method `frame` and pass as they are,
/// and an error that it answers ends the stream.
macro_rules! passing {
    ($frame:ident) => {
        const MODE: gst_base::subclass::BaseTransformMode =
            gst_base::subclass::BaseTransformMode::AlwaysInPlace;
        const PASSTHROUGH_ON_SAME_CAPS: bool = true;
        const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

        fn transform_ip_passthrough(
            &self,
            buffer: &gst::Buffer,
        ) -> Result<gst::FlowSuccess, gst::FlowError> {
            $crate::element::flow(self, self.$frame(buffer))
        }
    };
}

/// In an `impl BaseTransformImpl` of an element with an `analyzer`: `set_caps`, `query` and
/// `sink_event`, which calls the method `restart`, where one is given, when a new stream begins.
macro_rules! analyzer_methods {
    ($category:ident $(, $restart:ident)?) => {
        fn set_caps(
            &self,
            incaps: &gst::Caps,
            _outcaps: &gst::Caps,
        ) -> Result<(), gst::LoggableError> {
            self.analyzer.set_caps(*$category, incaps)
        }

        fn sink_event(&self, event: gst::Event) -> bool {
            if self.analyzer.event(&event) {
                gst::info!($category, imp = self, "A new stream begins");
                $(self.$restart();)?
            }
            self.parent_sink_event(event)
        }

        fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
            let answered = BaseTransformImplExt::parent_query(self, direction, query);
            if answered {
                self.analyzer.answer(direction, query);
            }
            answered
        }
    };
}

pub(crate) use {analyzer_methods, element_methods, field, in_place, object_methods, passing};
