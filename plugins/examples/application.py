#!/usr/bin/env python3
"""An application around conceptseg: prints what is in each frame, until the end or Ctrl-C.

    apt install python3-gi gir1.2-gst-plugins-base-1.0
    ./application.py models/starter "filesrc location=street.webm ! decodebin" --mask first.png
    ./application.py models/starter "v4l2src ! videoconvert"

Made to be copied: on_frame() is where your own code goes. Exit codes: 0 the stream or Ctrl-C ended it, 1 it failed,
2 wrong use.
"""

import argparse
import signal
import sys
import warnings

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import GLib, Gst, GstApp  # noqa: E402, F401 (GstApp brings the methods of appsink)

# GLib calls its arrays deprecated; GStreamer's lists come as such all the same.
warnings.filterwarnings("ignore", "GObject.ValueArray", DeprecationWarning)


def entries(fields, name):
    """The structures in a list of the results, as dictionaries; empty where there is no such list."""
    there, array = fields.get_array(name)
    for index in range(array.n_values if there else 0):
        # An entry lives as long as its array: what is kept of it is copied.
        entry = array.get_nth(index)
        names = [entry.nth_field_name(i) for i in range(entry.n_fields())]
        yield {name: entry.get_value(name) for name in names}


def results_of(buffer):
    """What conceptseg attached to a buffer, or None: live streams have frames before the first result.

    docs/metadata.md lists all fields.
    """
    meta = buffer.get_custom_meta("ConceptSegMeta")
    if meta is None:
        return None
    fields = meta.get_structure()
    source = fields.get_value("concepts-source") if fields.has_field("concepts-source") else None
    return {
        "frame": fields.get_value("frame"),
        "age": source.get_value("age") / Gst.MSECOND if source else 0.0,
        "stale": bool(source and source.get_value("stale")),
        "concepts": list(entries(fields, "summary")),
        "instances": list(entries(fields, "instances")),
    }


def on_frame(pts, results):
    """Your code: called for each frame in a thread of GStreamer, which waits until it returns."""
    seconds = pts / Gst.SECOND if pts != Gst.CLOCK_TIME_NONE else 0.0
    if results is None:
        print(f"{seconds:.3f} s: no result yet", flush=True)
        return
    concepts = ", ".join(
        f"{concept.get('name') or 'concept ' + str(concept['id'])} {concept['area']:.0%}"
        for concept in results["concepts"][:3]
    )
    instances = ", ".join(
        f"object {i['id']} at {i['x']},{i['y']} {i['width']}x{i['height']}" if i["area"] else f"object {i['id']} hidden"
        for i in results["instances"]
    )
    print(f"{seconds:.3f} s, {results['age']:.0f} ms old: {concepts}{' | ' if instances else ''}{instances}", flush=True)


class Application:
    def __init__(self, bundle, source, mask=None):
        self.loop = GLib.MainLoop()
        self.failure = None
        if Gst.ElementFactory.find("conceptseg") is None:
            raise RuntimeError("GStreamer does not find conceptseg; `conceptseg doctor` says why and what to do")
        self.pipeline = Gst.parse_launch(f"{source} ! conceptseg name=analysis ! appsink name=results")
        analysis = self.pipeline.get_by_name("analysis")
        analysis.set_property("bundle", bundle)
        analysis.set_property("first-frame-mask", mask)
        # This application only reads; without this the frames show what was found, too.
        Gst.util_set_object_arg(analysis, "draw", "0")
        sink = self.pipeline.get_by_name("results")
        sink.set_property("sync", False)
        sink.set_property("emit-signals", True)
        sink.connect("new-sample", self.on_sample)

    def on_sample(self, sink):
        sample = sink.pull_sample()
        if sample is None:
            return Gst.FlowReturn.EOS
        try:
            buffer = sample.get_buffer()
            on_frame(buffer.pts, results_of(buffer))
        except Exception as error:  # An exception here would be printed and forgotten.
            self.fail(f"on_frame failed: {error!r}")
            return Gst.FlowReturn.ERROR
        return Gst.FlowReturn.OK

    def fail(self, text):
        # The first reason counts; others follow from it.
        self.failure = self.failure or text
        self.loop.quit()

    def on_message(self, _bus, message):
        if message.type == Gst.MessageType.EOS:
            self.loop.quit()
        elif message.type == Gst.MessageType.ERROR:
            self.fail(message.parse_error()[0].message)
        elif message.type == Gst.MessageType.WARNING:
            print(message.parse_warning()[0].message, file=sys.stderr)
        elif message.type == Gst.MessageType.LATENCY:
            # The measured latency has grown: all sinks wait a little longer.
            self.pipeline.recalculate_latency()

    def on_interrupt(self):
        # The end of the stream goes through all elements, so that nothing under way is lost.
        self.pipeline.send_event(Gst.Event.new_eos())
        # A second Ctrl-C ends the program at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return GLib.SOURCE_REMOVE

    def run(self):
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message", self.on_message)
        GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGINT, self.on_interrupt)
        # Where this fails, the reason comes as a message.
        self.pipeline.set_state(Gst.State.PLAYING)
        try:
            self.loop.run()
        finally:
            self.pipeline.set_state(Gst.State.NULL)
            bus.remove_signal_watch()
        return self.failure


def main():
    parser = argparse.ArgumentParser(description="Prints what is in each frame of a video.")
    parser.add_argument("bundle", help="folder of the model")
    parser.add_argument("source", help="a source as for gst-launch-1.0")
    parser.add_argument("--mask", help="PNG of the first frame's objects, to carry along")
    arguments = parser.parse_args()
    Gst.init(None)
    try:
        failure = Application(arguments.bundle, arguments.source, arguments.mask).run()
    except (GLib.Error, RuntimeError) as error:
        failure = error.message if isinstance(error, GLib.Error) else str(error)
    if failure:
        sys.exit(f"application.py: {failure}")


if __name__ == "__main__":
    main()
