//! A scripted RESP server on loopback, for tests of commands.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use super::reply::{Reply, ReplyEnd};

/// Answers a command with the bytes to send back.
pub type Answer = dyn FnMut(&[Bytes]) -> Vec<u8> + Send;

/// Listens until the test ends.
pub struct FakeServer {
    /// `host:port`.
    pub address: String,
    /// All commands, in the order in which they arrived.
    pub seen: Arc<Mutex<Vec<Vec<Bytes>>>>,
}

impl FakeServer {
    /// Starts a server that answers every command of every connection with `answer`.
    pub fn start(answer: impl FnMut(&[Bytes]) -> Vec<u8> + Send + 'static) -> FakeServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, record) = (Arc::new(Mutex::new(answer)), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, record) = (answer.clone(), record.clone());
                std::thread::spawn(move || serve(stream, &*answer, &record));
            }
        });
        FakeServer { address, seen }
    }

    /// Commands with this name, as text.
    pub fn commands(&self, name: &str) -> Vec<Vec<String>> {
        let seen = self.seen.lock().unwrap();
        let text = |part: &Bytes| String::from_utf8_lossy(part).into_owned();
        seen.iter()
            .filter(|command| command[0].eq_ignore_ascii_case(name.as_bytes()))
            .map(|command| command.iter().map(text).collect())
            .collect()
    }
}

fn serve(mut stream: TcpStream, answer: &Mutex<Answer>, seen: &Mutex<Vec<Vec<Bytes>>>) {
    let mut input = BytesMut::new();
    loop {
        // A command is an array of bulk strings: the reply decoder reads it.
        while let Ok(Some(end)) = ReplyEnd::default().find(&input) {
            let Ok(Reply::Array(parts)) = Reply::decode(input.split_to(end).freeze()) else {
                return;
            };
            let parts: Vec<Bytes> = parts.iter().filter_map(|part| part.bytes().cloned()).collect();
            seen.lock().unwrap().push(parts.clone());
            let reply = answer.lock().unwrap()(&parts);
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
        let mut chunk = [0; 16 << 10];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(len) => input.extend_from_slice(&chunk[..len]),
        }
    }
}

/// A bulk string.
pub fn bulk(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}
