//! `Watermark`: a reader that sees position p sees everything written below p.

use loom::thread;
use rowship_sync::Watermark;
use rowship_sync::sync::Arc;

use crate::row::Row;

/// Rows are written, then the watermark passes them. Property: whoever reads watermark n
/// finds the first n rows.
#[test]
fn readers_see_everything_below_what_they_read() {
    loom::model(|| {
        let rows = Arc::new([Row::new(), Row::new()]);
        let visible = Arc::new(Watermark::new(0));
        let writer = {
            let (rows, visible) = (rows.clone(), visible.clone());
            thread::spawn(move || {
                for (at, row) in rows.iter().enumerate() {
                    row.write();
                    visible.advance(at as u64 + 1);
                }
            })
        };
        let first = visible.get();
        for row in &rows[..first as usize] {
            assert!(row.is_there());
        }
        let second = visible.get();
        assert!(first <= second, "a reader saw the watermark go back");
        writer.join().unwrap();
        assert_eq!(visible.get(), 2);
    });
}
