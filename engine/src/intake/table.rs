//! The rows of the table of commands.

use super::command::{CommandInfo, InMulti, ParseFn, command_family};
use super::{parse, parse_data as rows};

/// All commands, sorted by name.
#[rustfmt::skip]
pub static COMMANDS: &[CommandInfo] = &[
    data("append", 3, WRITE_FAST, ONE_KEY, rows::append, "Appends to a string."),
    other("auth", -2, "connection", InMulti::Queue, parse::auth,
        "Refused: there is no authentication yet."),
    other("client", -2, "connection", InMulti::Queue, parse::client,
        "ID, GETNAME, SETNAME, SETINFO."),
    other("command", -1, "server", InMulti::Queue, command_family,
        "Lists commands: COUNT, LIST, INFO, DOCS."),
    other("config", -2, "server", InMulti::Queue, parse::config,
        "GET reads settings; SET is refused."),
    other("dbsize", 1, "server", InMulti::Queue, parse::dbsize, "Counts rows."),
    data("decr", 2, WRITE_FAST, ONE_KEY, rows::decr, "Subtracts one from an integer."),
    data("decrby", 3, WRITE_FAST, ONE_KEY, rows::decr_by, "Subtracts from an integer."),
    generic("del", -2, "write", ALL_KEYS, rows::del, "Deletes rows."),
    other("discard", 1, "transactions", InMulti::Run, parse::discard, "Forgets what MULTI queued."),
    other("echo", 2, "connection", InMulti::Queue, parse::echo, "Answers its argument."),
    other("exec", 1, "transactions", InMulti::Run, parse::exec,
        "Runs what MULTI queued as one transaction."),
    generic("exists", -2, READ_FAST, ALL_KEYS, rows::exists, "Counts the given rows that exist."),
    data("get", 2, READ_FAST, ONE_KEY, rows::get, "Reads a string."),
    data("getdel", 2, "write fast", ONE_KEY, rows::get_del, "Reads a string and deletes it."),
    data("getrange", 4, READ, ONE_KEY, rows::get_range, "Reads a part of a string."),
    data("getset", 3, WRITE_FAST, ONE_KEY, rows::get_set,
        "Sets a string and answers the old one."),
    data("hdel", -3, "write fast", ONE_KEY, rows::hdel,
        "Deletes columns; with the last one, the row."),
    other("hello", -1, "connection", InMulti::Queue, parse::hello, "Chooses the protocol version."),
    data("hexists", 3, READ_FAST, ONE_KEY, rows::hexists, "Tells whether a column exists."),
    data("hget", 3, READ_FAST, ONE_KEY, rows::hget, "Reads a column."),
    data("hgetall", 2, READ, ONE_KEY, rows::hget_all, "Reads all columns."),
    data("hincrby", 4, WRITE_FAST, ONE_KEY, rows::hincr_by, "Adds to an integer column."),
    data("hkeys", 2, READ, ONE_KEY, rows::hkeys, "Lists the names of columns."),
    data("hlen", 2, READ_FAST, ONE_KEY, rows::hlen, "Counts columns."),
    data("hmget", -3, READ_FAST, ONE_KEY, rows::hmget, "Reads columns."),
    data("hmset", -4, WRITE_FAST, ONE_KEY, rows::hmset, "Sets columns; answers OK."),
    data("hset", -4, WRITE_FAST, ONE_KEY, rows::hset, "Sets columns; answers how many are new."),
    data("hsetnx", 4, WRITE_FAST, ONE_KEY, rows::hset_nx, "Sets a column that does not exist."),
    data("hstrlen", 3, READ_FAST, ONE_KEY, rows::hstrlen,
        "Tells the length of a column in bytes."),
    data("hvals", 2, READ, ONE_KEY, rows::hvals, "Lists the values of columns."),
    data("incr", 2, WRITE_FAST, ONE_KEY, rows::incr, "Adds one to an integer."),
    data("incrby", 3, WRITE_FAST, ONE_KEY, rows::incr_by, "Adds to an integer."),
    other("info", -1, "server", InMulti::Queue, parse::info, "Tells about the node, by section."),
    data("mget", -2, READ_FAST, ALL_KEYS, rows::mget, "Reads strings."),
    data("mset", -3, WRITE, PAIRS, rows::mset, "Sets strings in one transaction."),
    data("msetnx", -3, WRITE, PAIRS, rows::mset_nx, "Sets strings when none of them exists."),
    other("multi", 1, "transactions", InMulti::Run, parse::multi, "Queues commands until EXEC."),
    other("ping", -1, "connection", InMulti::Queue, parse::ping, "Answers PONG or its argument."),
    other("quit", -1, "connection", InMulti::Run, parse::quit, "Closes the connection."),
    other("reset", 1, "connection", InMulti::Run, parse::reset, "Makes the connection as new."),
    other("role", 1, "server", InMulti::Queue, parse::role,
        "Tells the node's place in replication."),
    other("rowship.ack", -1, "rowship", NOT_IN_MULTI, parse::ack, "This connection's ack policy."),
    other("rowship.dump", 3, "rowship", NOT_IN_MULTI, parse::dump,
        "Lists rows with values: cursor, count."),
    other("rowship.position", 1, "rowship", NOT_IN_MULTI, parse::position,
        "Token of this connection's last write."),
    other("rowship.retire", 2, "rowship", NOT_IN_MULTI, parse::retire,
        "Lets segments below an LSN go."),
    other("rowship.status", 1, "rowship", NOT_IN_MULTI, parse::status,
        "The node's status as JSON."),
    other("rowship.waitpos", 3, "rowship", NOT_IN_MULTI, parse::wait_position,
        "Waits until a token is visible here."),
    other("scan", -2, "generic", InMulti::Queue, parse::scan,
        "Lists keys: cursor, MATCH, COUNT, TYPE."),
    other("select", 2, "connection", InMulti::Queue, parse::select, "Accepts database 0 only."),
    data("set", -3, WRITE, ONE_KEY, rows::set, "Sets a string: NX, XX, GET."),
    data("setnx", 3, WRITE_FAST, ONE_KEY, rows::set_nx, "Sets a string that does not exist."),
    other("shutdown", -1, "server", NEVER_IN_MULTI, parse::shutdown,
        "Refused: stop the process instead."),
    data("strlen", 2, READ_FAST, ONE_KEY, rows::strlen, "Tells the length of a string in bytes."),
    generic("type", 2, READ_FAST, ONE_KEY, rows::row_type, "Tells the type of a row."),
    generic("unlink", -2, "write fast", ALL_KEYS, rows::del, "Deletes rows."),
    other("unwatch", 1, "transactions", InMulti::Queue, parse::unwatch, "Forgets watched keys."),
    other("wait", 3, "generic", InMulti::Queue, parse::wait,
        "Waits until replicas have received my writes."),
    other("waitaof", 4, "generic", InMulti::Queue, parse::wait_aof,
        "Waits until my writes are durable on replicas."),
    other("watch", -2, "transactions", InMulti::Run, parse::watch,
        "Makes EXEC fail when these rows change."),
];

const NO_KEYS: (i64, i64, i64) = (0, 0, 0);
const ONE_KEY: (i64, i64, i64) = (1, 1, 1);
const ALL_KEYS: (i64, i64, i64) = (1, -1, 1);
const PAIRS: (i64, i64, i64) = (1, -1, 2);
const NEVER_IN_MULTI: InMulti = InMulti::Refuse("ERR Command not allowed inside a transaction");
/// Ours: what they are about is known only when the transaction is over.
const NOT_IN_MULTI: InMulti =
    InMulti::Refuse("ERR ROWSHIP commands are not allowed inside a transaction");

const READ: &str = "readonly";
const READ_FAST: &str = "readonly fast";
const WRITE: &str = "write denyoom";
const WRITE_FAST: &str = "write denyoom fast";

/// A command on rows: it waits for EXEC.
const fn data(
    name: &'static str,
    arity: i32,
    flags: &'static str,
    keys: (i64, i64, i64),
    parse: ParseFn,
    summary: &'static str,
) -> CommandInfo {
    let group = match name.as_bytes()[0] {
        b'h' => "hash",
        _ => "string",
    };
    CommandInfo { name, arity, flags, keys, group, summary, in_multi: InMulti::Queue, parse }
}

/// A command on keys of any type: it waits for EXEC.
const fn generic(
    name: &'static str,
    arity: i32,
    flags: &'static str,
    keys: (i64, i64, i64),
    parse: ParseFn,
    summary: &'static str,
) -> CommandInfo {
    CommandInfo { group: "generic", ..data(name, arity, flags, keys, parse, summary) }
}

/// A command without keys.
const fn other(
    name: &'static str,
    arity: i32,
    group: &'static str,
    in_multi: InMulti,
    parse: ParseFn,
    summary: &'static str,
) -> CommandInfo {
    CommandInfo { name, arity, flags: "fast", keys: NO_KEYS, group, summary, in_multi, parse }
}
