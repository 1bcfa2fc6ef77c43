//! Frames of many streams in one run of the network.
//!
//! Streams that batch are *members* of the model's [`Batcher`]. A member puts its input into the batch that is forming
//! for that size, and waits. The batch is *due* when it is full, when no member is left that could come, or when
//! [`Batching::timeout`] has passed; then the first of its members that notices runs it, in its own thread, and each
//! takes its part of the output. There is no thread that could be missing, and no leader that the others depend on.
//!
//! One batch runs at a time. While it does, waiting costs nothing, so the timeout of the next one counts from its end:
//! the network never idles for longer than the timeout while a frame waits.
//!
//! Nobody waits for a member that waits elsewhere, whose last input had another size, or that was waited for in vain and
//! has not come since: a stream that pauses costs the others one timeout, and a stream alone costs nothing, not even a
//! copy.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::{EmbedError, EmbeddingMap, Model};
use crate::backend::tensorrt;
use crate::backend::{BackendError, Images, OutputShape};

/// Most frames in one run of the network: as many as a plan of TensorRT takes.
pub const MAX_BATCH: usize = tensorrt::MAX_BATCH as usize;

/// Batches that keep their memory while they are not in use: while one forms and one runs, a third hands out results.
const SPARE: usize = 2;

/// How frames of several streams are gathered. Among streams of one model that differ in it, the largest size and the
/// shortest timeout hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Frames of a batch, 1 (no batches) to [`MAX_BATCH`].
    pub size: usize,
    /// How long a frame waits for others while the network is idle.
    pub timeout: Duration,
}

impl Batching {
    /// Every frame by itself.
    pub const NONE: Self = Self { size: 1, timeout: Duration::ZERO };
}

/// Width and height of an input.
type Size = (usize, usize);

/// The batches of a model.
#[derive(Default)]
pub(super) struct Batcher {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    members: Vec<Seat>,
    next_member: u64,
    /// By index, which stays as long as a batch is in use.
    batches: Vec<Batch>,
    next_batch: u64,
    /// Whether a batch, or a frame by itself, is in the network.
    running: bool,
    /// When the network was given back.
    idle_since: Option<Instant>,
}

/// What is known of a member.
struct Seat {
    id: u64,
    batching: Batching,
    /// Of its latest input.
    size: Option<Size>,
    /// The batch that it is in, until that runs.
    waits_in: Option<usize>,
    /// Was waited for in vain, and has not come since.
    absent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Forming,
    Running,
    Done,
}

struct Batch {
    phase: Phase,
    /// Orders batches by age.
    number: u64,
    size: Size,
    began: Instant,
    /// Places that were given away.
    count: usize,
    /// Inputs that are there.
    copied: usize,
    /// Members that have not left.
    inside: usize,
    answer: Option<Result<OutputShape, Arc<EmbedError>>>,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    /// `[count, 3, height, width]`, or longer.
    input: Mutex<Vec<f32>>,
    /// `[count, dim, height / stride, width / stride]`.
    output: RwLock<Vec<f32>>,
}

/// What a member of a forming batch does next.
enum Next {
    Run(Images<'static>),
    Wait(Option<Duration>),
}

impl State {
    fn seat(&mut self, id: u64) -> Option<&mut Seat> {
        self.members.iter_mut().find(|seat| seat.id == id)
    }

    /// The settings that hold for all.
    fn batching(&self) -> Batching {
        let size = self.members.iter().map(|seat| seat.batching.size).max();
        let timeout = self.members.iter().map(|seat| seat.batching.timeout).min();
        Batching {
            size: size.unwrap_or(1).clamp(1, MAX_BATCH),
            timeout: timeout.unwrap_or_default(),
        }
    }

    /// Members that may still bring an input of this size, `but` one.
    fn can_come(&mut self, size: Size, but: Option<u64>) -> impl Iterator<Item = &mut Seat> {
        self.members.iter_mut().filter(move |seat| {
            let suits = seat.size.is_none_or(|last| last == size);
            suits && seat.waits_in.is_none() && !seat.absent && Some(seat.id) != but
        })
    }

    fn forming(&self, size: Size, most: usize) -> Option<usize> {
        let suits = |b: &Batch| b.phase == Phase::Forming && b.size == size && b.count < most;
        self.batches.iter().position(suits)
    }

    /// Gives a member a place in the batch that is forming, or in a new one: index of the batch, and place.
    fn enter(&mut self, id: u64, size: Size) -> (usize, usize) {
        let most = self.batching().size;
        let index = self.forming(size, most).unwrap_or_else(|| self.begin(size));
        if let Some(seat) = self.seat(id) {
            seat.waits_in = Some(index);
        }
        let batch = &mut self.batches[index];
        batch.count += 1;
        batch.inside += 1;
        (index, batch.count - 1)
    }

    fn begin(&mut self, size: Size) -> usize {
        let free = self.batches.iter().position(|batch| batch.phase == Phase::Free);
        let memory = free.map(|index| Arc::clone(&self.batches[index].memory));
        let batch = Batch {
            phase: Phase::Forming,
            number: self.next_batch,
            size,
            began: Instant::now(),
            count: 0,
            copied: 0,
            inside: 0,
            answer: None,
            memory: memory.unwrap_or_default(),
        };
        self.next_batch += 1;
        if let Some(index) = free {
            self.batches[index] = batch;
            index
        } else {
            self.batches.push(batch);
            self.batches.len() - 1
        }
    }

    /// When the batch runs though others could come; nothing where it is due before.
    fn deadline(&mut self, index: usize) -> Option<Instant> {
        let Batching { size: most, timeout } = self.batching();
        let Batch { size, count, began, .. } = self.batches[index];
        if count >= most || self.can_come(size, None).next().is_none() {
            return None;
        }
        Some(self.idle_since.map_or(began, |idle| idle.max(began)) + timeout)
    }

    /// What a member of this forming batch does now.
    fn next(&mut self, index: usize, now: Instant) -> Next {
        if self.running {
            return Next::Wait(None);
        }
        let deadline = self.deadline(index);
        if let Some(left) = deadline.and_then(|at| at.checked_duration_since(now))
            && !left.is_zero()
        {
            return Next::Wait(Some(left));
        }
        // Older ones first. Whoever waits in one of them notices too.
        for other in 0..self.batches.len() {
            let Batch { phase, number, .. } = self.batches[other];
            if phase == Phase::Forming
                && number < self.batches[index].number
                && self.deadline(other).is_none_or(|at| at <= now)
            {
                return Next::Wait(None);
            }
        }
        let Batch { size, count, copied, .. } = self.batches[index];
        if copied < count {
            return Next::Wait(None);
        }
        if deadline.is_some() {
            self.can_come(size, None).for_each(|seat| seat.absent = true);
        }
        for seat in &mut self.members {
            if seat.waits_in == Some(index) {
                seat.waits_in = None;
            }
        }
        self.batches[index].phase = Phase::Running;
        self.running = true;
        let most = self.batching().size.max(count);
        Next::Run(Images { data: &[], count, most, width: size.0, height: size.1 })
    }

    /// The network is free again.
    fn give_back(&mut self) {
        self.running = false;
        self.idle_since = Some(Instant::now());
    }

    fn finish(&mut self, index: usize, answer: Result<OutputShape, Arc<EmbedError>>) {
        self.give_back();
        let batch = &mut self.batches[index];
        batch.phase = Phase::Done;
        batch.answer = Some(answer);
    }

    /// A member has what it came for, or has given up.
    fn leave(&mut self, index: usize, id: u64) {
        if let Some(seat) = self.seat(id) {
            seat.waits_in = None;
        }
        let free = self.batches.iter().filter(|batch| batch.phase == Phase::Free).count();
        let batch = &mut self.batches[index];
        batch.inside -= 1;
        if batch.inside == 0 {
            batch.phase = Phase::Free;
            if free >= SPARE {
                batch.memory = Arc::default();
            }
        }
    }
}

impl Batcher {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        longest: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match longest {
            Some(longest) => {
                let waited = self.changed.wait_timeout(state, longest);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn join(&self, batching: Batching) -> u64 {
        let mut state = self.lock();
        let id = state.next_member;
        state.next_member += 1;
        state.members.push(Seat { id, batching, size: None, waits_in: None, absent: false });
        id
    }

    fn part(&self, id: u64) {
        let mut state = self.lock();
        state.members.retain(|seat| seat.id != id);
        if state.members.is_empty() {
            // Nobody is inside of a batch, so that this frees all memory.
            state.batches.clear();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Brings an input, and hands `take` the network's output for it. `run` runs the network on the whole batch, which
    /// this or another member does. Answers how many frames ran together.
    fn submit(
        &self,
        id: u64,
        input: &[f32],
        size: Size,
        scratch: &mut Vec<f32>,
        run: impl Fn(Images<'_>, &mut Vec<f32>) -> Result<OutputShape, EmbedError>,
        take: impl FnOnce(&[f32], OutputShape) -> Result<(), EmbedError>,
    ) -> Result<usize, EmbedError> {
        let mut state = self.lock();
        if let Some(seat) = state.seat(id) {
            (seat.size, seat.absent) = (Some(size), false);
        }
        let most = state.batching().size;
        if !state.running
            && state.forming(size, most).is_none()
            && state.can_come(size, Some(id)).next().is_none()
        {
            state.running = true;
            drop(state);
            let alone = Alone(self);
            let shape = run(Images { most, ..Images::one(input, size.0, size.1) }, scratch)?;
            drop(alone);
            return take(scratch, shape).map(|()| 1);
        }
        let (index, place) = state.enter(id, size);
        let memory = Arc::clone(&state.batches[index].memory);
        drop(state);
        let mut inside = Inside { batcher: self, index, id, copied: false, runs: false };
        memory.put(place, input, most);
        inside.copied();
        let (count, answer) = inside.answer(&memory, input.len(), run);
        let shape = answer.map_err(EmbedError::Batch)?;
        let output = memory.output.read().unwrap_or_else(PoisonError::into_inner);
        let own = output.chunks_exact(shape.len().max(1)).nth(place);
        let missing = || BackendError::Output { count, shape: vec![output.len()] };
        take(own.ok_or_else(missing)?, shape)?;
        Ok(count)
    }
}

impl Memory {
    /// Copies an input to its place, in memory for the whole batch.
    fn put(&self, place: usize, input: &[f32], most: usize) {
        let mut all = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let from = place * input.len();
        let to = from + input.len();
        if all.len() < to {
            let whole = input.len() * most.max(place + 1);
            let missing = whole.saturating_sub(all.len());
            all.reserve_exact(missing);
            all.resize(to, 0.0);
        }
        all[from..to].copy_from_slice(input);
    }
}

/// A frame by itself in the network, which is given back whatever happens.
struct Alone<'a>(&'a Batcher);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.lock().give_back();
        self.0.changed.notify_all();
    }
}

/// A member inside of a batch. Whatever happens to it, the others go on.
struct Inside<'a> {
    batcher: &'a Batcher,
    index: usize,
    id: u64,
    copied: bool,
    runs: bool,
}

impl Inside<'_> {
    fn copied(&mut self) {
        self.copied = true;
        self.batcher.lock().batches[self.index].copied += 1;
        self.batcher.changed.notify_all();
    }

    /// Waits for the batch, or runs it. Answers how many frames it has, and what the network said.
    fn answer(
        &mut self,
        memory: &Memory,
        length: usize,
        run: impl Fn(Images<'_>, &mut Vec<f32>) -> Result<OutputShape, EmbedError>,
    ) -> (usize, Result<OutputShape, Arc<EmbedError>>) {
        let mut state = self.batcher.lock();
        loop {
            if state.batches[self.index].phase == Phase::Forming {
                match state.next(self.index, Instant::now()) {
                    Next::Wait(longest) => state = self.batcher.wait(state, longest),
                    Next::Run(images) => {
                        self.runs = true;
                        drop(state);
                        let answer = {
                            let mut input =
                                memory.input.lock().unwrap_or_else(PoisonError::into_inner);
                            let mut output =
                                memory.output.write().unwrap_or_else(PoisonError::into_inner);
                            // Shorter only where a member died before it brought its own.
                            let whole = images.count * length;
                            if input.len() < whole {
                                input.resize(whole, 0.0);
                            }
                            let data = &input[..whole];
                            run(Images { data, ..images }, &mut output)
                        };
                        state = self.batcher.lock();
                        self.runs = false;
                        state.finish(self.index, answer.map_err(Arc::new));
                        self.batcher.changed.notify_all();
                    }
                }
                continue;
            }
            let batch = &state.batches[self.index];
            if let Some(answer) = &batch.answer {
                return (batch.count, answer.clone());
            }
            state = self.batcher.wait(state, None);
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.batcher.lock();
        if !self.copied {
            state.batches[self.index].copied += 1;
        }
        if self.runs {
            state.finish(self.index, Err(Arc::new(EmbedError::Panicked)));
        }
        state.leave(self.index, self.id);
        drop(state);
        self.batcher.changed.notify_all();
    }
}

/// A stream among those that batch.
pub(super) struct Member {
    model: Arc<Model>,
    id: u64,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Member {
    /// One more stream of the model.
    pub(super) fn join(model: &Arc<Model>, batching: Batching) -> Self {
        Self { model: Arc::clone(model), id: model.batcher.join(batching) }
    }

    /// As [`Model::embed`], in a batch; answers how many frames that had. `scratch` is used where the frame runs alone.
    pub(super) fn embed(
        &mut self,
        input: &[f32],
        (w, h): Size,
        scratch: &mut Vec<f32>,
        out: &mut EmbeddingMap,
    ) -> Result<usize, EmbedError> {
        // What cannot run at all is not to spoil the batch of others.
        self.model.check_size(w, h)?;
        Images::one(input, w, h).check()?;
        self.model.batcher.submit(
            self.id,
            input,
            (w, h),
            scratch,
            |images, out| self.model.run(images, out),
            |channels, shape| self.model.map(channels, shape, out),
        )
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.model.batcher.part(self.id);
    }
}

#[cfg(test)]
mod tests;
