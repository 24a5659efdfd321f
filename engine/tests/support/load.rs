//! A write load that remembers what was acknowledged, and readers that look for half transactions.
//!
//! Every transaction of a writer is one EXEC: it counts itself (`INCR count:W`) and puts its
//! number into two rows of different tables (`left:W.K`, `right:W.K`), or deletes both. So on any
//! node, at any time: both rows of a pair are equal; no row is older than the last acknowledged
//! transaction of its pair; the counter lies between the transactions acknowledged and those sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rowship::cli::client::{Client, ClientError};
use rowship::cli::reply::Reply;

use super::{Node, PATIENCE, Random};

const WRITERS: u64 = 3;
const PAIRS: u64 = 11;
/// Transactions in one pipeline at most.
const PIPELINE_MAX: u64 = 24;
/// Every so many transactions delete their pair.
const DELETE_EVERY: u64 = 7;

/// What one writer has done, by the numbers of its transactions (from 1).
#[derive(Clone, Default)]
struct WriterTally {
    sent: u64,
    acknowledged: u64,
    /// Last transaction of each pair that was acknowledged.
    pairs: BTreeMap<u64, u64>,
}

/// What all writers had done at one moment.
#[derive(Clone, Default)]
pub struct Tally {
    writers: Vec<WriterTally>,
}

#[derive(Default)]
struct Shared {
    addresses: Mutex<Vec<Option<String>>>,
    tally: Mutex<Tally>,
    acknowledged: AtomicU64,
    pause: AtomicBool,
    /// Writers that are in the middle of a pipeline.
    busy: AtomicU64,
    stop: AtomicBool,
    pairs_read: AtomicU64,
    visible_checked: AtomicU64,
    failure: Mutex<Option<String>>,
    sync: bool,
}

/// Writers on node 0, readers on all nodes.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the threads; nodes are unknown until [`Load::node_is_up`]. Under `sync` every writer
    /// also looks whether what was acknowledged is visible on all replicas at that moment.
    pub fn new(nodes: usize, sync: bool) -> Load {
        let tally = Tally { writers: vec![WriterTally::default(); WRITERS as usize] };
        let addresses = Mutex::new(vec![None; nodes]);
        let shared = Shared { addresses, tally: Mutex::new(tally), sync, ..Shared::default() };
        let shared = Arc::new(shared);
        let mut threads = Vec::new();
        for writer in 0..WRITERS {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || shared.guard(|| shared.write(writer))));
        }
        for node in 0..nodes {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || shared.guard(|| shared.read(node))));
        }
        Load { shared, threads }
    }

    pub fn node_is_up(&self, node: usize, address: &str) {
        lock(&self.shared.addresses)[node] = Some(address.to_owned());
    }

    pub fn node_goes_down(&self, node: usize) {
        lock(&self.shared.addresses)[node] = None;
    }

    /// Transactions acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    pub fn tally(&self) -> Tally {
        lock(&self.shared.tally).clone()
    }

    /// Panics when a thread of the load has found something wrong.
    pub fn check(&self) {
        if let Some(failure) = &*lock(&self.shared.failure) {
            panic!("{failure}");
        }
    }

    /// Returns when no write is in flight.
    pub fn pause(&self) {
        self.shared.pause.store(true, Ordering::SeqCst);
        let until = Instant::now() + PATIENCE;
        while self.shared.busy.load(Ordering::SeqCst) > 0 {
            self.check();
            assert!(Instant::now() < until, "writes in flight are not answered");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn resume(&self) {
        self.shared.pause.store(false, Ordering::SeqCst);
    }

    /// Ends the load; panics when it has found something wrong, or has not looked at all.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.check();
        assert!(self.shared.pairs_read.load(Ordering::Relaxed) > 0, "the readers read nothing");
        let checked = self.shared.visible_checked.load(Ordering::Relaxed);
        assert!(!self.shared.sync || checked > 0, "visibility was never checked");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Tally {
    /// Panics unless `node` holds everything acknowledged, and nothing by halves; returns how many
    /// rows there are when nothing is being written.
    pub fn check(&self, node: &Node) -> i64 {
        let mut rows = 0;
        let mut client = node.client();
        for (writer, tally) in (0..).zip(&self.writers) {
            let count = client.ask(&["GET", &format!("count:{writer}")]).unwrap();
            let count: u64 = count.text().map_or(0, |text| text.parse().unwrap());
            rows += i64::from(count > 0);
            assert!(
                count >= tally.acknowledged,
                "{}: counter {writer} is {count}, {} were acknowledged\n{}",
                node.name,
                tally.acknowledged,
                node.log()
            );
            for pair in 0..PAIRS {
                let found = read_pair(&mut client, writer, pair).unwrap();
                assert_eq!(found.0, found.1, "{}: pair {pair} of {writer} by halves", node.name);
                rows += 2 * i64::from(found.0.is_some());
                let least = tally.pairs.get(&pair).copied().unwrap_or(0);
                let complaint = judge(pair, least, found.0);
                assert!(complaint.is_none(), "{}: {}: {complaint:?}", node.name, writer);
            }
        }
        rows
    }
}

/// What is wrong with the value of a pair whose transaction `least` was acknowledged.
fn judge(pair: u64, least: u64, value: Option<u64>) -> Option<String> {
    match value {
        Some(value) if value < least => Some(format!("pair {pair} is {value}, {least} was acked")),
        Some(value) if value % PAIRS != pair || value.is_multiple_of(DELETE_EVERY) => {
            Some(format!("pair {pair} holds {value}, which nobody has written"))
        }
        // A later delete may be in flight or done; without one close by the row was lost.
        None if least > 0 && !least.is_multiple_of(DELETE_EVERY) => {
            let window = WRITERS * PIPELINE_MAX * PAIRS * DELETE_EVERY;
            let deleted = (least..least + window)
                .any(|number| number % PAIRS == pair && number.is_multiple_of(DELETE_EVERY));
            (!deleted).then(|| format!("pair {pair} is gone, {least} was acked"))
        }
        _ => None,
    }
}

/// A lock that a failed thread has left behind is as good as any: the failure is reported.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Pair = (Option<u64>, Option<u64>);

fn read_pair(client: &mut Client, writer: u64, pair: u64) -> Result<Pair, ClientError> {
    let keys = [format!("left:{writer}.{pair}"), format!("right:{writer}.{pair}")];
    let reply = client.ask(&["MGET", &keys[0], &keys[1]])?;
    let Reply::Array(values) = reply else { panic!("{reply:?}") };
    let number = |value: &Reply| value.text().map(|text| text.parse().unwrap());
    Ok((number(&values[0]), number(&values[1])))
}

impl Shared {
    /// A panic in a thread of the load fails the test, not only the thread.
    fn guard(&self, run: impl FnOnce()) {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            self.fail(text.unwrap_or_else(|| "a thread of the load panicked".to_owned()));
        }
    }

    fn fail(&self, text: String) {
        lock(&self.failure).get_or_insert(text);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn connect(&self, node: usize) -> Option<Client> {
        let address = lock(&self.addresses)[node].clone()?;
        let mut client = Client::connect(&address).ok()?;
        client.set_reply_timeout(PATIENCE).ok()?;
        Some(client)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn write(&self, writer: u64) {
        let mut random = Random(0x9e37_79b9 + writer);
        let mut number = 0;
        while !self.stopped() {
            std::thread::sleep(Duration::from_millis(2));
            let Some(mut client) = self.connect(0) else { continue };
            while !self.stopped() {
                self.busy.fetch_add(1, Ordering::SeqCst);
                if self.pause.load(Ordering::SeqCst) {
                    self.busy.fetch_sub(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let count = 1 + random.below(PIPELINE_MAX);
                let outcome = self.pipeline(&mut client, writer, &mut number, count);
                self.busy.fetch_sub(1, Ordering::SeqCst);
                if outcome.is_none() {
                    break;
                }
            }
        }
    }

    /// Sends `count` transactions and takes their replies; `None` when the connection is gone.
    fn pipeline(
        &self,
        client: &mut Client,
        writer: u64,
        number: &mut u64,
        count: u64,
    ) -> Option<()> {
        // Connected before the writes: one that survives is the same process all the time.
        let mut witnesses = if self.sync { self.witnesses() } else { Vec::new() };
        let first = *number + 1;
        for at in first..first + count {
            queue_transaction(client, writer, at);
        }
        *number += count;
        lock(&self.tally).writers[writer as usize].sent = *number;
        client.flush().ok()?;
        for at in first..first + count {
            let mut reply = Reply::Null;
            for _ in 0..5 {
                reply = client.receive().ok()?;
                if reply.error().is_some() {
                    // The node is stopping; the fate of what is in flight is open.
                    return None;
                }
            }
            let Reply::Array(parts) = &reply else { panic!("EXEC answered {reply:?}") };
            let Reply::Integer(counted) = parts[0] else { panic!("INCR answered {parts:?}") };
            let mut tally = lock(&self.tally);
            let tally = &mut tally.writers[writer as usize];
            let counted = u64::try_from(counted).unwrap();
            let acknowledged = tally.acknowledged;
            assert!(
                counted > acknowledged && counted <= at,
                "INCR of {writer} is {counted} at {at}, {acknowledged} were acknowledged ({first})"
            );
            tally.acknowledged += 1;
            tally.pairs.insert(at % PAIRS, at);
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        for witness in &mut witnesses {
            let Ok(found) = read_pair(witness, writer, *number % PAIRS) else { continue };
            let expected = (!number.is_multiple_of(DELETE_EVERY)).then_some(*number);
            assert_eq!(found, (expected, expected), "acknowledged as visible on a replica");
            self.visible_checked.fetch_add(1, Ordering::Relaxed);
        }
        Some(())
    }

    fn witnesses(&self) -> Vec<Client> {
        let replicas = 1..lock(&self.addresses).len();
        replicas.filter_map(|node| self.connect(node)).collect()
    }

    /// Reads pairs of one node all the time: equal, and never going back in one process.
    fn read(&self, node: usize) {
        let mut random = Random(0x51_7cc1 + node as u64);
        while !self.stopped() {
            std::thread::sleep(Duration::from_millis(2));
            let Some(mut client) = self.connect(node) else { continue };
            let mut seen = BTreeMap::new();
            while !self.stopped() {
                let key = (random.below(WRITERS), random.below(PAIRS));
                let Ok((left, right)) = read_pair(&mut client, key.0, key.1) else { break };
                assert_eq!(left, right, "node {node} shows half a transaction of {key:?}");
                if let Some(value) = left {
                    let before = seen.insert(key, value).unwrap_or(0);
                    assert!(before <= value, "node {node}: {key:?} went from {before} to {value}");
                }
                self.pairs_read.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

fn queue_transaction(client: &mut Client, writer: u64, number: u64) {
    let pair = number % PAIRS;
    let (left, right) = (format!("left:{writer}.{pair}"), format!("right:{writer}.{pair}"));
    let value = number.to_string();
    client.queue(&["MULTI"]);
    client.queue(&["INCR", &format!("count:{writer}")]);
    if number.is_multiple_of(DELETE_EVERY) {
        client.queue(&["DEL", &left]);
        client.queue(&["DEL", &right]);
    } else {
        client.queue(&["SET", &left, &value]);
        client.queue(&["SET", &right, &value]);
    }
    client.queue(&["EXEC"]);
}
