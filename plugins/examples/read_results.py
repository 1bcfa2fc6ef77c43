#!/usr/bin/env python3
"""Prints what conceptseg found in each frame that reaches the element called "out".

    apt install python3-gi gir1.2-gst-plugins-base-1.0
    ./read_results.py "videotestsrc num-buffers=10 ! conceptseg bundle=models/starter ! fakesink name=out"
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstVideo


def instance_in_the_middle(fields):
    """The id of the instance at the middle of the frame."""
    if not fields.has_field("masks"):
        return -1
    masks = fields.get_value("masks")
    layout = GstVideo.buffer_get_video_meta(masks)
    mapped, info = masks.map(Gst.MapFlags.READ)
    if not mapped:
        return -1
    try:
        return info.data[layout.offset[0] + layout.height // 2 * layout.stride[0] + layout.width // 2]
    finally:
        masks.unmap(info)


def on_buffer(_pad, info):
    meta = info.get_buffer().get_custom_meta("ConceptSegMeta")
    if meta is None:
        # A live stream has frames before the first result.
        print("no result")
        return Gst.PadProbeReturn.OK
    fields = meta.get_structure()
    source = fields.get_value("concepts-source") if fields.has_field("concepts-source") else None
    age = source.get_value("age") // Gst.MSECOND if source else 0
    stale = ", stale" if source and source.get_value("stale") else ""
    print(
        f"frame {fields.get_value('frame')}, {age} ms old{stale}:"
        f" {fields.get_value('width')}x{fields.get_value('height')},"
        f" instance in the middle {instance_in_the_middle(fields)}",
        flush=True,
    )
    return Gst.PadProbeReturn.OK


def main():
    Gst.init(None)
    pipeline = Gst.parse_launch(sys.argv[1])
    pad = pipeline.get_by_name("out").get_static_pad("sink")
    pad.add_probe(Gst.PadProbeType.BUFFER, on_buffer)
    pipeline.set_state(Gst.State.PLAYING)
    wanted = Gst.MessageType.EOS | Gst.MessageType.ERROR
    message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, wanted)
    pipeline.set_state(Gst.State.NULL)
    if message.type == Gst.MessageType.ERROR:
        sys.exit(message.parse_error()[0].message)


if __name__ == "__main__":
    main()
