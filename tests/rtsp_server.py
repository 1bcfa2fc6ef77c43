"""An RTSP server on a free port of the loopback interface, for tests.

    python3 rtsp_server.py LAUNCH...

Each LAUNCH is a pipeline that ends in a payloader named pay0; the first is at /0, the next at /1.
Prints "port N" when it is ready, then "teardown" and "closed" as clients leave.
Needs: python3-gi, gir1.2-gst-rtsp-server-1.0.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer


def on_client(_server, client):
    client.connect("teardown-request", lambda *_: print("teardown", flush=True))
    client.connect("closed", lambda *_: print("closed", flush=True))


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    for index, launch in enumerate(sys.argv[1:]):
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {launch} )")
        server.get_mount_points().add_factory(f"/{index}", factory)
    server.connect("client-connected", on_client)
    if not server.attach(None):
        sys.exit("cannot listen on 127.0.0.1")
    print("port", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
