//! Files of the modelled disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::MemfdFlags;

use crate::edge::Map;
use crate::edge::disk::map_file;

/// An anonymous file.
pub(super) enum MemoryFile {
    /// Of the system: maps see later writes.
    System(File),
    /// On the heap, for Miri, which has neither such files nor maps: a map shows what was there
    /// when it was made.
    Heap(Mutex<Vec<u8>>),
}

impl MemoryFile {
    /// `bytes` zeroes.
    pub(super) fn new(bytes: u64) -> io::Result<MemoryFile> {
        if cfg!(miri) { Ok(MemoryFile::heap(bytes)) } else { MemoryFile::system(bytes) }
    }

    fn system(bytes: u64) -> io::Result<MemoryFile> {
        let file = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes)?;
        Ok(MemoryFile::System(file))
    }

    fn heap(bytes: u64) -> MemoryFile {
        MemoryFile::Heap(Mutex::new(vec![0; index(bytes)]))
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        match self {
            MemoryFile::System(file) => Ok(file.metadata()?.len()),
            MemoryFile::Heap(bytes) => Ok(lock(bytes).len() as u64),
        }
    }

    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            MemoryFile::System(file) => file.read_exact_at(buffer, offset),
            MemoryFile::Heap(bytes) => {
                let bytes = lock(bytes);
                let start = index(offset);
                let found = match buffer.len() {
                    0 => Some(&[][..]),
                    len => bytes.get(start..start.saturating_add(len)),
                };
                buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// Writes, growing the file where it must.
    pub(super) fn write_all_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        match self {
            MemoryFile::System(file) => file.write_all_at(from, offset),
            MemoryFile::Heap(bytes) => {
                let mut bytes = lock(bytes);
                let end = index(offset) + from.len();
                // As for files: nothing written is nothing grown.
                let grown = if from.is_empty() { 0 } else { end }.max(bytes.len());
                bytes.resize(grown, 0);
                if let Some(place) = bytes.get_mut(end - from.len()..end) {
                    place.copy_from_slice(from);
                }
                Ok(())
            }
        }
    }

    pub(super) fn map(&self) -> io::Result<Arc<dyn Map>> {
        match self {
            MemoryFile::System(file) => map_file(file),
            MemoryFile::Heap(bytes) => Ok(Arc::new(HeapMap(lock(bytes).clone()))),
        }
    }
}

struct HeapMap(Vec<u8>);

impl Map for HeapMap {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn populate(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().expect("no test panics while it holds a file")
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("test files are small")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::sim::random::Random;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memory files")]
    fn a_file_on_the_heap_is_as_one_of_the_system() {
        let mut random = Random::new(7);
        let (system, heap) = (MemoryFile::system(100).unwrap(), MemoryFile::heap(100));
        for mark in 0..500 {
            let (offset, len) = (random.below(300), random.below(40) as usize);
            if random.below(2) == 0 {
                let from = vec![mark as u8; len];
                system.write_all_at(&from, offset).unwrap();
                heap.write_all_at(&from, offset).unwrap();
            } else {
                let read = |file: &MemoryFile| {
                    let mut buffer = vec![0; len];
                    let done = file.read_exact_at(&mut buffer, offset);
                    done.map(|()| buffer).map_err(|error| error.kind())
                };
                assert_eq!(read(&heap), read(&system));
            }
            assert_eq!(heap.len().unwrap(), system.len().unwrap());
        }
        assert_eq!(heap.map().unwrap().bytes(), system.map().unwrap().bytes());
    }
}
