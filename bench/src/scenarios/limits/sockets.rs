//! What loopback sockets give: a stream in one direction, and 64 bytes there and back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;

use crate::load::latencies;

/// Bytes of a ping.
pub const PING_BYTES: usize = 64;

/// Through which door a thread reaches its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Blocking calls of the standard library.
    Plain,
    /// tokio-uring, a ring per thread.
    Uring,
}

impl std::fmt::Display for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Io::Plain => "plain",
            Io::Uring => "tokio-uring",
        })
    }
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let near = TcpStream::connect(listener.local_addr()?).context("connecting on loopback")?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn ended<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the limits panicked"))?
}

/// Gigabytes per second of one stream between two threads, in calls of `chunk` bytes.
///
/// # Errors
/// When the sockets fail.
pub fn loopback_stream(io: Io, chunk: usize, bytes: u64) -> Result<f64> {
    let (near, far) = pair()?;
    let (receive, send): (fn(_, _) -> _, fn(_, _, _) -> _) = match io {
        Io::Plain => (receive_plain, send_plain),
        Io::Uring => (receive_uring, send_uring),
    };
    let start = Instant::now();
    let receiver = thread::spawn(move || receive(far, chunk));
    let sender = thread::spawn(move || send(near, chunk, bytes));
    let (sent, received) = (ended(sender), ended(receiver));
    sent.context("sending on loopback")?;
    let received: u64 = received.context("receiving on loopback")?;
    ensure!(received == bytes, "{received} of {bytes} bytes arrived on loopback");
    Ok(bytes as f64 / 1e9 / start.elapsed().as_secs_f64())
}

fn receive_plain(mut far: TcpStream, chunk: usize) -> Result<u64> {
    let (mut buffer, mut total) = (vec![0; chunk], 0);
    loop {
        match far.read(&mut buffer)? {
            0 => return Ok(total),
            some => total += some as u64,
        }
    }
}

fn send_plain(mut near: TcpStream, chunk: usize, bytes: u64) -> Result<()> {
    let data = vec![7; chunk];
    let mut left = bytes;
    while left > 0 {
        let some = left.min(chunk as u64);
        near.write_all(&data[..some as usize])?;
        left -= some;
    }
    Ok(near.shutdown(Shutdown::Write)?)
}

fn receive_uring(far: TcpStream, chunk: usize) -> Result<u64> {
    tokio_uring::start(async move {
        let far = tokio_uring::net::TcpStream::from_std(far);
        let (mut buffer, mut total) = (vec![0; chunk], 0);
        loop {
            let (read, same) = far.read(buffer).await;
            match read? {
                0 => return Ok(total),
                some => total += some as u64,
            }
            buffer = same;
        }
    })
}

fn send_uring(near: TcpStream, chunk: usize, bytes: u64) -> Result<()> {
    tokio_uring::start(async move {
        let near = tokio_uring::net::TcpStream::from_std(near);
        let mut data = vec![7; chunk];
        let mut left = bytes;
        while left > 0 {
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= data.len() as u64;
            let (written, same) = near.write_all(data).await;
            written?;
            data = same;
        }
        Ok(near.shutdown(Shutdown::Write)?)
    })
}

/// How long 64 bytes take to another thread and back, in nanoseconds, for `span`.
///
/// # Errors
/// When the sockets fail.
pub fn ping_pong(io: Io, span: Duration) -> Result<Histogram<u64>> {
    let (near, far) = pair()?;
    let (echo, ping): (fn(_) -> _, fn(_, _) -> _) = match io {
        Io::Plain => (echo_plain, ping_plain),
        Io::Uring => (echo_uring, ping_uring),
    };
    let echo = thread::spawn(move || echo(far));
    let ping = thread::spawn(move || ping(near, span));
    let found = ended(ping).context("ping-pong on loopback")?;
    ended::<()>(echo).context("echo on loopback")?;
    Ok(found)
}

fn echo_plain(mut far: TcpStream) -> Result<()> {
    let mut ball = [0; PING_BYTES];
    loop {
        match far.read(&mut ball)? {
            0 => return Ok(()),
            some => far.write_all(&ball[..some])?,
        }
    }
}

/// Counts how long `since` is ago; whether `span` is not over.
fn count(found: &mut Histogram<u64>, since: Instant, began: Instant, span: Duration) -> bool {
    let now = Instant::now();
    let nanos = now.duration_since(since).as_nanos();
    found.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
    now < began + span
}

fn ping_plain(mut near: TcpStream, span: Duration) -> Result<Histogram<u64>> {
    let (mut ball, mut found, began) = ([1; PING_BYTES], latencies(), Instant::now());
    loop {
        let sent = Instant::now();
        near.write_all(&ball)?;
        near.read_exact(&mut ball)?;
        if !count(&mut found, sent, began, span) {
            return Ok(found);
        }
    }
}

fn echo_uring(far: TcpStream) -> Result<()> {
    tokio_uring::start(async move {
        let far = tokio_uring::net::TcpStream::from_std(far);
        let mut ball = vec![0; PING_BYTES];
        loop {
            let (read, mut same) = far.read(ball).await;
            match read? {
                0 => return Ok(()),
                some => same.truncate(some),
            }
            let (written, same) = far.write_all(same).await;
            written?;
            ball = same;
        }
    })
}

fn ping_uring(near: TcpStream, span: Duration) -> Result<Histogram<u64>> {
    tokio_uring::start(async move {
        let near = tokio_uring::net::TcpStream::from_std(near);
        let (mut ball, mut found, began) = (vec![1; PING_BYTES], latencies(), Instant::now());
        loop {
            let sent = Instant::now();
            let (written, same) = near.write_all(ball).await;
            written?;
            let (read, same) = near.read(same).await;
            let read = read?;
            // 64 bytes that were sent by one call on loopback come in one piece.
            ensure!(read == PING_BYTES, "a pong of {read} bytes");
            ball = same;
            if !count(&mut found, sent, began, span) {
                return Ok(found);
            }
        }
    })
}
