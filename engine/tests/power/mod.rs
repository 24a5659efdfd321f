//! A disk whose power can be cut, as a real file system that a real node runs on.
//!
//! The file system is a FUSE daemon in the test's own process. It keeps what programs see and what
//! would survive apart ([`model`]), lets single requests fail, and stops answering at a chosen
//! request ([`state`]).

pub mod archive;
pub mod cluster;
mod faults;
mod fuse;
pub mod model;
mod proofs;
pub mod state;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, INodeNo, MountOption};

use crate::support::{Node, PATIENCE, Random};
use fuse::Adapter;
use model::{Losses, Model};
use state::{Lies, Shared, State, Trigger};

/// Requests that are answered at the same time: lanes, reader, maintenance and the ring's own.
const THREADS: usize = 4;

/// A mounted file system of its own; unmounted when dropped. Stop its nodes first.
pub struct PowerDisk {
    path: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

impl PowerDisk {
    /// None, with one line that says so, where mounting is not possible.
    pub fn mount(path: PathBuf) -> Option<PowerDisk> {
        let missing = if !Path::new("/dev/fuse").exists() {
            "there is no /dev/fuse"
        } else if !rustix::process::geteuid().is_root() {
            "mounting needs root"
        } else {
            std::fs::create_dir_all(&path).unwrap();
            let shared = Arc::new(Shared::new(Model::new(), Lies::default()));
            let mut disk = PowerDisk { path, shared, session: None };
            match disk.attach() {
                Ok(()) => return Some(disk),
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    "mounting is not permitted"
                }
                Err(error) => panic!("cannot mount {}: {error}", disk.path.display()),
            }
        };
        println!("SKIPPED: no file system of the test's own: {missing}");
        None
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk behind it, to look at and to spoil.
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock()
    }

    pub fn arm(&self, trigger: Trigger) {
        self.shared.arm(trigger);
    }

    /// Waits until the power has gone at the armed request; false after `patience`.
    pub fn wait_for_trigger(&self, patience: Duration) -> bool {
        self.shared.wait_for_trigger(patience)
    }

    /// The power goes: nothing is answered from now on.
    pub fn freeze(&self) {
        self.shared.freeze();
    }

    /// Kills the node of a disk that may be frozen.
    pub fn kill(&self, node: &mut Node) {
        self.freeze();
        if node.is_running() {
            // The signal first, the answers then: the node does nothing with them any more.
            node.signal(rustix::process::Signal::KILL);
        }
        self.shared.release();
        node.kill();
    }

    /// Kills the node, and presents what a power loss at this moment has left.
    pub fn lose_power(&mut self, node: &mut Node, random: &mut Random) -> Losses {
        self.kill(node);
        self.detach();
        let (model, losses) = {
            let state = self.state();
            state.model.after_power_loss(random)
        };
        let lies = self.state().lies;
        self.shared = Arc::new(Shared::new(model, lies));
        self.attach().unwrap();
        losses
    }

    /// Forgets the pages that the kernel holds of a file: it will read them again.
    pub fn forget_pages(&self, path: &str) {
        let number = {
            let state = self.state();
            path.split('/').fold(model::ROOT, |at, name| state.model.lookup(at, name).unwrap())
        };
        let notifier = self.session.as_ref().unwrap().notifier();
        notifier.inval_inode(INodeNo(number), 0, 0).unwrap();
    }

    fn attach(&mut self) -> std::io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("rowship-power".to_owned())];
        config.n_threads = Some(THREADS);
        let adapter = Adapter(self.shared.clone());
        self.session = Some(fuser::spawn_mount(adapter, &self.path, &config)?);
        Ok(())
    }

    /// Unmounts. The kernel lets go of a dead process's files a moment after the process is gone.
    fn detach(&mut self) {
        let Some(session) = self.session.take() else { return };
        let until = Instant::now() + PATIENCE;
        loop {
            let output = Command::new("umount").arg(&self.path).output().unwrap();
            if output.status.success() {
                break;
            }
            if Instant::now() > until {
                // All who still wait for it are told that it is gone.
                let _ = Command::new("umount").args(["-f", "-l"]).arg(&self.path).status();
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(std::thread::panicking(), "{}: {text}", self.path.display());
                // Its threads end with the last file that is open on it.
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // The kernel's word that it is gone may be an error: nothing depends on it.
        let _ = session.join();
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        self.shared.release();
        self.detach();
    }
}
