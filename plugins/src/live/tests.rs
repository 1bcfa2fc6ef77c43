//! The worker on a stage whose time is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use conceptseg::stream::StageTimes;

use super::{Found, Moment, Stage, Worker};
use crate::meta::Source;

/// Takes some time, or panics, or fails.
struct Slow {
    time: Duration,
    runs: Arc<AtomicUsize>,
}

enum Job {
    Frame(Moment),
    Panic,
    Fail,
}

impl Stage for Slow {
    type Input = Job;
    type Output = ();

    fn run(&mut self, job: Job) -> Result<Found<()>, gst::ErrorMessage> {
        let moment = match job {
            Job::Frame(moment) => moment,
            Job::Panic => panic!("as the test wants it"),
            Job::Fail => return Err(gst::error_msg!(gst::StreamError::Failed, ["lost"])),
        };
        let began = Instant::now();
        sleep(self.time);
        self.runs.fetch_add(1, Ordering::Relaxed);
        let times = StageTimes { network: began.elapsed(), ..StageTimes::default() };
        let (frame, pts) = (moment.frame, moment.pts);
        let source = Source { frame, pts, width: 1, height: 1, times };
        Ok(Found { source, began, value: () })
    }
}

fn worker(ms: u64) -> (Worker<Slow>, Arc<AtomicUsize>) {
    gst::init().unwrap();
    let runs = Arc::<AtomicUsize>::default();
    (Worker::new(Slow { time: Duration::from_millis(ms), runs: Arc::clone(&runs) }), runs)
}

/// One frame of a live stream.
struct Passed {
    age: Option<Duration>,
    held: Duration,
    cost: Duration,
}

/// Passes frames `interval` apart in real time.
fn live(worker: &Worker<Slow>, frames: u64, interval: Duration) -> Vec<Passed> {
    let start = Instant::now();
    (0..frames)
        .map(|i| {
            let due = interval * i as u32;
            sleep(due.saturating_sub(start.elapsed()));
            let now = Moment::now(i, gst::ClockTime::try_from(due).ok());
            let begin = Instant::now();
            let (found, _) = worker.skip(now, || Ok(Some(Job::Frame(now)))).unwrap();
            Passed {
                age: found.as_ref().map(|found| found.age(now).into()),
                held: begin.elapsed(),
                cost: found.map_or(Duration::ZERO, |found| found.source.cost()),
            }
        })
        .collect()
}

#[test]
fn at_30_frames_per_second_a_model_of_80_ms_is_never_two_inference_times_late() {
    let (worker, runs) = worker(80);
    let interval = Duration::from_micros(33_333);
    let passed = live(&worker, 90, interval);
    worker.stop();
    let slowest = passed.iter().map(|p| p.cost).max().unwrap();
    let worst = passed.iter().filter_map(|p| p.age).max().unwrap();
    assert!(worst < 2 * slowest, "a result is {worst:?} old, an inference took {slowest:?}");
    // The first result needs an inference, every frame after that has one.
    let without = passed.iter().filter(|p| p.age.is_none()).count();
    assert!((1..=6).contains(&without), "{without}");
    assert!(passed[without..].iter().all(|p| p.age.is_some()));
    // Nothing piles up: most frames pass at once, and at the end none is held for longer than at
    // the beginning.
    let at_once = passed.iter().filter(|p| p.held < Duration::from_millis(5)).count();
    assert!(at_once > 45, "{at_once}");
    let median = |part: &[Passed]| {
        let mut held: Vec<_> = part.iter().map(|p| p.held).collect();
        held.sort_unstable();
        held[held.len() / 2]
    };
    assert!(median(&passed[60..]) < median(&passed[..30]) + Duration::from_millis(10));
    let runs = runs.load(Ordering::Relaxed);
    assert!((15..=37).contains(&runs), "{runs}");
}

#[test]
fn a_fast_model_shows_each_frame_its_own_result() {
    let (worker, _) = worker(3);
    let passed = live(&worker, 20, Duration::from_millis(40));
    worker.stop();
    let own = passed.iter().filter(|p| p.age == Some(Duration::ZERO)).count();
    assert!(own >= 17, "{own}");
}

#[test]
fn a_failure_is_told_to_the_next_frame_and_the_one_after_goes_on() {
    let (worker, runs) = worker(1);
    let now = Moment::now(0, None);
    for (job, part) in [(Job::Fail, "lost"), (Job::Panic, "panicked")] {
        worker.skip(now, || Ok(Some(job))).unwrap();
        worker.drain();
        let failure = worker.skip(now, || Ok(None)).unwrap_err();
        assert!(failure.to_string().contains(part), "{failure}");
    }
    worker.skip(now, || Ok(Some(Job::Frame(now)))).unwrap();
    worker.drain();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    worker.stop();
}

#[test]
fn a_flush_frees_a_waiting_frame_and_drops_the_result_that_is_being_made() {
    let (worker, _) = worker(300);
    let at = |ms| Moment::now(ms, Some(gst::ClockTime::from_mseconds(ms)));
    worker.skip(at(0), || Ok(Some(Job::Frame(at(0))))).unwrap();
    worker.drain();
    worker.skip(at(1), || Ok(Some(Job::Frame(at(1))))).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let begin = Instant::now();
            let (found, busy) = worker.skip(at(5000), || Ok(None)).unwrap();
            (begin.elapsed(), found.is_some(), busy)
        });
        sleep(Duration::from_millis(50));
        worker.flush(true);
        let (held, shows, busy) = waiting.join().unwrap();
        assert!(held < Duration::from_millis(250) && !shows && busy, "{held:?} {shows} {busy}");
    });
    worker.flush(false);
    worker.drain();
    assert!(worker.skip(at(5001), || Ok(None)).unwrap().0.is_none());
    worker.stop();
}

#[test]
fn without_time_stamps_the_clock_tells_the_age() {
    let (worker, _) = worker(20);
    let now = Moment::now(0, None);
    let found = worker.block(|| Ok(Some(Job::Frame(now)))).unwrap().unwrap();
    assert_eq!(found.age(now), gst::ClockTime::ZERO);
    sleep(Duration::from_millis(30));
    assert!(found.age(Moment::now(1, None)) >= gst::ClockTime::from_mseconds(50));
}
