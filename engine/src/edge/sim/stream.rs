//! Sockets of simulated processes.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::Process;
use super::network::{Backlog, Connection};
use super::pipe::Taken;
use super::trace::{self, Kind};
use crate::edge::{Listener, Stream};

/// One end of a connection.
#[derive(Clone)]
pub struct SimStream {
    socket: Rc<Socket>,
}

struct Socket {
    process: Rc<Process>,
    connection: Rc<Connection>,
    side: usize,
    closed: Cell<bool>,
}

impl SimStream {
    pub(super) fn new(process: Rc<Process>, connection: Rc<Connection>, side: usize) -> SimStream {
        let closed = Cell::new(false);
        SimStream { socket: Rc::new(Socket { process, connection, side, closed }) }
    }
}

impl Socket {
    async fn take(&self, room: usize) -> io::Result<Bytes> {
        let incoming = &self.connection.pipes[1 - self.side];
        let world = &self.process.machine.world;
        loop {
            self.process.lives().await;
            if self.closed.get() {
                return Ok(Bytes::new());
            }
            let now_ms = world.now_ms();
            match self.connection.take(&world.network, self.side, now_ms, room) {
                Taken::Bytes(bytes) => {
                    let numbers = [self.connection.id, self.side as u64, now_ms];
                    let [id, side, at] = numbers;
                    trace::note(Kind::Delivery, &[id, side, at, trace::digest(&bytes)]);
                    return Ok(bytes);
                }
                Taken::End => return Ok(Bytes::new()),
                Taken::Reset => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                Taken::At(at_ms) => {
                    let wait = tokio::time::sleep(Duration::from_millis(at_ms - now_ms));
                    tokio::select! {
                        biased;
                        () = incoming.readable() => {}
                        () = wait => {}
                    }
                }
                Taken::Wait => incoming.readable().await,
            }
        }
    }

    async fn put(&self, mut bytes: Bytes) -> io::Result<()> {
        let outgoing = &self.connection.pipes[self.side];
        let incoming = &self.connection.pipes[1 - self.side];
        let world = &self.process.machine.world;
        loop {
            self.process.lives().await;
            if self.closed.get() {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            // A reset that has come in breaks both ways.
            let me = &self.connection.ends[self.side].host;
            let other = &self.connection.ends[1 - self.side].host;
            let refused = outgoing.refuses().or_else(|| match incoming.refuses() {
                Some(io::ErrorKind::ConnectionReset) if !world.network.is_cut(other, me) => {
                    Some(io::ErrorKind::ConnectionReset)
                }
                _ => None,
            });
            if let Some(kind) = refused {
                return Err(io::Error::from(kind));
            }
            self.connection.put(&world.network, self.side, world.now_ms(), &mut bytes);
            if bytes.is_empty() {
                return Ok(());
            }
            outgoing.writable().await;
        }
    }

    fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        self.connection.pipes[self.side].finish();
        self.connection.pipes[1 - self.side].abandon();
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A process that is gone has been dealt with: what its host says depends on how it went.
        if self.process.is_alive() {
            self.close();
        }
    }
}

impl Stream for SimStream {
    async fn read(&self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        let room = buffer.capacity() - buffer.len();
        assert!(room > 0, "a read needs room");
        match self.socket.take(room).await {
            Ok(bytes) => {
                buffer.extend_from_slice(&bytes);
                (Ok(bytes.len()), buffer)
            }
            Err(error) => (Err(error), buffer),
        }
    }

    async fn write_all(&self, bytes: Bytes) -> io::Result<()> {
        self.socket.put(bytes).await
    }

    async fn write_all_parts(&self, parts: Vec<Bytes>) -> io::Result<()> {
        for part in parts {
            self.socket.put(part).await?;
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.socket.close();
    }

    fn is_hung_up(&self) -> bool {
        let socket = &self.socket;
        let (me, other) = (socket.side, 1 - socket.side);
        let ends = &socket.connection.ends;
        let network = &socket.process.machine.world.network;
        socket.connection.pipes[other].has_ended()
            && !network.is_cut(&ends[other].host, &ends[me].host)
    }

    fn peer(&self) -> String {
        let other = &self.socket.connection.ends[1 - self.socket.side].host;
        format!("{other}:{}", 40_000 + self.socket.connection.id)
    }
}

/// A listening socket.
pub struct SimListener {
    pub(super) process: Rc<Process>,
    pub(super) backlog: Rc<Backlog>,
    pub(super) address: String,
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<SimStream> {
        self.process.lives().await;
        let connection = self.backlog.accept().await;
        Ok(SimStream::new(self.process.clone(), connection, 1))
    }

    fn local_address(&self) -> io::Result<String> {
        Ok(self.address.clone())
    }
}
