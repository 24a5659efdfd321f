//! From arguments to data commands: one small function per command, named by the rows of
//! [`super::table`].

use super::command::Command;
use super::execute::{Condition, DataCommand};
use super::parse::{Arguments, Parsed, SYNTAX, is};
use super::reply::Reply;

fn data(command: DataCommand) -> Parsed {
    Ok(Command::Data(command))
}

pub(super) fn del(arguments: Arguments) -> Parsed {
    data(DataCommand::Del(arguments.rest()))
}

pub(super) fn exists(arguments: Arguments) -> Parsed {
    data(DataCommand::Exists(arguments.rest()))
}

pub(super) fn row_type(mut arguments: Arguments) -> Parsed {
    data(DataCommand::Type(arguments.word()?))
}

// Strings.

pub(super) fn get(mut arguments: Arguments) -> Parsed {
    data(DataCommand::Get(arguments.word()?))
}

pub(super) fn get_del(mut arguments: Arguments) -> Parsed {
    data(DataCommand::GetDel(arguments.word()?))
}

pub(super) fn get_set(mut arguments: Arguments) -> Parsed {
    data(DataCommand::GetSet(arguments.word()?, arguments.word()?))
}

pub(super) fn set(mut arguments: Arguments) -> Parsed {
    let (key, value) = (arguments.word()?, arguments.word()?);
    let (mut condition, mut get) = (Condition::Always, false);
    while let Some(option) = arguments.next() {
        if is(&option, "nx") && condition != Condition::Present {
            condition = Condition::Missing;
        } else if is(&option, "xx") && condition != Condition::Missing {
            condition = Condition::Present;
        } else if is(&option, "get") {
            get = true;
        } else if is(&option, "keepttl") {
            // Nothing expires, so there is nothing to keep: what it asks for is what happens.
        } else if let Some(option) =
            ["EX", "PX", "EXAT", "PXAT"].into_iter().find(|name| is(&option, name))
        {
            return Err(Reply::error(format!(
                "ERR SET option '{option}' is not supported: rowship has no key expiry"
            )));
        } else {
            return Err(SYNTAX);
        }
    }
    data(DataCommand::Set { key, value, condition, get })
}

pub(super) fn set_nx(mut arguments: Arguments) -> Parsed {
    data(DataCommand::SetNx(arguments.word()?, arguments.word()?))
}

pub(super) fn mset(arguments: Arguments) -> Parsed {
    data(DataCommand::MSet(arguments.pairs()?))
}

pub(super) fn mset_nx(arguments: Arguments) -> Parsed {
    data(DataCommand::MSetNx(arguments.pairs()?))
}

pub(super) fn mget(arguments: Arguments) -> Parsed {
    data(DataCommand::MGet(arguments.rest()))
}

pub(super) fn incr(mut arguments: Arguments) -> Parsed {
    data(DataCommand::Add(arguments.word()?, 1))
}

pub(super) fn decr(mut arguments: Arguments) -> Parsed {
    data(DataCommand::Add(arguments.word()?, -1))
}

pub(super) fn incr_by(mut arguments: Arguments) -> Parsed {
    data(DataCommand::Add(arguments.word()?, arguments.integer()?))
}

pub(super) fn decr_by(mut arguments: Arguments) -> Parsed {
    let (key, amount) = (arguments.word()?, arguments.integer()?);
    let overflow = || Reply::error("ERR decrement would overflow");
    data(DataCommand::Add(key, amount.checked_neg().ok_or_else(overflow)?))
}

pub(super) fn append(mut arguments: Arguments) -> Parsed {
    data(DataCommand::Append(arguments.word()?, arguments.word()?))
}

pub(super) fn strlen(mut arguments: Arguments) -> Parsed {
    data(DataCommand::StrLen(arguments.word()?))
}

pub(super) fn get_range(mut arguments: Arguments) -> Parsed {
    let key = arguments.word()?;
    data(DataCommand::GetRange(key, arguments.integer()?, arguments.integer()?))
}

// Hashes.

pub(super) fn hset(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HSet(arguments.word()?, arguments.pairs()?))
}

pub(super) fn hmset(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HMSet(arguments.word()?, arguments.pairs()?))
}

pub(super) fn hset_nx(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HSetNx(arguments.word()?, arguments.word()?, arguments.word()?))
}

pub(super) fn hget(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HGet(arguments.word()?, arguments.word()?))
}

pub(super) fn hmget(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HMGet(arguments.word()?, arguments.rest()))
}

pub(super) fn hget_all(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HGetAll(arguments.word()?))
}

pub(super) fn hkeys(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HKeys(arguments.word()?))
}

pub(super) fn hvals(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HVals(arguments.word()?))
}

pub(super) fn hexists(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HExists(arguments.word()?, arguments.word()?))
}

pub(super) fn hstrlen(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HStrLen(arguments.word()?, arguments.word()?))
}

pub(super) fn hlen(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HLen(arguments.word()?))
}

pub(super) fn hdel(mut arguments: Arguments) -> Parsed {
    data(DataCommand::HDel(arguments.word()?, arguments.rest()))
}

pub(super) fn hincr_by(mut arguments: Arguments) -> Parsed {
    let (key, name) = (arguments.word()?, arguments.word()?);
    data(DataCommand::HAdd(key, name, arguments.integer()?))
}
