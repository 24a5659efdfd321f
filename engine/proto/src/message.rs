//! Messages: what nodes say to one another beside frames. Small, checksummed, never stored.
//!
//! ```text
//! 0        4      5      6        8             12        16          24
//! | magic  | kind | zero | zero   | body_len    | zero    | checksum  | body, padded to 8 ...
//! ```
//!
//! The checksum is XXH3-64 of the 16 bytes before it and of the body; padding is zero. Messages
//! and frames share one stream towards the replica and are told apart by their first four bytes.
//!
//! Grammar: the replica connects and says `Hello`; the primary answers `Welcome` or `Refuse`; the
//! replica, having cut its tail if it must, says `Ready`, or `Refuse`; then frames and `Notice`s
//! flow right and `Ack`s flow left until one side goes away.

mod bodies;

use xxhash_rust::xxh3::Xxh3;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use self::bodies::{
    HelloHead, RefuseHead, WelcomeHead, decode_hello, decode_refuse, decode_welcome, encode_hello,
    encode_refuse, encode_welcome,
};
use crate::ack::NodeName;
use crate::position::{Epoch, EpochHistory, LogId, Lsn};

/// First four bytes of every message: "RSM1".
pub const MESSAGE_MAGIC: u32 = u32::from_le_bytes(*b"RSM1");
/// Size of a message header in bytes.
pub const MESSAGE_HEADER_BYTES: usize = 24;
/// Largest message body: a full epoch history (32 KiB) and some text.
pub const MESSAGE_BODY_BYTES_MAX: usize = 48 << 10;
/// Versions of the replication protocol that this build speaks.
pub const PROTOCOL_VERSIONS: (u16, u16) = (1, 1);
/// Longest text in a message (a refusal's reason, an address) in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Replica: who I am and where my log ends.
    Hello(Hello),
    /// Primary: stream from here.
    Welcome(Welcome),
    /// Either: no, and why.
    Refuse(Refuse),
    /// Replica: my log ends where you said.
    Ready(Ready),
    /// Replica: how far I am.
    Ack(Ack),
    /// Primary: how far the log and `committed` are; also the heartbeat.
    Notice(Notice),
}

/// See [`Message::Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions spoken, lowest and highest.
    pub versions: (u16, u16),
    /// The log this replica holds, or [`LogId::NONE`].
    pub log_id: LogId,
    /// Its node id.
    pub node_id: u64,
    /// Drawn when its data directory was made: a wiped node comes back as another incarnation.
    pub incarnation: u64,
    /// Highest epoch it has seen.
    pub highest_epoch: Epoch,
    /// Where its log ends.
    pub end: Lsn,
    /// Where it listens for clients, on the host that it connects from.
    pub client_port: u16,
    /// Its epoch history.
    pub history: EpochHistory,
    /// Its name.
    pub name: NodeName,
}

/// See [`Message::Welcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Protocol version to speak.
    pub version: u16,
    /// The log.
    pub log_id: LogId,
    /// The primary's node id.
    pub node_id: u64,
    /// The primary's epoch.
    pub epoch: Epoch,
    /// The stream will start here; what the replica has above must be cut.
    pub resume: Lsn,
    /// Chain value just below `resume`.
    pub resume_chain: u64,
    /// Base and size in bytes of the segment that holds `resume`.
    pub segment: (Lsn, u64),
    /// Largest frame body in bytes.
    pub frame_body_bytes_max: u64,
    /// Committed now.
    pub committed: Lsn,
    /// The primary's heartbeat period in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the primary gives the link up, in milliseconds.
    pub peer_timeout_ms: u32,
    /// Whether `received` should be acknowledged before it is durable.
    pub wants_received: bool,
    /// The primary's epoch history.
    pub history: EpochHistory,
    /// Where clients reach the primary, for `-READONLY` errors.
    pub client_address: String,
}

/// Why a link is refused. Numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefuseCode {
    /// No protocol version in common.
    Version = 1,
    /// The replica holds another log.
    OtherLog = 2,
    /// The replica has seen a newer epoch: this primary's reign is over.
    StalePrimary = 3,
    /// Equal epoch counter, other writer or nonce: a copied or restored directory.
    ForkedEpoch = 4,
    /// The name is in use by another, live incarnation.
    NameInUse = 5,
    /// The bytes the replica needs were retired; `lsn` is the oldest there is.
    Retired = 6,
    /// No point from which to go on, or a difference below `applied`: seed the replica anew.
    Diverged = 7,
    /// The primary has as many replicas as it allows.
    TooMany = 8,
    /// This node is not a primary.
    NotPrimary = 9,
    /// The node is stopping.
    Stopping = 10,
    /// The peer broke the protocol.
    Protocol = 11,
    /// The sender's own copy of what was asked for is damaged.
    Damaged = 12,
}

/// See [`Message::Refuse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Why.
    pub code: RefuseCode,
    /// An LSN that the reason speaks of, or zero.
    pub lsn: Lsn,
    /// The reason, for the operator.
    pub text: String,
}

/// See [`Message::Ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ready {
    /// Where the replica's log ends now.
    pub resume: Lsn,
    /// Chain value just below.
    pub chain: u64,
    /// How far it has applied and shows already.
    pub visible: Lsn,
}

/// See [`Message::Ack`]. Ages say how long before sending a position was reached: that is what
/// turns the arrival of an ack into a time on the primary's clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ack {
    /// Arrived and verified.
    pub received: Lsn,
    /// Survives power loss on the replica.
    pub durable: Lsn,
    /// In the replica's table.
    pub applied: Lsn,
    /// Readers may see it.
    pub visible: Lsn,
    /// Nanoseconds since `received` moved last.
    pub received_age_ns: u64,
    /// Nanoseconds since `durable` moved last.
    pub durable_age_ns: u64,
    /// Nanoseconds since `applied` moved last.
    pub applied_age_ns: u64,
    /// Nanoseconds since `visible` moved last.
    pub visible_age_ns: u64,
}

/// See [`Message::Notice`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Notice {
    /// Committed now.
    pub committed: Lsn,
    /// End of the primary's log now.
    pub appended: Lsn,
    /// The primary's wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
    /// [`NOTICE_WANTS_DURABLE`] or nothing; other bits are for later versions.
    pub flags: u64,
}

/// Somebody waits for `durable` of replicas: they write what they have at once.
pub const NOTICE_WANTS_DURABLE: u64 = 1;

/// What is wrong with bytes that should be a message; the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Neither a message nor a frame begins like this.
    #[error("neither a message nor a frame")]
    Magic,
    /// Longer than any message.
    #[error("message body of {0} bytes is over the limit of {MESSAGE_BODY_BYTES_MAX}")]
    TooLong(usize),
    /// Checksum does not hold.
    #[error("message checksum does not hold")]
    Checksum,
    /// A kind this version does not know.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// The body is not what its kind says.
    #[error("malformed {0} message")]
    Body(&'static str),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MessageHeader {
    magic: u32,
    kind: u8,
    zero: [u8; 3],
    body_len: u32,
    zero_too: u32,
    checksum: u64,
}

const _: () = assert!(size_of::<MessageHeader>() == MESSAGE_HEADER_BYTES);
const _: () = assert!(size_of::<Ack>() == 64);

impl Message {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Message::Hello(hello) => (1, encode_hello(hello)),
            Message::Welcome(welcome) => (2, encode_welcome(welcome)),
            Message::Refuse(refuse) => (3, encode_refuse(refuse)),
            Message::Ready(ready) => (4, ready.as_bytes().to_vec()),
            Message::Ack(ack) => (5, ack.as_bytes().to_vec()),
            Message::Notice(notice) => (6, notice.as_bytes().to_vec()),
        };
        assert!(body.len() <= MESSAGE_BODY_BYTES_MAX);
        let mut header = MessageHeader {
            magic: MESSAGE_MAGIC,
            kind,
            zero: [0; 3],
            body_len: u32::try_from(body.len()).expect("bodies are small"),
            zero_too: 0,
            checksum: 0,
        };
        header.checksum = checksum(&header.as_bytes()[..16], &body);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// Decodes the message at the start of `bytes`: it and its length, or `None` while it is not
    /// all there.
    ///
    /// # Errors
    /// What does not hold; the link cannot be used any further.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Message, usize)>, MessageError> {
        if bytes.len() >= 4 && bytes[..4] != MESSAGE_MAGIC.to_le_bytes() {
            return Err(MessageError::Magic);
        }
        let Ok((header, rest)) = MessageHeader::read_from_prefix(bytes) else { return Ok(None) };
        let body_len = header.body_len as usize;
        if body_len > MESSAGE_BODY_BYTES_MAX {
            return Err(MessageError::TooLong(body_len));
        }
        // Known before the body is there: a bent length must not make the link wait for bytes that
        // only heartbeats would bring.
        let (fits, what) = match header.kind {
            1 => (body_len >= size_of::<HelloHead>(), "hello"),
            2 => (body_len >= size_of::<WelcomeHead>(), "welcome"),
            3 => (body_len >= size_of::<RefuseHead>(), "refuse"),
            4 => (body_len == size_of::<Ready>(), "ready"),
            5 => (body_len == size_of::<Ack>(), "ack"),
            6 => (body_len == size_of::<Notice>(), "notice"),
            kind => return Err(MessageError::Kind(kind)),
        };
        if !fits {
            return Err(MessageError::Body(what));
        }
        let total = MESSAGE_HEADER_BYTES + body_len.next_multiple_of(8);
        if bytes.len() < total {
            return Ok(None);
        }
        let body = &rest[..body_len];
        let padding = &bytes[MESSAGE_HEADER_BYTES + body_len..total];
        if checksum(&bytes[..16], body) != header.checksum || padding.iter().any(|byte| *byte != 0)
        {
            return Err(MessageError::Checksum);
        }
        let message = match header.kind {
            1 => Message::Hello(decode_hello(body)?),
            2 => Message::Welcome(decode_welcome(body)?),
            3 => Message::Refuse(decode_refuse(body)?),
            4 => Message::Ready(exact(body, "ready")?),
            5 => Message::Ack(exact(body, "ack")?),
            6 => Message::Notice(exact(body, "notice")?),
            kind => return Err(MessageError::Kind(kind)),
        };
        Ok(Some((message, total)))
    }
}

fn checksum(head: &[u8], body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(head);
    hash.update(body);
    hash.digest()
}

fn exact<T: FromBytes>(body: &[u8], what: &'static str) -> Result<T, MessageError> {
    T::read_from_bytes(body).map_err(|_| MessageError::Body(what))
}

fn head<'a, T: FromBytes>(
    body: &'a [u8],
    what: &'static str,
) -> Result<(T, &'a [u8]), MessageError> {
    T::read_from_prefix(body).map_err(|_| MessageError::Body(what))
}

impl RefuseCode {
    fn from_u32(number: u32) -> Option<RefuseCode> {
        use RefuseCode::*;
        let all = [
            Version,
            OtherLog,
            StalePrimary,
            ForkedEpoch,
            NameInUse,
            Retired,
            Diverged,
            TooMany,
            NotPrimary,
            Stopping,
            Protocol,
            Damaged,
        ];
        all.into_iter().find(|code| *code as u32 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> EpochHistory {
        let mut history = EpochHistory::default();
        assert!(history.push(Epoch { counter: 1, node_id: 2, nonce: 3 }, Lsn(4096)));
        assert!(history.push(Epoch { counter: 4, node_id: 2, nonce: 9 }, Lsn(8192)));
        history
    }

    fn examples() -> Vec<Message> {
        let hello = Hello {
            versions: PROTOCOL_VERSIONS,
            log_id: LogId([5, 6]),
            node_id: 7,
            incarnation: 8,
            highest_epoch: history().epoch(),
            end: Lsn(8200),
            client_port: 7411,
            history: history(),
            name: NodeName::new("replica-1").unwrap(),
        };
        let welcome = Welcome {
            version: 1,
            log_id: LogId([5, 6]),
            node_id: 2,
            epoch: history().epoch(),
            resume: Lsn(8192),
            resume_chain: 77,
            segment: (Lsn(0), 65536),
            frame_body_bytes_max: 4096,
            committed: Lsn(8000),
            heartbeat_ms: 500,
            peer_timeout_ms: 5000,
            wants_received: true,
            history: history(),
            client_address: "127.0.0.1:7401".to_owned(),
        };
        let text = "retired".to_owned();
        vec![
            Message::Hello(hello),
            Message::Welcome(welcome),
            Message::Refuse(Refuse { code: RefuseCode::Retired, lsn: Lsn(65536), text }),
            Message::Ready(Ready { resume: Lsn(8192), chain: 77, visible: Lsn(8000) }),
            Message::Ack(Ack { received: Lsn(9000), visible_age_ns: 5, ..Ack::default() }),
            Message::Notice(Notice {
                committed: Lsn(1),
                wall_ns: 3,
                flags: 1,
                ..Notice::default()
            }),
        ]
    }

    #[test]
    fn messages_round_trip_and_wait_for_their_end() {
        for message in examples() {
            let bytes = message.encode();
            assert!(bytes.len().is_multiple_of(8));
            for end in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..end]), Ok(None), "{message:?} at {end}");
            }
            let mut more = bytes.clone();
            more.extend_from_slice(b"next");
            assert_eq!(Message::decode(&more), Ok(Some((message, bytes.len()))));
        }
    }

    #[test]
    fn flipped_bits_are_never_a_message() {
        for message in examples() {
            let bytes = message.encode();
            for bit in 0..bytes.len() * 8 {
                let mut hostile = bytes.clone();
                hostile[bit / 8] ^= 1 << (bit % 8);
                let read = Message::decode(&hostile);
                assert!(!matches!(read, Ok(Some(_))), "bit {bit} of {message:?}: {read:?}");
            }
        }
    }

    #[test]
    fn a_bent_length_of_a_heartbeat_is_noticed_at_once() {
        let bytes = Message::Notice(Notice::default()).encode();
        for bit in 64..96 {
            let mut hostile = bytes.clone();
            hostile[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::decode(&hostile).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_announcement_of_gigabytes_is_refused_at_once() {
        let mut bytes = examples()[0].encode();
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::decode(&bytes[..24]), Err(MessageError::TooLong(u32::MAX as usize)));
    }
}
