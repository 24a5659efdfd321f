//! `Stock`, with frame buffers in mind: a buffer is written by one thread, then read by several
//! (disk write, sends, apply), and goes back with the last of them. The counted reference that
//! they share is a library's (`bytes`); here loom's stands for it.

use loom::cell::UnsafeCell;
use loom::sync::Notify;
use loom::thread;
use rowship_sync::stock::Stock;
use rowship_sync::sync::Arc;

/// A buffer of one number.
struct Buffer(UnsafeCell<u64>);

// SAFETY: that accesses are ordered is the very property of the models, and loom checks it at each
// access; a model that breaks it fails before the memory is touched.
unsafe impl Sync for Buffer {}
// SAFETY: a number may be anywhere.
unsafe impl Send for Buffer {}

impl Buffer {
    fn write(&self, mark: u64) {
        // SAFETY: loom has checked that nobody else accesses it; the pointer is valid in here.
        self.0.with_mut(|number| unsafe { *number = mark });
    }

    fn read(&self) -> u64 {
        // SAFETY: loom has checked that all writes happened before; the pointer is valid in here.
        self.0.with(|number| unsafe { *number })
    }
}

fn stock(count: usize, back: &Arc<Notify>) -> Stock<Buffer> {
    let buffers = (0..count).map(|_| Buffer(UnsafeCell::new(0))).collect();
    let back = back.clone();
    Stock::new(buffers, move || back.notify())
}

/// Properties: a buffer on loan is nobody else's until its last reader is done; whoever finds the
/// stock empty is told when a buffer is back, and then there is one.
#[test]
fn a_buffer_has_one_holder_and_its_return_is_not_missed() {
    loom::model(|| {
        let back = Arc::new(Notify::new());
        let stock = stock(1, &back);
        let mut readers = Vec::new();
        for mark in 1..=2 {
            let buffer = loop {
                match stock.take() {
                    Some(buffer) => break buffer,
                    None => back.wait(),
                }
            };
            buffer.write(mark);
            let shared = Arc::new(buffer);
            let theirs = shared.clone();
            readers.push(thread::spawn(move || assert_eq!(theirs.read(), mark)));
            assert_eq!(shared.read(), mark);
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
        let threads: Vec<_> = (1..)
            .zip(both)
            .map(|(mark, buffer)| {
                thread::spawn(move || {
                    buffer.write(mark);
                    assert_eq!(buffer.read(), mark);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let (one, other) = (stock.take().expect("back"), stock.take().expect("back, too"));
        assert_eq!(one.read() + other.read(), 3);
        assert!(stock.take().is_none());
    });
}
