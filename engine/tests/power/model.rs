//! What a disk holds: what programs see of each file and directory, what power loss would leave,
//! and the changes in between that nobody has synced.
//!
//! What may happen to those changes, and why an engine must survive it:
//! - Each sector of 512 bytes of an unsynced write may be there or not, in any combination: the
//!   system writes pages back when it likes, the disk reorders. Now and then a sector itself is
//!   torn, because not every disk promises whole sectors.
//! - A file's length and its bytes get there apart from each other: a hole of zeroes is possible.
//! - A directory's changes (create, rename, remove) are kept in any combination too, or up to some
//!   point, as in a journal. A rename is atomic. Only a sync of the directory makes them durable:
//!   a sync of the file does not (POSIX says no more than that).
//! - A sync that failed has lost its writes for good, though readers still see them and the next
//!   sync says that all is well: this is what Linux does with pages whose write-back failed.

use std::collections::BTreeMap;

use fuser::Errno;

use crate::support::Random;

/// The number of the root directory.
pub const ROOT: u64 = 1;
const SECTOR_BYTES: u64 = 512;
const BLOCK_BYTES: u64 = 4096;
/// One in so many surviving sectors is torn.
const TORN_EVERY: u64 = 32;
/// Far more than a test writes; a file beyond it is a mistake.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A whole file system.
#[derive(Clone)]
pub struct Model {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
}

/// A file or a directory.
#[derive(Clone)]
pub struct Inode {
    parent: u64,
    name: String,
    pub mode: u16,
    pub body: Body,
}

#[derive(Clone)]
pub enum Body {
    File(File),
    Directory(Directory),
}

#[derive(Clone, Default)]
pub struct File {
    pub live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Size(u64),
}

#[derive(Clone, Default)]
pub struct Directory {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    unsynced: Vec<Move>,
}

#[derive(Clone)]
enum Move {
    Put(String, u64),
    Remove(String),
    Rename { from: String, to: String, number: u64 },
}

/// What power loss did to one disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    pub sectors_kept: u64,
    pub sectors_lost: u64,
    pub sectors_torn: u64,
    pub entries_kept: u64,
    pub entries_lost: u64,
}

impl Losses {
    pub fn add(&mut self, more: Losses) {
        self.sectors_kept += more.sectors_kept;
        self.sectors_lost += more.sectors_lost;
        self.sectors_torn += more.sectors_torn;
        self.entries_kept += more.entries_kept;
        self.entries_lost += more.entries_lost;
    }
}

impl Model {
    /// A directory without entries.
    pub fn new() -> Model {
        let body = Body::Directory(Directory::default());
        let root = Inode { parent: ROOT, name: String::new(), mode: 0o700, body };
        Model { inodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1 }
    }

    pub fn inode(&self, number: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&number).ok_or(Errno::ENOENT)
    }

    /// From the root, without a slash in front.
    pub fn path(&self, number: u64) -> String {
        let mut names = Vec::new();
        let mut at = number;
        while let Some(inode) = self.inodes.get(&at).filter(|_| at != ROOT) {
            names.push(inode.name.as_str());
            at = inode.parent;
        }
        names.reverse();
        names.join("/")
    }

    pub fn lookup(&self, directory: u64, name: &str) -> Result<u64, Errno> {
        let directory = self.directory(directory)?;
        directory.live.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Numbers and names.
    pub fn entries(&self, directory: u64) -> Result<Vec<(u64, String)>, Errno> {
        let live = &self.directory(directory)?.live;
        Ok(live.iter().map(|(name, number)| (*number, name.clone())).collect())
    }

    /// A new file or directory.
    pub fn create(&mut self, parent: u64, name: &str, mode: u16, body: Body) -> Result<u64, Errno> {
        let number = self.next;
        let directory = self.directory_mut(parent)?;
        if directory.live.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        directory.change(Move::Put(name.to_owned(), number));
        self.next += 1;
        self.inodes.insert(number, Inode { parent, name: name.to_owned(), mode, body });
        Ok(number)
    }

    /// Removes a file, or an empty directory. Its bytes stay until power loss decides.
    pub fn remove(&mut self, parent: u64, name: &str) -> Result<(), Errno> {
        let number = self.lookup(parent, name)?;
        if let Body::Directory(directory) = &self.inode(number)?.body
            && !directory.live.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.directory_mut(parent)?.change(Move::Remove(name.to_owned()));
        Ok(())
    }

    /// Renames within one directory, replacing what is there.
    pub fn rename(&mut self, parent: u64, from: &str, to: &str) -> Result<(), Errno> {
        let number = self.lookup(parent, from)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        let inode = self.inodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        inode.name.clone_from(&to);
        self.directory_mut(parent)?.change(Move::Rename { from, to, number });
        Ok(())
    }

    pub fn read(&self, number: u64, offset: u64, size: u32) -> Result<&[u8], Errno> {
        let live = &self.file(number)?.live;
        let start = live.len().min(offset as usize);
        let end = live.len().min(start + size as usize);
        Ok(&live[start..end])
    }

    pub fn write(&mut self, number: u64, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        if offset + bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        self.file_mut(number)?.change(Change::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    pub fn resize(&mut self, number: u64, size: u64) -> Result<(), Errno> {
        if size > FILE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        self.file_mut(number)?.change(Change::Size(size));
        Ok(())
    }

    pub fn set_mode(&mut self, number: u64, mode: u16) -> Result<(), Errno> {
        self.inodes.get_mut(&number).ok_or(Errno::ENOENT)?.mode = mode;
        Ok(())
    }

    /// A sync of this file or directory: what was changed is durable.
    pub fn sync(&mut self, number: u64) -> Result<(), Errno> {
        match &mut self.inodes.get_mut(&number).ok_or(Errno::ENOENT)?.body {
            Body::File(file) => {
                for change in file.unsynced.drain(..) {
                    change.apply(&mut file.durable);
                }
            }
            Body::Directory(directory) => {
                for change in directory.unsynced.drain(..) {
                    change.apply(&mut directory.durable);
                }
            }
        }
        Ok(())
    }

    /// A sync that fails: what was changed never gets to the disk, and nobody tries again.
    pub fn lose_unsynced(&mut self, number: u64) {
        match self.inodes.get_mut(&number).map(|inode| &mut inode.body) {
            Some(Body::File(file)) => file.unsynced.clear(),
            Some(Body::Directory(directory)) => directory.unsynced.clear(),
            None => {}
        }
    }

    /// Whether a file or directory has changes that power loss may take.
    pub fn is_synced(&self, number: u64) -> bool {
        match &self.inodes[&number].body {
            Body::File(file) => file.unsynced.is_empty(),
            Body::Directory(directory) => directory.unsynced.is_empty(),
        }
    }

    /// Bytes in blocks of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        let named = |number: &u64, inode: &Inode| {
            self.lookup(inode.parent, &inode.name).is_ok_and(|found| found == *number)
        };
        let files = self.inodes.iter().filter_map(|(number, inode)| match &inode.body {
            Body::File(file) if named(number, inode) => Some(file.live.len() as u64),
            _ => None,
        });
        files.map(|bytes| bytes.next_multiple_of(BLOCK_BYTES)).sum()
    }

    /// What is found after power loss; all of it is durable then.
    pub fn after_power_loss(&self, random: &mut Random) -> (Model, Losses) {
        let mut after = Model { inodes: BTreeMap::new(), next: self.next };
        let mut losses = Losses::default();
        let mut found = vec![(ROOT, ROOT, String::new())];
        while let Some((number, parent, name)) = found.pop() {
            let inode = &self.inodes[&number];
            let body = match &inode.body {
                Body::File(file) => {
                    let live = file.survivors(random, &mut losses);
                    Body::File(File { durable: live.clone(), live, unsynced: Vec::new() })
                }
                Body::Directory(directory) => {
                    let live = directory.survivors(random, &mut losses);
                    let below = live.iter().map(|(name, below)| (*below, number, name.clone()));
                    found.extend(below);
                    let durable = live.clone();
                    Body::Directory(Directory { live, durable, unsynced: Vec::new() })
                }
            };
            after.inodes.insert(number, Inode { parent, name, mode: inode.mode, body });
        }
        (after, losses)
    }

    fn file(&self, number: u64) -> Result<&File, Errno> {
        match &self.inode(number)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn file_mut(&mut self, number: u64) -> Result<&mut File, Errno> {
        match &mut self.inodes.get_mut(&number).ok_or(Errno::ENOENT)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn directory(&self, number: u64) -> Result<&Directory, Errno> {
        match &self.inode(number)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, number: u64) -> Result<&mut Directory, Errno> {
        match &mut self.inodes.get_mut(&number).ok_or(Errno::ENOENT)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }
}

/// How much of the unsynced changes of one file or directory survives.
enum Fate {
    Everything,
    /// So many changes, and a part of the next.
    Prefix(u64),
    /// Each piece with so many chances in eight.
    Some(u64),
}

impl Fate {
    fn draw(random: &mut Random, changes: usize) -> Fate {
        match random.below(8) {
            0 => Fate::Everything,
            1 => Fate::Prefix(0),
            2 | 3 => Fate::Prefix(random.below(changes as u64 + 1)),
            _ => Fate::Some(1 + random.below(7)),
        }
    }

    /// Whether a piece of change number `at` survives.
    fn keeps(&self, at: usize, random: &mut Random) -> bool {
        match *self {
            Fate::Everything => true,
            Fate::Prefix(count) if at as u64 == count => random.below(2) == 0,
            Fate::Prefix(count) => (at as u64) < count,
            Fate::Some(chances) => random.below(8) < chances,
        }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.unsynced.push(change);
    }

    fn survivors(&self, random: &mut Random, losses: &mut Losses) -> Vec<u8> {
        let fate = Fate::draw(random, self.unsynced.len());
        let mut bytes = self.durable.clone();
        for (at, change) in self.unsynced.iter().enumerate() {
            let Change::Write { offset, bytes: written } = change else {
                if fate.keeps(at, random) {
                    change.apply(&mut bytes);
                }
                continue;
            };
            for (offset, sector) in sectors(*offset, written) {
                if !fate.keeps(at, random) {
                    losses.sectors_lost += 1;
                    continue;
                }
                let torn = matches!(fate, Fate::Some(_)) && random.below(TORN_EVERY) == 0;
                let kept = if torn { random.below(sector.len() as u64) } else { u64::MAX };
                losses.sectors_torn += u64::from(torn);
                losses.sectors_kept += u64::from(!torn);
                put(&mut bytes, offset, &sector[..sector.len().min(kept as usize)]);
            }
            // The length may be the new one although the bytes are the old ones.
            let end = (offset + written.len() as u64) as usize;
            if bytes.len() < end && fate.keeps(at, random) {
                bytes.resize(end, 0);
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => put(to, *offset, bytes),
            Change::Size(size) => to.resize(*size as usize, 0),
        }
    }
}

/// The parts of a write that lie in one sector each, with their offsets.
fn sectors(offset: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut parts = Vec::new();
    let (mut at, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let room = SECTOR_BYTES - at % SECTOR_BYTES;
        let (part, later) = rest.split_at(rest.len().min(room as usize));
        parts.push((at, part));
        at += part.len() as u64;
        rest = later;
    }
    parts
}

fn put(to: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if bytes.is_empty() {
        // Nothing of a torn write arrived: the file is as long as it was.
        return;
    }
    if to.len() < end {
        to.resize(end, 0);
    }
    to[start..end].copy_from_slice(bytes);
}

impl Directory {
    fn change(&mut self, change: Move) {
        change.apply(&mut self.live);
        self.unsynced.push(change);
    }

    fn survivors(&self, random: &mut Random, losses: &mut Losses) -> BTreeMap<String, u64> {
        let fate = Fate::draw(random, self.unsynced.len());
        let mut entries = self.durable.clone();
        for (at, change) in self.unsynced.iter().enumerate() {
            if fate.keeps(at, random) {
                losses.entries_kept += 1;
                change.apply(&mut entries);
            } else {
                losses.entries_lost += 1;
            }
        }
        entries
    }
}

impl Move {
    fn apply(&self, to: &mut BTreeMap<String, u64>) {
        match self {
            Move::Put(name, number) => {
                to.insert(name.clone(), *number);
            }
            Move::Remove(name) => {
                to.remove(name);
            }
            Move::Rename { from, to: name, number } => {
                // The source may be missing, or be another file by now: see `survivors`.
                if to.get(from) == Some(number) {
                    to.remove(from);
                }
                // Nothing ever has two names here.
                to.retain(|_, known| known != number);
                to.insert(name.clone(), *number);
            }
        }
    }
}
