//! `Stock`, with frame buffers in mind: a buffer is written by one thread, then read by several
//! (disk write, sends, apply), and goes back with the last of them. The counted reference that
//! they share is a library's (`bytes`); here loom's stands for it.

use loom::sync::Notify;
use loom::thread;
use rowship_sync::stock::Stock;
use rowship_sync::sync::Arc;

use crate::row::Row;

fn stock(count: usize, back: &Arc<Notify>) -> Stock<Row> {
    let back = back.clone();
    Stock::new((0..count).map(|_| Row::new()).collect(), move || back.notify())
}

/// Properties: a buffer on loan is nobody else's until its last reader is done; whoever finds the
/// stock empty is told when a buffer is back, and then there is one.
#[test]
fn a_buffer_has_one_holder_and_its_return_is_not_missed() {
    loom::model(|| {
        let back = Arc::new(Notify::new());
        let stock = stock(1, &back);
        let mut readers = Vec::new();
        for _ in 0..2 {
            let buffer = loop {
                match stock.take() {
                    Some(buffer) => break buffer,
                    None => back.wait(),
                }
            };
            buffer.write();
            let shared = Arc::new(buffer);
            let theirs = shared.clone();
            readers.push(thread::spawn(move || assert!(theirs.is_there())));
            assert!(shared.is_there());
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(stock.free(), 1);
    });
}

/// Property: what comes back from several threads at once is all there again, and each thing once.
#[test]
fn things_that_come_back_together_are_all_there() {
    loom::model(|| {
        let stock = stock(2, &Arc::new(Notify::new()));
        let both = [stock.take().expect("there are two"), stock.take().expect("there are two")];
        let threads = both.map(|buffer| {
            thread::spawn(move || {
                buffer.write();
                assert!(buffer.is_there());
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let (one, other) = (stock.take().expect("back"), stock.take().expect("back, too"));
        assert!(one.is_there() && other.is_there());
        assert!(stock.take().is_none());
    });
}
