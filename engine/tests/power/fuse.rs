//! The file system as the kernel asks for it: each request becomes one call of the model.
//!
//! Pages are cached and written through (no write-back cache), or written past the cache
//! (`O_DIRECT`): every `write` is a request before it returns, also through io_uring, and a write
//! through a descriptor with `O_DSYNC` is followed by a request to sync the file, before the caller
//! hears of it. Maps read through the same cache.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::model::{Body, Directory, File, Model};
use super::state::{Direct, Operation, Shared, State};

/// Names and attributes change through the kernel only, so it may keep them.
const TTL: Duration = Duration::from_secs(3600);
const BLOCK_BYTES: u64 = 4096;
const NAME_BYTES_MAX: u32 = 255;

/// A session's view of the disk.
pub struct Adapter(pub Arc<Shared>);

/// Unwraps a result or answers its error.
macro_rules! answer {
    ($reply:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return $reply.error(error),
        }
    };
}

fn text(name: &OsStr) -> Result<&str, Errno> {
    name.to_str().ok_or(Errno::EINVAL)
}

fn below(model: &Model, parent: INodeNo, name: &OsStr) -> String {
    format!("{}/{}", model.path(parent.0), name.to_string_lossy())
}

fn attributes(model: &Model, number: u64) -> Result<FileAttr, Errno> {
    let inode = model.inode(number)?;
    let (kind, size) = match &inode.body {
        Body::File(file) => (FileType::RegularFile, file.live.len() as u64),
        Body::Directory(_) => (FileType::Directory, 0),
    };
    let blocks = size.next_multiple_of(BLOCK_BYTES) / 512;
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: inode.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    })
}

impl Adapter {
    /// A request about a file or directory that has a number.
    fn at<T>(
        &self,
        operation: Operation,
        number: INodeNo,
        act: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.0.run(operation, |model| model.path(number.0), act)
    }

    /// A request about a name in a directory.
    fn named<T>(
        &self,
        operation: Operation,
        parent: INodeNo,
        name: &OsStr,
        act: impl FnOnce(&mut State, &str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let name_text = text(name)?;
        self.0.run(operation, |model| below(model, parent, name), |state| act(state, name_text))
    }

    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        body: Body,
    ) -> Result<FileAttr, Errno> {
        self.named(Operation::Create, parent, name, |state, name| {
            state.has_room_for(0)?;
            let number = state.model.create(parent.0, name, (mode & 0o7777) as u16, body)?;
            attributes(&state.model, number)
        })
    }

    fn sync_one(&self, operation: Operation, number: INodeNo) -> Result<(), Errno> {
        let failed = self.0.lock().seen.failed;
        let result = self.at(operation, number, |state| {
            let lies = state.lies;
            let lie = if operation == Operation::Sync { lies.files } else { lies.directories };
            state.sync(number.0, lie)
        });
        let mut state = self.0.lock();
        if result.is_err() && state.seen.failed > failed {
            state.fail_sync(number.0);
        }
        result
    }

    fn grow(state: &mut State, number: u64, size: u64) -> Result<(), Errno> {
        let present = attributes(&state.model, number)?.size;
        if size > present {
            let more = size.next_multiple_of(BLOCK_BYTES) - present.next_multiple_of(BLOCK_BYTES);
            state.has_room_for(more)?;
        }
        Ok(())
    }
}

impl Filesystem for Adapter {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.named(Operation::Look, parent, name, |state, name| {
            let number = state.model.lookup(parent.0, name)?;
            attributes(&state.model, number)
        });
        let found = answer!(reply, found);
        reply.entry(&TTL, &found, Generation(0));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.at(Operation::Look, ino, |state| attributes(&state.model, ino.0));
        let found = answer!(reply, found);
        reply.attr(&TTL, &found);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.at(Operation::Resize, ino, |state| {
            if let Some(mode) = mode {
                state.model.set_mode(ino.0, (mode & 0o7777) as u16)?;
            }
            if let Some(size) = size {
                Adapter::grow(state, ino.0, size)?;
                state.model.resize(ino.0, size)?;
            }
            attributes(&state.model, ino.0)
        });
        let changed = answer!(reply, changed);
        reply.attr(&TTL, &changed);
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(parent, name, mode, Body::Directory(Directory::default()));
        let made = answer!(reply, made);
        reply.entry(&TTL, &made, Generation(0));
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = answer!(reply, self.make(parent, name, mode, Body::File(File::default())));
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        reply.created(&TTL, &made, Generation(0), FileHandle(0), flags);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |state: &mut State, name: &str| state.model.remove(parent.0, name);
        answer!(reply, self.named(Operation::Remove, parent, name, remove));
        reply.ok();
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(req, parent, name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if parent != newparent || !flags.is_empty() {
            return reply.error(Errno::EXDEV);
        }
        let renamed = text(newname).and_then(|to| {
            // Tests name the place where the file ends up.
            let act = |state: &mut State| state.model.rename(parent.0, text(name)?, to);
            self.0.run(Operation::Rename, |model| below(model, parent, newname), act)
        });
        answer!(reply, renamed);
        reply.ok();
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened =
            self.at(Operation::Look, ino, |state| state.refuse_direct(flags.0, Direct::NotOpened));
        answer!(reply, opened);
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.at(Operation::Read, ino, |state| {
            state.refuse_direct(flags.0, Direct::NotUsed)?;
            state.model.read(ino.0, offset, size).map(<[u8]>::to_vec)
        });
        let read = answer!(reply, read);
        reply.data(&read);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.at(Operation::Write, ino, |state| {
            state.refuse_direct(flags.0, Direct::NotUsed)?;
            state.seen.writes += 1;
            let dsync = rustix::fs::OFlags::DSYNC.bits() as i32;
            state.seen.durable_writes += u64::from(flags.0 & dsync != 0);
            Adapter::grow(state, ino.0, offset + data.len() as u64)?;
            state.model.write(ino.0, offset, data)
        });
        answer!(reply, written);
        reply.written(data.len() as u32);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.sync_one(Operation::Sync, ino));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.sync_one(Operation::SyncDirectory, ino));
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.at(Operation::Look, ino, |state| {
            let mut entries = state.model.entries(ino.0)?;
            // By number: a position stays right while others come and go.
            entries.sort_unstable();
            let with_kind = entries.into_iter().map(|(number, name)| {
                let kind = attributes(&state.model, number)?.kind;
                Ok((number, name, kind))
            });
            with_kind.collect::<Result<Vec<_>, Errno>>()
        });
        for (number, name, kind) in answer!(reply, listed) {
            if number > offset && reply.add(INodeNo(number), number, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let told = self.at(Operation::Look, ino, |state| {
            let free = state.capacity.saturating_sub(state.model.used_bytes());
            Ok((state.capacity / BLOCK_BYTES, free / BLOCK_BYTES))
        });
        let (blocks, free) = answer!(reply, told);
        let size = BLOCK_BYTES as u32;
        reply.statfs(blocks, free, free, 0, 0, size, NAME_BYTES_MAX, size);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let allocated = self.at(Operation::Resize, ino, |state| {
            let end = offset + length;
            Adapter::grow(state, ino.0, end)?;
            if end > attributes(&state.model, ino.0)?.size {
                state.model.resize(ino.0, end)?;
            }
            Ok(())
        });
        answer!(reply, allocated);
        reply.ok();
    }
}
