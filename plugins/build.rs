//! Records version and release date for `gst-inspect-1.0`.
fn main() {
    gst_plugin_version_helper::info();
}
