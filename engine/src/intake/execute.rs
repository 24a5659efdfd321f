//! What data commands mean, over any source of rows: Redis's semantics, on whole-row images.
//!
//! A command that fails by itself (wrong type, not a number, too large) has written nothing: all
//! is checked before the first write. Only when [`Rows::write`] fails can earlier writes of the
//! same command be there already; then the node drops the whole transaction.

use bytes::Bytes;
use rowship_proto::value::{Columns, Image, encode_string};

use super::reply::Reply;
use super::{hashes, strings};

/// Which of a row's images a read means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The newest committed image, or this connection's own newer write: plain reads.
    Plain,
    /// The pending image: read-modify-write, and everything inside EXEC.
    Latest,
}

/// The rows that commands run on; the node implements it.
pub trait Rows {
    /// The encoded image ([`rowship_proto::value`]) of the row at the client's `key`, `None` when
    /// there is no such row. With [`View::Latest`] it sees what [`Rows::write`] took before.
    ///
    /// # Errors
    /// The reply that ends the command.
    fn read(&mut self, key: &Bytes, view: View) -> Result<Option<Bytes>, Reply>;

    /// Replaces the row's image; `None` deletes the row.
    ///
    /// # Errors
    /// The reply that ends the command; the transaction around it is then void.
    fn write(&mut self, key: &Bytes, image: Option<Vec<u8>>) -> Result<(), Reply>;

    /// Largest image in bytes that [`Rows::write`] takes.
    fn value_bytes_max(&self) -> usize {
        super::key::RowLimits::default().value_bytes_max
    }

    /// Largest reply in bytes that one command may have.
    fn reply_bytes_max(&self) -> usize;
}

/// When SET sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    Always,
    /// `NX`: only a key that does not exist.
    Missing,
    /// `XX`: only a key that exists.
    Present,
}

/// A command that reads or writes rows whose keys it names, and can run inside EXEC. Fields are
/// in the order of the command's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataCommand {
    /// Queued, and its answer is known: PING, ECHO, SELECT 0, an error.
    Constant(Reply),
    /// DEL, UNLINK.
    Del(Vec<Bytes>),
    /// EXISTS.
    Exists(Vec<Bytes>),
    /// TYPE.
    Type(Bytes),
    /// GET.
    Get(Bytes),
    /// GETDEL.
    GetDel(Bytes),
    /// GETSET.
    GetSet(Bytes, Bytes),
    /// SET.
    Set {
        /// The row.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// NX, XX or neither.
        condition: Condition,
        /// GET: answer the old value.
        get: bool,
    },
    /// SETNX.
    SetNx(Bytes, Bytes),
    /// MSET.
    MSet(Vec<(Bytes, Bytes)>),
    /// MSETNX.
    MSetNx(Vec<(Bytes, Bytes)>),
    /// MGET.
    MGet(Vec<Bytes>),
    /// INCR, DECR, INCRBY, DECRBY: adds the number.
    Add(Bytes, i64),
    /// APPEND.
    Append(Bytes, Bytes),
    /// STRLEN.
    StrLen(Bytes),
    /// GETRANGE: first and last byte, negative from the end.
    GetRange(Bytes, i64, i64),
    /// HSET.
    HSet(Bytes, Vec<(Bytes, Bytes)>),
    /// HMSET: HSET with another reply.
    HMSet(Bytes, Vec<(Bytes, Bytes)>),
    /// HSETNX.
    HSetNx(Bytes, Bytes, Bytes),
    /// HGET.
    HGet(Bytes, Bytes),
    /// HMGET.
    HMGet(Bytes, Vec<Bytes>),
    /// HGETALL.
    HGetAll(Bytes),
    /// HKEYS.
    HKeys(Bytes),
    /// HVALS.
    HVals(Bytes),
    /// HEXISTS.
    HExists(Bytes, Bytes),
    /// HSTRLEN.
    HStrLen(Bytes, Bytes),
    /// HLEN.
    HLen(Bytes),
    /// HDEL.
    HDel(Bytes, Vec<Bytes>),
    /// HINCRBY.
    HAdd(Bytes, Bytes, i64),
}

impl DataCommand {
    /// Every key it reads or writes, in order, with repetitions.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        use DataCommand::*;
        let nothing = (None, &[][..], &[][..]);
        let (one, many, pairs): (Option<&Bytes>, &[Bytes], &[(Bytes, Bytes)]) = match self {
            Constant(_) => nothing,
            Del(keys) | Exists(keys) | MGet(keys) => (None, keys, &[]),
            MSet(pairs) | MSetNx(pairs) => (None, &[], pairs),
            Type(key) | Get(key) | GetDel(key) | StrLen(key) => (Some(key), &[], &[]),
            HGetAll(key) | HKeys(key) | HVals(key) | HLen(key) => (Some(key), &[], &[]),
            GetSet(key, _) | SetNx(key, _) | Append(key, _) | Set { key, .. } => {
                (Some(key), &[], &[])
            }
            Add(key, _) | GetRange(key, ..) => (Some(key), &[], &[]),
            HSet(key, _) | HMSet(key, _) | HSetNx(key, ..) => (Some(key), &[], &[]),
            HGet(key, _) | HMGet(key, _) | HExists(key, _) | HStrLen(key, _) => {
                (Some(key), &[], &[])
            }
            HDel(key, _) | HAdd(key, ..) => (Some(key), &[], &[]),
        };
        one.into_iter().chain(many).chain(pairs.iter().map(|pair| &pair.0))
    }

    /// Whether it looks at what its rows hold, not only at whether they exist.
    #[must_use]
    pub fn reads_values(&self) -> bool {
        use DataCommand::*;
        !matches!(
            self,
            Constant(_)
                | Del(_)
                | Exists(_)
                | MSet(_)
                | MSetNx(_)
                | SetNx(..)
                | Set { get: false, .. }
        )
    }

    /// Whether it may write: what a replica refuses, and what reads pending images.
    #[must_use]
    pub fn is_write(&self) -> bool {
        use DataCommand::*;
        match self {
            Constant(_) | Exists(_) | Type(_) | Get(_) | MGet(_) | StrLen(_) | GetRange(..) => {
                false
            }
            HGet(..) | HMGet(..) | HGetAll(_) | HKeys(_) | HVals(_) | HExists(..) | HStrLen(..)
            | HLen(_) => false,
            Del(_)
            | GetDel(_)
            | GetSet(..)
            | Set { .. }
            | SetNx(..)
            | MSet(_)
            | MSetNx(_)
            | Add(..)
            | Append(..) => true,
            HSet(..) | HMSet(..) | HSetNx(..) | HDel(..) | HAdd(..) => true,
        }
    }
}

/// The client keys of rows that a command or transaction looks at.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// What they hold matters.
    pub values: Vec<Bytes>,
    /// Only whether they exist matters (unless they are among `values`, too).
    pub existence: Vec<Bytes>,
}

impl Keys {
    /// All keys of `commands`, repetitions included.
    #[must_use]
    pub fn of<'a>(commands: impl IntoIterator<Item = &'a DataCommand>) -> Keys {
        let mut keys = Keys::default();
        for command in commands {
            let into = if command.reads_values() { &mut keys.values } else { &mut keys.existence };
            into.extend(command.keys().cloned());
        }
        keys
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() + self.existence.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Runs a command. Reads of read-only commands use `view_for_reads` ([`View::Plain`] outside
/// EXEC); commands that may write always read [`View::Latest`].
pub fn execute(command: &DataCommand, view_for_reads: View, rows: &mut impl Rows) -> Reply {
    let reply = run(command, view_for_reads, rows).unwrap_or_else(|error| error);
    if command.is_write() {
        // It has happened, so its reply must stand; that is at most one value.
        return reply;
    }
    check_reply_bytes(reply.encoded_bytes_max(), rows).err().unwrap_or(reply)
}

fn run(command: &DataCommand, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    use DataCommand::*;
    match command {
        Constant(reply) => Ok(reply.clone()),
        Del(keys) => del(keys, rows),
        Exists(keys) => exists(keys, view, rows),
        Type(key) => row_type(key, view, rows),
        Get(key) => strings::get(key, view, rows),
        GetDel(key) => strings::get_del(key, rows),
        GetSet(key, value) => strings::set(key, value, Condition::Always, true, rows),
        Set { key, value, condition, get } => strings::set(key, value, *condition, *get, rows),
        SetNx(key, value) => strings::set_nx(key, value, rows),
        MSet(pairs) => strings::mset(pairs, rows),
        MSetNx(pairs) => strings::mset_nx(pairs, rows),
        MGet(keys) => strings::mget(keys, view, rows),
        Add(key, delta) => strings::add(key, *delta, rows),
        Append(key, tail) => strings::append(key, tail, rows),
        StrLen(key) => strings::strlen(key, view, rows),
        GetRange(key, first, last) => strings::get_range(key, *first, *last, view, rows),
        HSet(key, pairs) => hashes::set(key, pairs, rows).map(count),
        HMSet(key, pairs) => hashes::set(key, pairs, rows).map(|_| Reply::OK),
        HSetNx(key, name, value) => hashes::set_nx(key, name, value, rows),
        HGet(key, name) => hashes::get(key, name, view, rows),
        HMGet(key, names) => hashes::get_many(key, names, view, rows),
        HGetAll(key) => hashes::get_all(key, view, rows),
        HKeys(key) => hashes::names(key, view, rows),
        HVals(key) => hashes::values(key, view, rows),
        HExists(key, name) => hashes::exists(key, name, view, rows),
        HStrLen(key, name) => hashes::strlen(key, name, view, rows),
        HLen(key) => hashes::len(key, view, rows),
        HDel(key, names) => hashes::del(key, names, rows),
        HAdd(key, name, delta) => hashes::add(key, name, *delta, rows),
    }
}

fn del(keys: &[Bytes], rows: &mut impl Rows) -> Result<Reply, Reply> {
    let mut deleted = 0;
    for key in keys {
        if rows.read(key, View::Latest)?.is_some() {
            rows.write(key, None)?;
            deleted += 1;
        }
    }
    Ok(count(deleted))
}

fn exists(keys: &[Bytes], view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    let mut found = 0;
    for key in keys {
        found += usize::from(rows.read(key, view)?.is_some());
    }
    Ok(count(found))
}

fn row_type(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    let Some(image) = rows.read(key, view)? else {
        return Ok(Reply::Simple("none".into()));
    };
    Ok(Reply::Simple(type_name(&parse(&image)?).into()))
}

/// The name that TYPE, and SCAN's TYPE option, give to an image.
#[must_use]
pub fn type_name(image: &Image<'_>) -> &'static str {
    match image {
        Image::String(_) => "string",
        Image::Columns(_) => "hash",
    }
}

/// Parses an image that came from the table or the log.
///
/// # Errors
/// An error reply: the row is damaged.
pub(super) fn parse(image: &[u8]) -> Result<Image<'_>, Reply> {
    Image::parse(image).map_err(|error| Reply::error(format!("ERR stored row is damaged: {error}")))
}

/// Parses the image of a string.
pub(super) fn parse_string(image: &[u8]) -> Result<&[u8], Reply> {
    match parse(image)? {
        Image::String(value) => Ok(value),
        Image::Columns(_) => Err(WRONG_TYPE),
    }
}

/// Parses the image of a row with columns.
pub(super) fn parse_columns(image: &[u8]) -> Result<Columns<'_>, Reply> {
    match parse(image)? {
        Image::Columns(columns) => Ok(columns),
        Image::String(_) => Err(WRONG_TYPE),
    }
}

/// Encodes a string that may be of any size, unless it is larger than rows may be.
pub(super) fn string_image(value: &[u8], rows: &impl Rows) -> Result<Vec<u8>, Reply> {
    check_image_bytes(IMAGE_PREFIX_BYTES + value.len(), rows)?;
    Ok(encode_string(value))
}

/// Refuses an image of `bytes` before memory is spent on it.
pub(super) fn check_image_bytes(bytes: usize, rows: &impl Rows) -> Result<(), Reply> {
    let bytes_max = rows.value_bytes_max();
    if bytes <= bytes_max {
        return Ok(());
    }
    let text = format!(
        "ERR row of {bytes} bytes is larger than a row may be ({bytes_max} bytes, by \
         frame_body_bytes_max)"
    );
    Err(Reply::error(text))
}

/// Refuses a reply that grows beyond its limit. A short request can ask for one large value many
/// times over, so reading stops when this says so.
pub(super) fn check_reply_bytes(bytes: usize, rows: &impl Rows) -> Result<(), Reply> {
    let bytes_max = rows.reply_bytes_max();
    if bytes <= bytes_max {
        return Ok(());
    }
    let text = format!("ERR reply is larger than replies_bytes_max ({bytes_max} bytes)");
    Err(Reply::error(text))
}

/// A count as a reply.
pub(super) fn count(count: usize) -> Reply {
    Reply::Integer(i64::try_from(count).expect("counts of what is in memory fit 63 bits"))
}

/// Bytes before the value of a string image.
pub(super) const IMAGE_PREFIX_BYTES: usize = 4;

pub(super) const WRONG_TYPE: Reply = Reply::Error(std::borrow::Cow::Borrowed(
    "WRONGTYPE Operation against a key holding the wrong kind of value",
));
pub(super) const OVERFLOW: Reply =
    Reply::Error(std::borrow::Cow::Borrowed("ERR increment or decrement would overflow"));
