//! Frame buffers: a fixed number of page-aligned buffers, lent out and taken back.
//!
//! Limit: there are exactly as many buffers as were asked for. When none is free, whoever wants
//! one waits (that is the back-pressure on clients); the pool never grows. A sealed frame's buffer
//! comes back when the last reader of its bytes (disk write, sends, apply) has dropped them.

use std::io;

use bytes::Bytes;
use memmap2::MmapMut;
use rowship_sync::stock::{Lent, Stock};

/// The pool. Clones share it; buffers may come back from any thread.
#[derive(Clone)]
pub struct FramePool {
    stock: Stock<MmapMut>,
}

/// A buffer on loan, writable.
pub struct FrameBuffer {
    memory: Lent<MmapMut>,
}

impl FramePool {
    /// `count` buffers of `bytes` each (rounded up to whole pages by the system). `returned` is
    /// called, on any thread, whenever a buffer has come back.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(
        count: usize,
        bytes: usize,
        returned: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<FramePool> {
        let buffers = (0..count).map(|_| MmapMut::map_anon(bytes)).collect::<io::Result<_>>()?;
        Ok(FramePool { stock: Stock::new(buffers, returned) })
    }

    /// A free buffer, or `None`: then wait for `returned`. Its old contents are still in it.
    #[must_use]
    pub fn take(&self) -> Option<FrameBuffer> {
        self.stock.take().map(|memory| FrameBuffer { memory })
    }

    /// Buffers that are free now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.stock.free()
    }
}

impl FrameBuffer {
    /// The first `len` bytes, shared without a copy; the buffer goes home with the last of them.
    ///
    /// # Panics
    /// When `len` is beyond the buffer.
    #[must_use]
    pub fn freeze(self, len: usize) -> Bytes {
        Bytes::from_owner(self).slice(..len)
    }
}

impl AsRef<[u8]> for FrameBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl AsMut<[u8]> for FrameBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_empty_pool_gives_nothing_until_the_last_reader_is_done() {
        let returned = Arc::new(AtomicUsize::new(0));
        let seen = returned.clone();
        let count = move || {
            seen.fetch_add(1, Ordering::Relaxed);
        };
        let pool = FramePool::new(1, 100, count).unwrap();
        let mut buffer = pool.take().unwrap();
        assert!(pool.take().is_none());
        buffer.as_mut()[..5].copy_from_slice(b"hello");
        let bytes = buffer.freeze(5);
        let reader = bytes.clone();
        drop(bytes);
        assert!(pool.take().is_none());
        assert_eq!(&reader[..], b"hello");
        drop(reader);
        assert_eq!(returned.load(Ordering::Relaxed), 1);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn bytes_stay_as_they_are_while_any_thread_reads_them() {
        let pool = FramePool::new(2, 4096, || ()).unwrap();
        let mut sent = 0;
        std::thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::sync_channel::<(u8, Bytes)>(2);
            let reader = scope.spawn(move || {
                let read = |(mark, bytes): (u8, Bytes)| bytes.iter().all(|byte| *byte == mark);
                receive.into_iter().map(read).filter(|whole| *whole).count()
            });
            while sent < 2000 {
                // Back from the reader's thread, sooner or later.
                let Some(mut buffer) = pool.take() else { continue };
                let mark = (sent % 251) as u8;
                buffer.as_mut().fill(mark);
                send.send((mark, buffer.freeze(4096))).unwrap();
                sent += 1;
            }
            drop(send);
            assert_eq!(reader.join().unwrap(), sent);
        });
        assert_eq!(pool.free(), 2);
    }
}
