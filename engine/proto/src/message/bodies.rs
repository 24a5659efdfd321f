//! Bodies of the messages that have variable parts: a fixed head, a history, a text.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Hello, MessageError, Refuse, RefuseCode, TEXT_BYTES_MAX, Welcome, exact, head};
use crate::ack::NodeName;
use crate::position::{Epoch, EpochHistory, EpochStart, LogId, Lsn};

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct HelloHead {
    version_min: u16,
    version_max: u16,
    history_len: u16,
    client_port: u16,
    log_id: LogId,
    node_id: u64,
    incarnation: u64,
    highest_epoch: Epoch,
    end: Lsn,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct WelcomeHead {
    version: u16,
    wants_received: u16,
    history_len: u32,
    log_id: LogId,
    node_id: u64,
    epoch: Epoch,
    resume: Lsn,
    resume_chain: u64,
    segment_base: Lsn,
    segment_bytes: u64,
    frame_body_bytes_max: u64,
    committed: Lsn,
    heartbeat_ms: u32,
    peer_timeout_ms: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RefuseHead {
    code: u32,
    zero: u32,
    lsn: Lsn,
}

const _: () = assert!(size_of::<HelloHead>() == 72);
const _: () = assert!(size_of::<WelcomeHead>() == 112);

fn text(bytes: &[u8], what: &'static str) -> Result<String, MessageError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= TEXT_BYTES_MAX => Ok(text.to_owned()),
        _ => Err(MessageError::Body(what)),
    }
}

fn history_len(history: &EpochHistory) -> u16 {
    u16::try_from(history.entries().len()).expect("a history is bounded")
}

fn split_history<'a>(
    rest: &'a [u8],
    len: u32,
    what: &'static str,
) -> Result<(EpochHistory, &'a [u8]), MessageError> {
    let malformed = MessageError::Body(what);
    if len as usize > EpochHistory::ENTRIES_MAX {
        return Err(malformed);
    }
    let (entries, rest) =
        rest.split_at_checked(len as usize * size_of::<EpochStart>()).ok_or(malformed)?;
    // Not read in place: behind a byte buffer the entries need not be aligned.
    let entries = entries
        .chunks_exact(size_of::<EpochStart>())
        .map(|entry| exact(entry, what))
        .collect::<Result<Vec<EpochStart>, _>>()?;
    Ok((EpochHistory::from_entries(entries).ok_or(malformed)?, rest))
}

pub(super) fn encode_hello(hello: &Hello) -> Vec<u8> {
    let head = HelloHead {
        version_min: hello.versions.0,
        version_max: hello.versions.1,
        history_len: history_len(&hello.history),
        client_port: hello.client_port,
        log_id: hello.log_id,
        node_id: hello.node_id,
        incarnation: hello.incarnation,
        highest_epoch: hello.highest_epoch,
        end: hello.end,
    };
    let mut body = head.as_bytes().to_vec();
    body.extend_from_slice(hello.history.entries().as_bytes());
    body.extend_from_slice(hello.name.as_str().as_bytes());
    body
}

pub(super) fn decode_hello(body: &[u8]) -> Result<Hello, MessageError> {
    let (head, rest) = head::<HelloHead>(body, "hello")?;
    let (history, rest) = split_history(rest, head.history_len.into(), "hello")?;
    let name = NodeName::new(&text(rest, "hello")?).map_err(|_| MessageError::Body("hello"))?;
    Ok(Hello {
        versions: (head.version_min, head.version_max),
        log_id: head.log_id,
        node_id: head.node_id,
        incarnation: head.incarnation,
        highest_epoch: head.highest_epoch,
        end: head.end,
        client_port: head.client_port,
        history,
        name,
    })
}

pub(super) fn encode_welcome(welcome: &Welcome) -> Vec<u8> {
    let head = WelcomeHead {
        version: welcome.version,
        wants_received: u16::from(welcome.wants_received),
        history_len: history_len(&welcome.history).into(),
        log_id: welcome.log_id,
        node_id: welcome.node_id,
        epoch: welcome.epoch,
        resume: welcome.resume,
        resume_chain: welcome.resume_chain,
        segment_base: welcome.segment.0,
        segment_bytes: welcome.segment.1,
        frame_body_bytes_max: welcome.frame_body_bytes_max,
        committed: welcome.committed,
        heartbeat_ms: welcome.heartbeat_ms,
        peer_timeout_ms: welcome.peer_timeout_ms,
    };
    let mut body = head.as_bytes().to_vec();
    body.extend_from_slice(welcome.history.entries().as_bytes());
    body.extend_from_slice(clip(&welcome.client_address).as_bytes());
    body
}

pub(super) fn decode_welcome(body: &[u8]) -> Result<Welcome, MessageError> {
    let (head, rest) = head::<WelcomeHead>(body, "welcome")?;
    let (history, rest) = split_history(rest, head.history_len, "welcome")?;
    Ok(Welcome {
        version: head.version,
        wants_received: head.wants_received != 0,
        log_id: head.log_id,
        node_id: head.node_id,
        epoch: head.epoch,
        resume: head.resume,
        resume_chain: head.resume_chain,
        segment: (head.segment_base, head.segment_bytes),
        frame_body_bytes_max: head.frame_body_bytes_max,
        committed: head.committed,
        heartbeat_ms: head.heartbeat_ms,
        peer_timeout_ms: head.peer_timeout_ms,
        history,
        client_address: text(rest, "welcome")?,
    })
}

pub(super) fn encode_refuse(refuse: &Refuse) -> Vec<u8> {
    let head = RefuseHead { code: refuse.code as u32, zero: 0, lsn: refuse.lsn };
    let mut body = head.as_bytes().to_vec();
    body.extend_from_slice(clip(&refuse.text).as_bytes());
    body
}

pub(super) fn decode_refuse(body: &[u8]) -> Result<Refuse, MessageError> {
    let (head, rest) = head::<RefuseHead>(body, "refuse")?;
    let code = RefuseCode::from_u32(head.code).ok_or(MessageError::Body("refuse"))?;
    Ok(Refuse { code, lsn: head.lsn, text: text(rest, "refuse")? })
}

fn clip(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
