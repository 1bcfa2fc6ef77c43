/* Prints what conceptseg found in each frame that reaches the element called "out".
 *
 *   cc read_results.c $(pkg-config --cflags --libs gstreamer-video-1.0) -o read_results
 *   ./read_results "videotestsrc num-buffers=10 ! conceptseg bundle=models/starter ! fakesink name=out"
 *
 * Nothing of ConceptSeg is linked: the metadata is a GstStructure.
 */
#include <gst/gst.h>
#include <gst/video/video.h>

/* The id of the instance at the middle of the frame. */
static int
instance_in_the_middle (const GstStructure * fields)
{
  GstBuffer *masks = NULL;
  GstVideoMeta *layout;
  GstMapInfo map;
  gsize place;
  int id = -1;

  if (!gst_structure_get (fields, "masks", GST_TYPE_BUFFER, &masks, NULL))
    return -1;
  layout = gst_buffer_get_video_meta (masks);
  if (layout && gst_buffer_map (masks, &map, GST_MAP_READ)) {
    place = layout->offset[0] + (gsize) (layout->height / 2) * layout->stride[0]
        + layout->width / 2;
    if (place < map.size)
      id = map.data[place];
    gst_buffer_unmap (masks, &map);
  }
  gst_buffer_unref (masks);
  return id;
}

static GstPadProbeReturn
on_buffer (GstPad * pad, GstPadProbeInfo * info, gpointer data)
{
  GstBuffer *buffer = GST_PAD_PROBE_INFO_BUFFER (info);
  GstCustomMeta *meta = gst_buffer_get_custom_meta (buffer, "ConceptSegMeta");
  const GstStructure *fields, *source;
  const GValue *summary, *value;
  guint64 frame = 0, age = 0;
  gboolean stale = FALSE;
  guint i;

  if (!meta) {
    /* A live stream has frames before the first result. */
    g_print ("no result\n");
    return GST_PAD_PROBE_OK;
  }
  fields = gst_custom_meta_get_structure (meta);
  gst_structure_get_uint64 (fields, "frame", &frame);
  if ((value = gst_structure_get_value (fields, "concepts-source"))) {
    source = gst_value_get_structure (value);
    gst_structure_get_uint64 (source, "age", &age);
    gst_structure_get_boolean (source, "stale", &stale);
  }
  g_print ("frame %" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT " ms old%s:",
      frame, age / GST_MSECOND, stale ? ", stale" : "");
  summary = gst_structure_get_value (fields, "summary");
  for (i = 0; summary && i < gst_value_array_get_size (summary); i++) {
    const GstStructure *concept =
        gst_value_get_structure (gst_value_array_get_value (summary, i));
    guint id = 0;
    gdouble area = 0;

    gst_structure_get_uint (concept, "id", &id);
    gst_structure_get_double (concept, "area", &area);
    g_print (" concept %u %.0f %%", id, area * 100);
  }
  g_print (", instance in the middle %d\n", instance_in_the_middle (fields));
  return GST_PAD_PROBE_OK;
}

int
main (int argc, char **argv)
{
  GError *error = NULL;
  GstElement *pipeline, *out;
  GstMessage *message;
  GstPad *pad;
  GstBus *bus;
  int status = 0;

  gst_init (&argc, &argv);
  if (argc != 2) {
    g_printerr ("give a pipeline with an element called out\n");
    return 2;
  }
  pipeline = gst_parse_launch (argv[1], &error);
  out = error ? NULL : gst_bin_get_by_name (GST_BIN (pipeline), "out");
  if (!out) {
    g_printerr ("%s\n", error ? error->message : "no element is called out");
    return 2;
  }
  pad = gst_element_get_static_pad (out, "sink");
  gst_pad_add_probe (pad, GST_PAD_PROBE_TYPE_BUFFER, on_buffer, NULL, NULL);
  gst_object_unref (pad);
  gst_object_unref (out);

  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  bus = gst_element_get_bus (pipeline);
  message = gst_bus_timed_pop_filtered (bus, GST_CLOCK_TIME_NONE,
      GST_MESSAGE_EOS | GST_MESSAGE_ERROR);
  if (GST_MESSAGE_TYPE (message) == GST_MESSAGE_ERROR) {
    gst_message_parse_error (message, &error, NULL);
    g_printerr ("%s\n", error->message);
    g_error_free (error);
    status = 1;
  }
  gst_message_unref (message);
  gst_element_set_state (pipeline, GST_STATE_NULL);
  gst_object_unref (bus);
  gst_object_unref (pipeline);
  return status;
}
