/* Prints the segmentation metadata of GStreamer 1.26 and later on each frame that reaches the element called "out".
 *
 *   cc read_segmentation.c $(pkg-config --cflags --libs gstreamer-video-1.0 gstreamer-analytics-1.0) -o read_segmentation
 *   ./read_segmentation "videotestsrc num-buffers=10 ! conceptseg bundle=models/starter ! fakesink name=out"
 *
 * Nothing of ConceptSeg is linked: it reads what any element may have attached.
 */
#include <gst/analytics/analytics.h>
#include <gst/gst.h>
#include <gst/video/video.h>

/* How many pixels have a value that is not among the regions. */
static gsize
foreign_pixels (const GstAnalyticsSegmentationMtd * mtd, GstBuffer * mask,
    const GstVideoMeta * layout)
{
  GstMapInfo map;
  gsize foreign = 0, index, x, y;

  if (!gst_buffer_map (mask, &map, GST_MAP_READ))
    return layout->width * layout->height;
  for (y = 0; y < layout->height; y++) {
    const guint8 *row = map.data + layout->offset[0] + y * layout->stride[0];
    for (x = 0; x < layout->width; x++) {
      guint id = layout->format == GST_VIDEO_FORMAT_GRAY8 ? row[x]
          : GST_READ_UINT16_LE (row + 2 * x);
      if (!gst_analytics_segmentation_mtd_get_region_index (mtd, &index, id))
        foreign++;
    }
  }
  gst_buffer_unmap (mask, &map);
  return foreign;
}

static GstPadProbeReturn
on_buffer (GstPad * pad, GstPadProbeInfo * info, gpointer data)
{
  GstBuffer *buffer = GST_PAD_PROBE_INFO_BUFFER (info);
  GstAnalyticsRelationMeta *meta = gst_buffer_get_analytics_relation_meta (buffer);
  GstAnalyticsSegmentationMtd mtd;
  gpointer state = NULL;

  g_print ("frame at %" GST_TIME_FORMAT ":", GST_TIME_ARGS (GST_BUFFER_PTS (buffer)));
  while (meta && gst_analytics_relation_meta_iterate (meta, &state,
          gst_analytics_segmentation_mtd_get_mtd_type (), &mtd)) {
    gint x, y;
    guint width, height;
    gsize i, count = gst_analytics_segmentation_mtd_get_region_count (&mtd);
    GstBuffer *mask = gst_analytics_segmentation_mtd_get_mask (&mtd, &x, &y, &width, &height);
    const GstVideoMeta *layout = gst_buffer_get_video_meta (mask);

    g_print (" [%s %ux%u at %d,%d of %ux%u, regions", gst_video_format_to_string (layout->format),
        layout->width, layout->height, x, y, width, height);
    for (i = 0; i < count; i++)
      g_print (" %u", gst_analytics_segmentation_mtd_get_region_id (&mtd, i));
    g_print (", %" G_GSIZE_FORMAT " pixels of others]", foreign_pixels (&mtd, mask, layout));
    gst_buffer_unref (mask);
  }
  g_print ("\n");
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
