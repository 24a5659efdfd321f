//! From a client's key to a table's name and the key within that table.

use rowship_proto::control::TABLE_NAME_BYTES_MAX;
use rowship_proto::row::KEY_BYTES_MAX;

use super::reply::Reply;

/// Limits on rows, as clients meet them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLimits {
    /// Longest key in bytes, without the table's prefix; at most [`KEY_BYTES_MAX`].
    pub key_bytes_max: usize,
    /// Largest image of a row in bytes, its few bytes of framing included.
    pub value_bytes_max: usize,
}

impl Default for RowLimits {
    /// Keys wide enough for any composite key; values as wide as the largest frame body. (A
    /// node with smaller frames refuses earlier, when a transaction does not fit.)
    fn default() -> Self {
        RowLimits { key_bytes_max: 16 << 10, value_bytes_max: 16 << 20 }
    }
}

/// A client's key, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey<'a> {
    /// Name of the table: the part before the first colon, which may be empty. `None` without a
    /// colon: the row lives in [`rowship_proto::row::TableId::NO_PREFIX`].
    pub table: Option<&'a [u8]>,
    /// The key within the table; may be empty.
    pub key: &'a [u8],
}

/// A key that no row can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The part behind the first colon (or all of it).
    #[error("key of {bytes} bytes is longer than key_bytes_max ({bytes_max} bytes)")]
    Key {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The part before the first colon.
    #[error(
        "table name of {bytes} bytes (the key's part before the first colon) is longer than \
         {TABLE_NAME_BYTES_MAX} bytes"
    )]
    Table {
        /// Its length.
        bytes: usize,
    },
}

impl KeyError {
    /// What the client is told.
    #[must_use]
    pub fn reply(&self) -> Reply {
        Reply::error(format!("ERR {self}"))
    }
}

/// Splits a client's key at its first colon.
///
/// # Errors
/// [`KeyError`] when a part is longer than its limit.
pub fn split_key<'a>(client_key: &'a [u8], limits: &RowLimits) -> Result<ClientKey<'a>, KeyError> {
    Ok(match check_key(client_key, limits)? {
        Some(colon) => {
            ClientKey { table: Some(&client_key[..colon]), key: &client_key[colon + 1..] }
        }
        None => ClientKey { table: None, key: client_key },
    })
}

/// Checks both parts of a client's key and returns where its first colon is.
///
/// # Errors
/// [`KeyError`] when a part is longer than its limit.
pub fn check_key(client_key: &[u8], limits: &RowLimits) -> Result<Option<usize>, KeyError> {
    let colon = client_key.iter().position(|byte| *byte == b':');
    if let Some(bytes) = colon.filter(|bytes| *bytes > TABLE_NAME_BYTES_MAX) {
        return Err(KeyError::Table { bytes });
    }
    let bytes = colon.map_or(client_key.len(), |colon| client_key.len() - colon - 1);
    let bytes_max = limits.key_bytes_max.min(KEY_BYTES_MAX);
    if bytes > bytes_max {
        return Err(KeyError::Key { bytes, bytes_max });
    }
    Ok(colon)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(key: &str) -> Result<(Option<String>, String), KeyError> {
        let limits = RowLimits { key_bytes_max: 8, ..RowLimits::default() };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let split = split_key(key.as_bytes(), &limits)?;
        Ok((split.table.map(text), text(split.key)))
    }

    #[test]
    fn the_first_colon_ends_the_table_name() {
        assert_eq!(split("planes:N14228"), Ok((Some("planes".into()), "N14228".into())));
        assert_eq!(split("a:b:c"), Ok((Some("a".into()), "b:c".into())));
        assert_eq!(split(":x"), Ok((Some(String::new()), "x".into())));
        assert_eq!(split("x:"), Ok((Some("x".into()), String::new())));
        assert_eq!(split("plain"), Ok((None, "plain".into())));
        assert_eq!(split(""), Ok((None, String::new())));
    }

    #[test]
    fn parts_beyond_their_limits_are_refused() {
        assert_eq!(split("t:123456789"), Err(KeyError::Key { bytes: 9, bytes_max: 8 }));
        assert_eq!(split("123456789"), Err(KeyError::Key { bytes: 9, bytes_max: 8 }));
        let name = "t".repeat(TABLE_NAME_BYTES_MAX);
        assert!(split(&format!("{name}:12345678")).is_ok());
        assert_eq!(split(&format!("{name}t:1")), Err(KeyError::Table { bytes: 256 }));
    }
}
