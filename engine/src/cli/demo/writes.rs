//! The demo's write load: every plane counts its flights, so that the last acknowledged value of
//! each row is known and can be looked for on every node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::super::client::Client;
use super::super::exit::{Exit, Failure};
use super::super::interrupt;

/// Clients that write at once.
const CONNECTIONS: usize = 4;
/// Rows that one client sends before it waits for their replies.
pub const BATCH_ROWS: u64 = 32;
/// The column that is written.
const COLUMN: &str = "flights";
/// Rows checked at once.
const CHECK_ROWS: usize = 256;

/// What was written.
pub struct Written {
    /// Rows acknowledged.
    pub rows: u64,
    /// How long it took.
    pub seconds: f64,
    /// Microseconds from sending a batch to its last reply.
    pub batch_us: Histogram<u64>,
    /// Keys and the last value acknowledged for each.
    pub last: Vec<(String, u64)>,
}

/// Writes to `keys` at `address` for `duration`, or until `rows_max` rows are written.
pub fn write(
    address: &str,
    keys: &[String],
    duration: Duration,
    rows_max: u64,
) -> Result<Written, Failure> {
    let start = Instant::now();
    let deadline = start + duration;
    let left = AtomicU64::new(rows_max);
    let part = keys.len().div_ceil(CONNECTIONS).max(1);
    let parts = std::thread::scope(|scope| {
        let left = &left;
        let threads: Vec<_> = keys
            .chunks(part)
            .map(|keys| scope.spawn(move || write_part(address, keys, deadline, left)))
            .collect();
        let ended = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::new(Exit::Internal, "writer panicked")))
        });
        ended.collect::<Result<Vec<_>, _>>()
    })?;
    let mut written = Written {
        rows: 0,
        seconds: start.elapsed().as_secs_f64(),
        batch_us: new_histogram(),
        last: Vec::new(),
    };
    for part in parts {
        written.rows += part.rows;
        // Same bounds, so this cannot fail.
        let _ = written.batch_us.add(&part.batch_us);
        written.last.extend(part.last);
    }
    Ok(written)
}

fn new_histogram() -> Histogram<u64> {
    // One microsecond to a minute, the reply timeout.
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are valid")
}

fn write_part(
    address: &str,
    keys: &[String],
    deadline: Instant,
    left: &AtomicU64,
) -> Result<Written, Failure> {
    let mut client = Client::connect(address)?;
    let mut last: Vec<(String, u64)> = keys.iter().map(|key| (key.clone(), 0)).collect();
    let (mut rows, mut batch_us, mut next) = (0, new_histogram(), 0);
    while Instant::now() < deadline {
        interrupt::check()?;
        let take = |left: u64| Some(left.saturating_sub(BATCH_ROWS));
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
        let batch = before.min(BATCH_ROWS);
        if batch == 0 {
            break;
        }
        let sent = Instant::now();
        for _ in 0..batch {
            let (key, value) = &mut last[next];
            next = (next + 1) % keys.len();
            *value += 1;
            client.queue(&["HSET", key.as_str(), COLUMN, &value.to_string()]);
        }
        client.flush()?;
        for _ in 0..batch {
            if let Some(text) = client.receive()?.error() {
                let message = format!("{address} refused a write: {text}");
                return Err(Failure::new(Exit::Failed, message));
            }
        }
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        batch_us.saturating_record(micros);
        rows += batch;
    }
    Ok(Written { rows, seconds: 0.0, batch_us, last })
}

/// Looks for every last acknowledged value on the node at `address`; how many rows were right,
/// or the first that was not.
pub fn check(address: &str, last: &[(String, u64)]) -> Result<usize, Failure> {
    let mut client = Client::connect(address)?;
    let written: Vec<_> = last.iter().filter(|(_, value)| *value > 0).collect();
    for rows in written.chunks(CHECK_ROWS) {
        for (key, _) in rows {
            client.queue(&["HGET", key.as_str(), COLUMN]);
        }
        client.flush()?;
        for (key, value) in rows {
            let found = client.receive()?;
            if found.text() != Some(value.to_string()) {
                let message = format!(
                    "{address}: {key} {COLUMN} should be {value}, the last value acknowledged, \
                     but is {found:?}"
                );
                return Err(Failure::new(Exit::Failed, message));
            }
        }
    }
    Ok(written.len())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use super::super::super::fake_server::{FakeServer, bulk};
    use super::*;

    type Rows = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

    fn node(rows: Rows) -> FakeServer {
        FakeServer::start(move |command| {
            let mut rows = rows.lock().unwrap();
            match &command[0][..] {
                b"HSET" => {
                    rows.insert(command[1].to_vec(), command[3].to_vec());
                    b":0\r\n".to_vec()
                }
                _ => rows.get(&command[1][..]).map_or(b"$-1\r\n".to_vec(), bulk),
            }
        })
    }

    #[test]
    fn lost_write_is_found_and_named() {
        let rows = Rows::default();
        let server = node(rows.clone());
        let keys: Vec<_> = (0..10).map(|key| format!("planes:{key}")).collect();
        let duration = Duration::from_secs(30);
        let written = write(&server.address, &keys, duration, 500).unwrap();
        assert_eq!((written.rows, written.last.len()), (500, 10));
        assert_eq!(written.last.iter().map(|(_, value)| value).sum::<u64>(), 500);
        assert_eq!(check(&server.address, &written.last).unwrap(), 10);

        rows.lock().unwrap().insert(b"planes:3".to_vec(), b"1".to_vec());
        let failure = check(&server.address, &written.last).unwrap_err();
        assert!(failure.message.contains("planes:3 flights should be"), "{failure}");
        rows.lock().unwrap().remove(&b"planes:3"[..]);
        assert!(check(&server.address, &written.last).is_err());
    }

    #[test]
    fn load_ends_when_its_time_is_over() {
        let server = node(Rows::default());
        let start = Instant::now();
        let keys = ["planes:1".to_owned()];
        let written = write(&server.address, &keys, Duration::from_millis(50), u64::MAX).unwrap();
        assert!(written.rows > 0 && start.elapsed() < Duration::from_secs(20));
    }
}
