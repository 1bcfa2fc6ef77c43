//! The plugin on inputs as they are in practice: video files, pictures, cameras over a network.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use conceptseg_tests::streams::{Arrived, RtspServer, gst_launch_results, h264_encoder};
use conceptseg_tests::{
    conceptseg, gst_launch, gstreamer, json_lines, listing, scene, scene_source, tiny_bundle,
};
use serde_json::Value;

const FRAMES: u32 = 16;

/// Checks that the records are of all frames from 0 on, at `rate` frames per second with time
/// stamps that are exact to `tolerance`.
fn assert_continuous(records: &[Value], rate: f64, tolerance: Duration) {
    let pts = |record: &Value| record["pts_ns"].as_u64().unwrap() as f64 / 1e9;
    let first = pts(&records[0]);
    for (i, record) in records.iter().enumerate() {
        assert_eq!(record["frame"], i, "{record}");
        let expected = i as f64 / rate;
        let off = (pts(record) - first - expected).abs();
        assert!(off <= tolerance.as_secs_f64(), "frame {i} is {off} s away from {expected} s");
        assert!(!record["concepts"].as_array().unwrap().is_empty(), "{record}");
    }
}

/// J of the masks in a file of results.
fn j(results: &Path, annotations: &Path) -> f64 {
    let out = results.with_extension("report");
    let mut arguments = vec!["--json", "report", "--results", results.to_str().unwrap()];
    arguments.extend(["--out", out.to_str().unwrap()]);
    arguments.extend(["--annotations", annotations.to_str().unwrap()]);
    conceptseg(arguments).json()["quality"]["j_mean"].as_f64().unwrap()
}

#[test]
fn a_file_of_any_common_kind_has_a_result_for_every_frame_and_its_masks_follow() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let scene = scene(dir.path(), 214, 120, FRAMES);
    let mut kinds = vec![
        ("webm", "vp8enc deadline=1 target-bitrate=4000000 ! webmmux"),
        ("avi", "jpegenc quality=95 ! avimux"),
        ("ogg", "theoraenc quality=60 ! oggmux"),
    ];
    let h264 = h264_encoder().map(|encoder| format!("{encoder} ! h264parse ! mp4mux"));
    if let Some(line) = &h264 {
        kinds.push(("mp4", line));
    }
    for (kind, encoder) in kinds {
        let file = dir.path().join(format!("scene.{kind}"));
        let made = gst_launch(&format!(
            "{} ! video/x-raw,format=I420 ! {encoder} ! filesink location={}",
            scene_source(&scene, FRAMES),
            file.display(),
        ));
        assert_eq!(made.code, 0, "{kind}: {made:?}");
        let results = dir.path().join(format!("{kind}.jsonl"));
        let answer = gst_launch(&format!(
            "filesrc location={} ! decodebin ! conceptseg bundle={} short-side=120 \
             first-frame-mask={}/masks/00000.png results-location={} ! fakesink",
            file.display(),
            bundle.display(),
            scene.display(),
            results.display(),
        ));
        assert_eq!(answer.code, 0, "{kind}: {answer:?}");
        let records = json_lines(&results);
        assert_eq!(records.len(), FRAMES as usize, "{kind}");
        // Matroska rounds to milliseconds.
        assert_continuous(&records, 30.0, Duration::from_millis(1));
        for record in &records {
            let ids: Vec<_> =
                record["instances"].as_array().unwrap().iter().map(|o| &o["id"]).collect();
            assert_eq!(ids, [1, 2, 3, 4], "{kind} {record}");
        }
        let j = j(&results, &scene.join("masks"));
        println!("{kind}: J {j:.3}");
        // Masks that stay where they are reach 0.45 here.
        assert!(j > 0.6, "{kind}: J is {j:.3}");
    }
}

#[test]
fn pictures_have_the_rate_of_their_caps_and_may_change_in_size() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    for (part, (width, height)) in [(96, 64), (131, 77), (96, 64)].into_iter().enumerate() {
        let folder = dir.path().join(part.to_string());
        let scene = scene(&folder, width, height, 4);
        for i in 0..4 {
            let source = scene.join(format!("frames/{i:05}.png"));
            fs::copy(source, pictures.join(format!("{:03}.png", part * 4 + i))).unwrap();
        }
    }
    let results = dir.path().join("results.jsonl");
    let answer = gst_launch(&format!(
        "multifilesrc location={}/%03d.png caps=image/png,framerate=12/1 ! pngdec \
         ! conceptseg bundle={} short-side=64 first-frame-mask={}/masks/00000.png \
         results-location={} ! fakesink",
        pictures.display(),
        bundle.display(),
        dir.path().join("0/scene").display(),
        results.display(),
    ));
    assert_eq!(answer.code, 0, "{answer:?}");
    let records = json_lines(&results);
    assert_eq!(records.len(), 12);
    assert_continuous(&records, 12.0, Duration::from_micros(1));
    for (i, record) in records.iter().enumerate() {
        let size = if i / 4 == 1 { [131, 77] } else { [96, 64] };
        assert_eq!([&record["width"], &record["height"]], size, "frame {i}");
        assert_eq!(record["instances"].as_array().unwrap().len(), 4, "frame {i}");
    }
}

/// A live camera of 15 frames per second behind a payloader.
fn camera(encoder: &str, frames: i32) -> String {
    format!(
        "videotestsrc is-live=true num-buffers={frames} pattern=ball \
         ! video/x-raw,format=I420,width=128,height=96,framerate=15/1 ! {encoder} name=pay0"
    )
}

const MJPEG: &str = "jpegenc ! rtpjpegpay";

/// Both kinds of cameras, those that can be had here.
fn cameras(frames: i32) -> Vec<String> {
    let mut cameras = vec![camera(MJPEG, frames)];
    if let Some(encoder) = h264_encoder() {
        cameras.push(camera(&format!("{encoder} ! rtph264pay config-interval=1"), frames));
    }
    cameras
}

fn rtsp(cameras: &[String]) -> Option<RtspServer> {
    RtspServer::start(&cameras.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Whether each line is of a later frame, with a result that is not of an earlier one.
fn in_order(arrived: &[Arrived]) -> bool {
    arrived
        .windows(2)
        .all(|pair| pair[0].pts() < pair[1].pts() && pair[0].frame() <= pair[1].frame())
}

#[test]
fn an_rtsp_camera_passes_every_frame_with_results_and_is_left_in_good_order() {
    // Endless, and left by the client: a server that is at its end closes the connection at any time.
    let cameras = cameras(-1);
    let Some(server) = rtsp(&cameras) else { return };
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    for (index, camera) in cameras.iter().enumerate() {
        let passed = dir.path().join(index.to_string());
        fs::create_dir(&passed).unwrap();
        let (arrived, answer) = gst_launch_results(
            &format!(
                "rtspsrc location={} protocols=tcp latency=100 ! decodebin \
                 ! identity eos-after=45 ! conceptseg bundle={} short-side=64 results-fd=1 ! jpegenc \
                 ! multifilesink location={}/%05d.jpg",
                server.location(index),
                bundle.display(),
                passed.display(),
            ),
            |_| (),
        );
        assert_eq!(answer.code, 0, "{camera}: {answer:?}");
        server.wait_for("teardown");
        let passed = listing(&passed).len();
        assert!((44..=45).contains(&passed), "{passed} frames: {answer:?}");
        // Live: the first frames have no result, each one after them has the latest.
        assert!(arrived.len() * 2 > passed, "{} of {passed} frames have one", arrived.len());
        assert!(in_order(&arrived));
        for pair in arrived.windows(2) {
            let step = pair[1].pts().saturating_sub(pair[0].pts()).as_secs_f64() * 15.0;
            assert!((0.5..1.5).contains(&step), "{step} frame intervals between {pair:?}");
        }
    }
}

#[test]
fn an_rtsp_server_that_goes_away_ends_the_stream_and_keeps_its_results() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    // Over TCP rtspsrc takes the end of the connection as the end of the stream; over UDP it
    // is an error.
    for (protocol, code) in [("tcp", 0), ("udp", 1)] {
        let Some(mut server) = rtsp(&[camera(MJPEG, -1)]) else { return };
        let location = server.location(0);
        let mut left = 10;
        let (arrived, answer) = gst_launch_results(
            &format!(
                "rtspsrc location={location} protocols={protocol} latency=100 timeout=2000000 \
                 tcp-timeout=5000000 ! decodebin ! conceptseg bundle={} short-side=64 \
                 results-fd=1 ! fakesink",
                bundle.display(),
            ),
            |_| {
                left -= 1;
                if left == 0 {
                    server.kill();
                }
            },
        );
        assert_eq!(answer.code, code, "{protocol}: {answer:?}");
        let complained = answer.stderr.contains("ERROR: from element");
        assert_eq!(complained, code == 1, "{protocol}: {answer:?}");
        assert!(arrived.len() >= 10);
        assert!(in_order(&arrived), "{protocol}: {arrived:?}");
    }
}

/// How much later than its frame each result came, in seconds, beside the first one.
fn lags(arrived: &[Arrived]) -> Vec<f64> {
    let first = &arrived[0];
    arrived
        .iter()
        .map(|a| {
            let stream = a.pts().as_secs_f64() - first.pts().as_secs_f64();
            a.at.duration_since(first.at).as_secs_f64() - stream
        })
        .collect()
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[test]
fn lost_packets_cost_frames_but_neither_results_nor_time() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    // Nobody takes it in the moment until the pipeline does.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let loss = "identity drop-probability=0.05";
    let camera = format!(
        "{} ! {loss} ! udpsink host=127.0.0.1 port={port} sync=false",
        camera(MJPEG, 3000).replace("15/1", "30/1"),
    );
    let mut camera =
        gstreamer("gst-launch-1.0").arg("-q").args(camera.split_whitespace()).spawn().unwrap();
    let (arrived, answer) = gst_launch_results(
        &format!(
            "udpsrc address=127.0.0.1 port={port} \
             caps=application/x-rtp,media=video,clock-rate=90000,encoding-name=JPEG,payload=26 \
             ! rtpjitterbuffer latency=100 ! rtpjpegdepay ! jpegdec \
             ! identity eos-after=120 ! conceptseg bundle={} short-side=64 \
             results-fd=1 ! fakesink sync=true",
            bundle.display(),
        ),
        |_| (),
    );
    let _ = camera.kill();
    let _ = camera.wait();
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(arrived.len() >= 60, "{} results", arrived.len());
    assert!(in_order(&arrived), "{arrived:?}");
    let step = |pair: &[Arrived]| pair[1].pts().saturating_sub(pair[0].pts());
    let holes = arrived.windows(2).filter(|pair| step(pair) > Duration::from_millis(50)).count();
    println!("{} results, {holes} holes", arrived.len());
    assert!(holes > 0, "no frame was lost");
    let lags = lags(&arrived);
    let (begin, end) = lags.split_at(lags.len() / 2);
    let grown = median(end) - median(begin);
    assert!(grown < 0.3, "results come {grown} s later at the end");
}
