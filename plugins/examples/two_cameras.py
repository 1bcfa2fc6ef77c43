#!/usr/bin/env python3
"""Two cameras side by side, one model for both; either may be unplugged and plugged in again while the other goes on.

    apt install python3-gi
    ./two_cameras.py models/starter "v4l2src device=/dev/video0 ! videoconvert" "rtspsrc location=rtsp://… ! decodebin"

A camera that fails or ends leaves a black half. It is tried again every few seconds (--retry) until it is
there. Ctrl-C ends the program. Exit codes: 0 Ctrl-C ended it, 1 it failed, 2 wrong use.
"""

import argparse
import signal
import sys
import warnings

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402

# GLib calls its arrays deprecated; GStreamer's lists come as such all the same.
warnings.filterwarnings("ignore", "GObject.ValueArray", DeprecationWarning)

WIDTH, HEIGHT = 640, 480


def say(text):
    # In one piece with its end: the threads of both cameras write.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Camera:
    """One source and its analysis, a bin that comes and goes in the running pipeline."""

    def __init__(self, wall, index, source):
        self.wall = wall
        self.name = f"camera {index + 1}"
        self.index = index
        self.description = source
        self.branch = None
        self.place = None
        self.frames = 0

    def plug(self):
        """Makes the branch anew and joins it to the picture."""
        branch = Gst.parse_bin_from_description(
            # The queue keeps a slow picture from holding up the camera: the newest frame counts.
            f"{self.description} ! conceptseg name=analysis ! identity name=end silent=true"
            " ! queue leaky=downstream max-size-buffers=2 max-size-bytes=0 max-size-time=0",
            True,
        )
        analysis = branch.get_by_name("analysis")
        analysis.set_property("bundle", self.wall.bundle)
        # Elements with the same id share one loaded model.
        analysis.set_property("engine-id", "cameras")
        end = branch.get_by_name("end").get_static_pad("src")
        end.add_probe(Gst.PadProbeType.BUFFER, self.on_buffer)
        end.add_probe(Gst.PadProbeType.EVENT_DOWNSTREAM, self.on_event)
        self.branch = branch
        self.wall.pipeline.add(branch)
        self.place = self.wall.compositor.request_pad_simple("sink_%u")
        for name, value in (("xpos", self.index * WIDTH), ("width", WIDTH), ("height", HEIGHT), ("zorder", 2)):
            self.place.set_property(name, value)
        branch.get_static_pad("src").link(self.place)
        if self.frames:
            say(f"{self.name} is plugged in again")
        # Where this fails, the reason comes as a message, as for a camera that fails later.
        branch.sync_state_with_parent()

    def unplug(self):
        """Takes the branch out, whatever state it is in. Never called from a thread of the branch itself."""
        branch, self.branch = self.branch, None
        if branch is None:
            return
        # From here on its frames wait at the end, so that none meets a pad without a peer, which would be an error.
        out = branch.get_static_pad("src")
        out.add_probe(Gst.PadProbeType.BLOCK_DOWNSTREAM, lambda *_: Gst.PadProbeReturn.OK)
        out.unlink(self.place)
        # Flushes the pad, so that a frame that waits in the compositor is let go.
        self.wall.compositor.release_request_pad(self.place)
        self.place = None
        branch.set_state(Gst.State.NULL)
        self.wall.pipeline.remove(branch)

    def lost(self, reason):
        """The camera is gone: goes on without it, and tries again later."""
        if self.branch is None:
            return GLib.SOURCE_REMOVE
        say(f"{self.name} is gone: {reason}")
        self.unplug()
        GLib.timeout_add(int(self.wall.retry * 1000), self.plug)
        return GLib.SOURCE_REMOVE

    def on_buffer(self, _pad, info):
        self.frames += 1
        say(f"{self.name}, frame {self.frames}: {described(info.get_buffer())}")
        return Gst.PadProbeReturn.OK

    def on_event(self, pad, info):
        if info.get_event().type != Gst.EventType.EOS:
            return Gst.PadProbeReturn.OK
        # Not from here, a thread of the branch, which could not wait for its own end. An older branch may be meant.
        branch = self.branch
        GLib.idle_add(lambda: self.lost("its stream has ended") if branch is self.branch else GLib.SOURCE_REMOVE)
        return Gst.PadProbeReturn.DROP


def described(buffer):
    """The largest concept in a frame (docs/metadata.md lists everything that is attached)."""
    meta = buffer.get_custom_meta("ConceptSegMeta")
    fields = meta.get_structure() if meta else None
    if fields is None or not fields.has_field("summary"):
        return "no result yet"
    concepts = fields.get_value("concepts-source")
    # An entry lives as long as its array, so that one is kept.
    _, summary = fields.get_array("summary")
    if summary.n_values == 0:
        return "nothing"
    largest = summary.get_nth(0)
    name = largest.get_string("name") or f"concept {largest.get_uint('id')[1]}"
    return f"{name} {largest.get_value('area'):.0%}, {concepts.get_value('age') / Gst.MSECOND:.0f} ms old"


class Wall:
    """The picture: a black ground, which never ends, and the cameras on it."""

    def __init__(self, bundle, sources, sink, retry):
        if Gst.ElementFactory.find("conceptseg") is None:
            raise RuntimeError("GStreamer does not find conceptseg; `conceptseg doctor` says why and what to do")
        self.bundle = bundle
        self.retry = retry
        self.failure = None
        self.loop = GLib.MainLoop()
        self.pipeline = Gst.parse_launch(
            f"videotestsrc is-live=true pattern=black ! video/x-raw,width={WIDTH * 2},height={HEIGHT},framerate=30/1"
            f" ! compositor name=wall ! videoconvert ! {sink}"
        )
        self.compositor = self.pipeline.get_by_name("wall")
        self.cameras = [Camera(self, index, source) for index, source in enumerate(sources)]

    def camera_of(self, element):
        """The camera whose source, not whose analysis, an element belongs to."""
        for camera in self.cameras:
            branch = camera.branch
            if branch is not None and element.has_as_ancestor(branch):
                analysis = branch.get_by_name("analysis")
                inside = element is analysis or element.has_as_ancestor(analysis)
                return None if inside else camera
        return None

    def on_message(self, _bus, message):
        if message.type == Gst.MessageType.ERROR:
            text = message.parse_error()[0].message
            camera = self.camera_of(message.src)
            if camera is not None:
                camera.lost(text)
            elif message.src is self.pipeline or message.src.has_as_ancestor(self.pipeline):
                self.fail(text)
            # What is left is of a branch that is no longer there.
        elif message.type == Gst.MessageType.WARNING:
            print(message.parse_warning()[0].message, file=sys.stderr)
        elif message.type == Gst.MessageType.LATENCY:
            self.pipeline.recalculate_latency()

    def fail(self, text):
        self.failure = self.failure or text
        self.loop.quit()

    def run(self):
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message", self.on_message)
        # Nothing is written to a file here, so that all may stop at once.
        GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGINT, self.loop.quit)
        try:
            for camera in self.cameras:
                camera.plug()
            self.pipeline.set_state(Gst.State.PLAYING)
            self.loop.run()
        finally:
            self.pipeline.set_state(Gst.State.NULL)
            bus.remove_signal_watch()
        return self.failure


def main():
    parser = argparse.ArgumentParser(description="Shows two cameras side by side and what is in them.")
    parser.add_argument("bundle", help="folder of the model")
    parser.add_argument("sources", nargs=2, metavar="source", help="a live source as for gst-launch-1.0")
    parser.add_argument("--sink", default="autovideosink", help="where the picture goes (default: a window)")
    parser.add_argument("--retry", type=float, default=2.0, help="seconds until a lost camera is tried again")
    arguments = parser.parse_args()
    Gst.init(None)
    try:
        failure = Wall(arguments.bundle, arguments.sources, arguments.sink, arguments.retry).run()
    except (GLib.Error, RuntimeError) as error:
        failure = error.message if isinstance(error, GLib.Error) else str(error)
    if failure:
        sys.exit(f"two_cameras.py: {failure}")


if __name__ == "__main__":
    main()
