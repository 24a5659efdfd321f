//! A replication peer made by hand, which says whatever a test wants it to.

use std::io::{Read, Write};
use std::net::TcpStream;

use rowship_proto::message::{Message, Notice, RefuseCode};

use super::PATIENCE;

/// A peer made by hand.
pub struct Peer {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub fn connect(address: &str) -> Peer {
        Peer::of(TcpStream::connect(address).unwrap())
    }

    pub fn of(stream: TcpStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Peer { stream, buffer: Vec::new() }
    }

    pub fn say(&mut self, message: &Message) {
        // Whether it was heard shows in the answer.
        let _ = self.stream.write_all(&message.encode());
    }

    /// The next message; `None` when the other end has closed the connection.
    pub fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some((message, len)) = Message::decode(&self.buffer).unwrap() {
                self.buffer.drain(..len);
                return Some(message);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
            }
        }
    }

    pub fn hear_refusal(&mut self) -> Option<RefuseCode> {
        loop {
            match self.hear()? {
                Message::Refuse(refuse) => return Some(refuse.code),
                Message::Notice(_) => {}
                other => panic!("not a refusal: {other:?}"),
            }
        }
    }

    /// What a client would read, until the other end closes.
    pub fn read_text(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Bytes that are no message at all, or announce too much.
pub fn gibberish() -> [Vec<u8>; 3] {
    let mut announces = Message::Notice(Notice::default()).encode();
    announces[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    [vec![0; 4096], b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), announces]
}
