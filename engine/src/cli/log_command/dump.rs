//! `rowship log dump DIR`.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use rowship_proto::Lsn;

use super::super::CommandResult;
use super::super::exit::{Exit, Failure};
use crate::log::tools::{DumpRecord, DumpRow, dump};

/// Flags of `rowship log dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Data directory of a node, running or not
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Start with the frame that holds this LSN
    #[arg(long, value_name = "LSN", default_value_t = 0)]
    from: u64,
    /// Print at most this many frames
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print one JSON object per frame
    #[arg(long)]
    json: bool,
}

/// Prints frames in their order.
///
/// # Errors
/// When there is no log, or it cannot be read, or it is damaged there.
pub fn run(args: &DumpArgs) -> CommandResult {
    let disk = super::open_for_reading(&args.directory)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    let result = dump(&disk, Lsn(args.from), args.limit.unwrap_or(u64::MAX), |record| {
        written = if args.json {
            serde_json::to_writer(&mut out, record).map_err(io::Error::from).and_then(|()| {
                // One object per line.
                out.write_all(b"\n")
            })
        } else {
            out.write_all(text(record).as_bytes())
        };
        written.is_ok()
    });
    match written.and_then(|()| out.flush()) {
        // A reader that has seen enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Ok),
        Err(error) => {
            return Err(Failure::new(Exit::Internal, format!("standard output: {error}")));
        }
        Ok(()) => {}
    }
    result?;
    Ok(Exit::Ok)
}

fn text(record: &DumpRecord) -> String {
    let DumpRecord { lsn, frame_bytes, kind, epoch, committed, chain, .. } = record;
    let repeat = if record.repeat { " (repeat)" } else { "" };
    // Writing to a string cannot fail.
    let mut text = format!(
        "{lsn} {kind}{repeat}: {frame_bytes} bytes, epoch {epoch}, committed {committed}, chain \
         {chain}\n"
    );
    for (name, value) in &record.fields {
        let _ = writeln!(text, "    {}: {}", clean(name), clean(value));
    }
    for transaction in &record.transactions {
        let rows = transaction.rows.len();
        let origin = transaction.origin;
        let _ = writeln!(text, "    transaction of {rows} row(s) from node {origin:016x}");
        for row in &transaction.rows {
            let _ = writeln!(text, "      {}", row_text(row));
        }
    }
    text
}

fn row_text(row: &DumpRow) -> String {
    let DumpRow { lsn, table, operation, key, .. } = row;
    let mut text = format!("{lsn} {operation} {}:{}", clean(table), clean(key));
    if let Some(value) = &row.value {
        let _ = write!(text, " = '{}'", clean(value));
    }
    for (name, value) in &row.columns {
        let _ = write!(text, " {}='{}'", clean(name), clean(value));
    }
    text
}

/// A row's bytes may not move the cursor of whoever looks at them.
fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tools::DumpTransaction;

    #[test]
    fn frames_are_readable_and_harmless() {
        let row = DumpRow {
            lsn: 8312,
            table: "planes".to_owned(),
            operation: "put",
            existed: "no",
            key: "N1\u{1b}[2J".to_owned(),
            value: None,
            columns: vec![("year".to_owned(), "1999".to_owned())],
        };
        let record = DumpRecord {
            lsn: 8192,
            frame_bytes: 160,
            kind: "rows",
            repeat: false,
            epoch: "1-a-b".to_owned(),
            committed: 8000,
            sealed_wall_ns: 1,
            chain: "00ff".to_owned(),
            transactions: vec![DumpTransaction { origin: 7, clock: 1, rows: vec![row] }],
            fields: std::collections::BTreeMap::new(),
        };
        assert_eq!(
            text(&record),
            "8192 rows: 160 bytes, epoch 1-a-b, committed 8000, chain 00ff\n    \
             transaction of 1 row(s) from node 0000000000000007\n      \
             8312 put planes:N1?[2J year='1999'\n"
        );
    }
}
