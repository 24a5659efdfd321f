//! Loads on a [`System`]: closed loops (one outstanding request per client), pipelines, backlogs,
//! and the open loop that measures lag. All clients of a load run on one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};

use crate::client::Client;
use crate::clock::PreciseTimer;
use crate::rows::{Keys, MARKER_KEY, Row, Rows};
use crate::system::System;

/// Longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// A histogram of nanoseconds, to three digits.
#[must_use]
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3).expect("constant, valid bounds")
}

fn record(histogram: &mut Histogram<u64>, since: Instant, until: Instant) {
    let nanos = until.saturating_duration_since(since).as_nanos();
    histogram.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
}

/// The rows of a load.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Different keys.
    pub keys: u64,
    /// Which of them, how often.
    pub pick: Keys,
    /// Rows in a transaction.
    pub transaction_rows: usize,
}

/// How long a load runs.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// What is not counted, at the beginning.
    pub warm_up: Duration,
    /// What is counted.
    pub measured: Duration,
}

impl Span {
    /// Counts `measured` after a fifth of it.
    #[must_use]
    pub fn of(measured: Duration) -> Span {
        Span { warm_up: measured / 5, measured }
    }
}

/// What a load did while it was counted.
pub struct Ran {
    /// Acknowledged transactions.
    pub transactions: u64,
    /// Seconds.
    pub seconds: f64,
    /// From sending to the reply, in nanoseconds; of a pipeline, of all that was sent together.
    pub latency: Histogram<u64>,
}

impl Ran {
    /// Transactions per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.transactions as f64 / self.seconds
    }
}

/// Seeds that no load has had before: a row that is written again with the value that it has is no
/// work for some systems (MariaDB logs nothing of it).
fn fresh_seeds(clients: u64) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(clients, Ordering::Relaxed)
}

/// Writes every key once: what a run starts from.
///
/// # Errors
/// When a write is refused.
pub async fn preload<S: System>(system: &S, keys: u64) -> Result<()> {
    let mut client = system.backlog_writer().await?;
    let rows: Vec<Row> = Rows::new(0, keys, Keys::Uniform).all().collect();
    let parts: Vec<&[Row]> = rows.chunks(100).collect();
    for some in parts.chunks(64) {
        client.write_together(some, &mut |_| {}).await?;
    }
    Ok(())
}

/// What the clients of one load share.
struct Shared {
    began: Instant,
    span: Span,
    done: Cell<u64>,
    latency: RefCell<Histogram<u64>>,
}

impl Shared {
    fn count(&self, sent: Instant, transactions: u64) {
        let now = Instant::now();
        if now >= self.began + self.span.warm_up && !self.is_over(now) {
            self.done.set(self.done.get() + transactions);
            record(&mut self.latency.borrow_mut(), sent, now);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.began + self.span.warm_up + self.span.measured
    }
}

/// `clients` connections, each with `depth` transactions sent together and answered before the
/// next.
///
/// # Errors
/// When a write is refused.
pub async fn closed<S: System>(
    system: &S,
    clients: usize,
    depth: usize,
    input: Input,
    span: Span,
) -> Result<Ran> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(system.writer().await?);
    }
    let (done, latency) = (Cell::new(0), RefCell::new(latencies()));
    let shared = Rc::new(Shared { began: Instant::now(), span, done, latency });
    let seeds = fresh_seeds(clients as u64);
    let mut tasks = Vec::new();
    for (at, client) in connections.into_iter().enumerate() {
        let rows = Rows::new(seeds + at as u64, input.keys, input.pick);
        tasks.push(spawn_local(one_client(client, rows, depth, input, shared.clone())));
    }
    join(tasks).await?;
    let latency = shared.latency.borrow().clone();
    Ok(Ran { transactions: shared.done.get(), seconds: span.measured.as_secs_f64(), latency })
}

async fn one_client<C: Client>(
    mut client: C,
    mut rows: Rows,
    depth: usize,
    input: Input,
    shared: Rc<Shared>,
) -> Result<()> {
    let mut together = vec![Vec::new(); depth];
    while !shared.is_over(Instant::now()) {
        for transaction in &mut together {
            rows.transaction(input.transaction_rows, transaction);
        }
        let sent = Instant::now();
        if let [one] = &together[..] {
            client.write(one).await?;
        } else {
            let parts: Vec<&[Row]> = together.iter().map(Vec::as_slice).collect();
            client.write_together(&parts, &mut |_| {}).await?;
        }
        shared.count(sent, depth as u64);
    }
    Ok(())
}

async fn join(tasks: Vec<JoinHandle<Result<()>>>) -> Result<()> {
    for task in tasks {
        task.await.context("a client panicked")??;
    }
    Ok(())
}

/// Connections that write a backlog, and transactions that each sends together.
const BACKLOG_CLIENTS: u64 = 8;
const BACKLOG_DEPTH: u64 = 64;

/// Writes so many transactions as fast as it goes, durable or not as the system's backlog writer
/// is; then a marker row with `number`, which arrives after all of them.
///
/// # Errors
/// When a write is refused.
pub async fn backlog<S: System>(
    system: &S,
    transactions: u64,
    input: Input,
    number: u64,
) -> Result<()> {
    let left = Rc::new(Cell::new(transactions));
    let seeds = fresh_seeds(BACKLOG_CLIENTS);
    let mut tasks = Vec::new();
    for at in 0..BACKLOG_CLIENTS {
        let mut client = system.backlog_writer().await?;
        let mut rows = Rows::new(seeds + at, input.keys, input.pick);
        let left = left.clone();
        tasks.push(spawn_local(async move {
            loop {
                let some = left.get().min(BACKLOG_DEPTH);
                left.set(left.get() - some);
                let mut together = vec![Vec::new(); some as usize];
                together.iter_mut().for_each(|one| rows.transaction(input.transaction_rows, one));
                let parts: Vec<&[Row]> = together.iter().map(Vec::as_slice).collect();
                if parts.is_empty() {
                    return Ok(());
                }
                client.write_together(&parts, &mut |_| {}).await?;
            }
        }));
    }
    join(tasks).await?;
    // Durable as a reply of this system's promises: what was written before it is as well.
    system.writer().await?.write(&[Row::numbered(MARKER_KEY, number)]).await
}

/// An open loop: rows are sent at their intended times, whether those before have been answered or
/// not, and every latency counts from the intended time.
#[derive(Clone, Copy, Debug)]
pub struct OpenLoop {
    /// Rows per second, one per transaction.
    pub rate: f64,
    /// Connections that share them.
    pub clients: usize,
    /// Marker rows per second, beside these.
    pub markers: f64,
    /// Pause between two looks of the reader at the replica.
    pub look_pause: Duration,
}

/// What an open loop saw.
pub struct Lags {
    /// When its first row was due: where the seconds of `over_time` count from.
    pub began: Instant,
    /// From the intended time of a row to its reply, in nanoseconds.
    pub commit: Histogram<u64>,
    /// From the intended time of a marker to its being seen on the replica, in nanoseconds.
    pub visible: Histogram<u64>,
    /// (seconds since the begin, lag in milliseconds) of each marker.
    pub over_time: Vec<(f64, f64)>,
    /// Rows that were acknowledged, per second.
    pub rate: f64,
}

/// Rows whose time has come and that no connection has taken yet. (Their number *is* the backlog of
/// a system that does not keep up, and counts as latency.)
struct Due {
    rate: f64,
    began: Instant,
    /// No row is due at or after it.
    end: Instant,
    /// Number of the first row that is not taken.
    next: Cell<u64>,
    more: Notify,
}

impl Due {
    /// The intended times of at most `max` rows that are due, which now are taken. None when there
    /// will be no more.
    fn take(&self, max: usize) -> Option<Vec<Instant>> {
        let (first, now) = (self.next.get(), Instant::now());
        let times = (first..).map(|number| intended(self.began, self.rate, number));
        let times = times.take(max).take_while(|time| *time <= now && *time < self.end);
        let taken: Vec<Instant> = times.collect();
        self.next.set(first + taken.len() as u64);
        (!taken.is_empty() || self.next_time() < self.end).then_some(taken)
    }

    /// When the first row that is not taken is due.
    fn next_time(&self) -> Instant {
        intended(self.began, self.rate, self.next.get())
    }
}

/// Most rows that one connection takes at once when they have piled up.
const TAKEN_MAX: usize = 256;
/// Time between two looks at the clock for connections that do nothing: one that has just been
/// answered takes what is due by itself. On a virtual machine setting a timer takes 8 us: for each
/// of 50,000 rows a second that was more than half of this thread's time.
const SCHEDULE_PAUSE: Duration = Duration::from_micros(100);

/// Runs an open loop and looks at replica 0 all the time.
///
/// # Errors
/// When a write is refused, or the last marker is not seen within a minute.
pub async fn open<S: System>(system: &S, plan: OpenLoop, input: Input, span: Span) -> Result<Lags> {
    let (mut marker, mut reader) = (system.writer().await?, system.reader(0).await?);
    forget_markers(&mut marker, &mut reader).await?;
    let commit = Rc::new(RefCell::new(latencies()));
    let began = begin();
    let counted = (began + span.warm_up, began + span.warm_up + span.measured);
    let due = due(plan.rate, began, counted.1);
    let tasks = send_all_due(system, plan.clients, input, &due, &commit, counted.0).await?;
    let markers = spawn_local(send_markers(marker, plan.markers, began, counted.1));
    let looks = spawn_local(look(reader, plan, began, span));
    schedule(&due).await?;
    join(tasks).await?;
    markers.await.context("the markers' task panicked")??;
    let (visible, over_time) = looks.await.context("the reader panicked")??;
    let commit = commit.borrow().clone();
    let rate = commit.len() as f64 / span.measured.as_secs_f64();
    Ok(Lags { began, commit, visible, over_time, rate })
}

/// The same rows at the same times, and nobody looks at a replica, if there is one.
///
/// # Errors
/// When a write is refused.
pub async fn paced<S: System>(
    system: &S,
    (rate, clients): (f64, usize),
    input: Input,
    span: Span,
) -> Result<()> {
    let (began, unread) = (begin(), Rc::new(RefCell::new(latencies())));
    let due = due(rate, began, began + span.warm_up + span.measured);
    let tasks = send_all_due(system, clients, input, &due, &unread, began).await?;
    schedule(&due).await?;
    join(tasks).await
}

/// A little later than now: all tasks are there when the first row is due.
fn begin() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

/// Starts the connections that send what is due.
async fn send_all_due<S: System>(
    system: &S,
    clients: usize,
    input: Input,
    due: &Rc<Due>,
    commit: &Rc<RefCell<Histogram<u64>>>,
    counted_from: Instant,
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let seeds = fresh_seeds(clients as u64);
    let mut tasks = Vec::new();
    for at in 0..clients {
        let client = system.writer().await?;
        let rows = Rows::new(seeds + at as u64, input.keys, input.pick);
        let sent = send_due(client, rows, due.clone(), commit.clone(), counted_from);
        tasks.push(spawn_local(sent));
    }
    Ok(tasks)
}

/// The intended time of event `number`.
fn intended(began: Instant, rate: f64, number: u64) -> Instant {
    began + Duration::from_secs_f64(number as f64 / rate)
}

fn due(rate: f64, began: Instant, end: Instant) -> Rc<Due> {
    Rc::new(Due { rate, began, end, next: Cell::new(0), more: Notify::new() })
}

/// Wakes a connection that does nothing whenever rows are due, and all of them at the end.
async fn schedule(due: &Due) -> Result<()> {
    let mut timer = PreciseTimer::new()?;
    let mut looked = due.began;
    while due.next_time() < due.end {
        timer.until(due.next_time().max(looked + SCHEDULE_PAUSE)).await?;
        looked = Instant::now();
        if due.next_time() <= looked {
            due.more.notify_one();
        }
    }
    due.more.notify_waiters();
    Ok(())
}

async fn send_due<C: Client>(
    mut client: C,
    mut rows: Rows,
    due: Rc<Due>,
    commit: Rc<RefCell<Histogram<u64>>>,
    counted_from: Instant,
) -> Result<()> {
    loop {
        let more = due.more.notified();
        let Some(taken) = due.take(TAKEN_MAX) else { return Ok(()) };
        if taken.is_empty() {
            more.await;
            continue;
        }
        let sent: Vec<Row> = taken.iter().map(|_| rows.row()).collect();
        let parts: Vec<&[Row]> = sent.chunks(1).collect();
        let mut answered = |at: usize| {
            if taken[at] >= counted_from {
                record(&mut commit.borrow_mut(), taken[at], Instant::now());
            }
        };
        client.write_together(&parts, &mut answered).await?;
    }
}

/// Markers carry their own intended time, in nanoseconds since the begin.
/// The last marker of an earlier load would be taken for all of this one's.
async fn forget_markers<C: Client>(writer: &mut C, reader: &mut C) -> Result<()> {
    writer.write(&[Row::numbered(MARKER_KEY, 0)]).await?;
    let until = Instant::now() + LAST_MARKER_TIMEOUT;
    while reader.read(MARKER_KEY).await?.is_none_or(|value| Row::number(&value) != 0) {
        anyhow::ensure!(Instant::now() < until, "the replica does not follow");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn send_markers<C: Client>(
    mut client: C,
    rate: f64,
    began: Instant,
    end: Instant,
) -> Result<()> {
    let mut timer = PreciseTimer::new()?;
    let mut number = 1;
    loop {
        let next = intended(began, rate, number);
        if next >= end {
            break;
        }
        timer.until(next).await?;
        // Late ones are overtaken by the newest that is due: a reader sees the newest only.
        let now = Instant::now();
        while intended(began, rate, number + 1) <= now {
            number += 1;
        }
        client.write(&[Row::numbered(MARKER_KEY, number)]).await?;
        number += 1;
    }
    client.write(&[Row::numbered(MARKER_KEY, LAST_MARKER)]).await
}

/// The number of the marker that ends a loop.
const LAST_MARKER: u64 = u64::MAX >> 1;
/// Longest wait for the last marker.
const LAST_MARKER_TIMEOUT: Duration = Duration::from_secs(60);

/// Histogram and curve of the markers' lags.
type Seen = (Histogram<u64>, Vec<(f64, f64)>);

async fn look<C: Client>(
    mut reader: C,
    plan: OpenLoop,
    began: Instant,
    span: Span,
) -> Result<Seen> {
    let mut timer = PreciseTimer::new()?;
    let (mut visible, mut over_time) = (latencies(), Vec::new());
    let mut next = 1;
    let end = began + span.warm_up + span.measured;
    loop {
        let found = reader.read(MARKER_KEY).await?.map_or(0, |value| Row::number(&value));
        let now = Instant::now();
        // All up to the one that is seen: a replica shows a prefix of what was written.
        while next <= found && intended(began, plan.markers, next) < end {
            let at = intended(began, plan.markers, next);
            let seconds = at.duration_since(began).as_secs_f64();
            over_time.push((seconds, now.saturating_duration_since(at).as_secs_f64() * 1e3));
            if at >= began + span.warm_up {
                record(&mut visible, at, now);
            }
            next += 1;
        }
        if found == LAST_MARKER {
            let early = now < began + span.warm_up;
            anyhow::ensure!(!early, "a marker of an earlier load: lags cannot be told");
            return Ok((visible, over_time));
        }
        anyhow::ensure!(now < end + LAST_MARKER_TIMEOUT, "the last marker is not shown");
        timer.sleep(plan.look_pause).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_once_their_time_has_come_and_each_once() {
        let (now, ms) = (Instant::now(), Duration::from_millis(1));
        let past = due(1000.0, now - 100 * ms, now - 95 * ms);
        assert_eq!(past.take(3).unwrap(), [now - 100 * ms, now - 99 * ms, now - 98 * ms]);
        assert_eq!(past.take(100).unwrap(), [now - 97 * ms, now - 96 * ms]);
        assert_eq!(past.take(100), None, "it is over");
        let future = due(1000.0, now + 1000 * ms, now + 2000 * ms);
        assert_eq!(future.take(100).unwrap(), [], "not yet");
    }
}
