//! The ring: one io_uring per node, and the runtime that turns it.
//!
//! Agents are tasks of tokio's current-thread runtime; tokio's driver does timers, signals and
//! wake-ups from other threads, and sleeps. What goes through the ring is queued while tasks run,
//! handed over with one system call when none of them can go on, and whoever waited for what has
//! ended meanwhile runs at once. Only when that leaves nothing to do does the thread sleep; an
//! eventfd that the ring raises is among what wakes it. While something is expected very soon it
//! can stay awake instead ([`Ring::stay_awake`]): waking up takes longer than many a write.
//!
//! Completions are collected when this thread asks for them (`DEFER_TASKRUN`, Linux 6.1): nothing
//! interrupts it in between. Older kernels do without.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;

/// A ring, used on the thread that made it.
pub(super) struct Ring {
    uring: RefCell<IoUring>,
    operations: RefCell<Slab<State>>,
    /// Empty between two turns: kept for its memory.
    woken: RefCell<Vec<Waker>>,
    /// Until when this thread does not sleep, and how long others may take the core meanwhile.
    awake: Cell<Option<(Instant, Duration)>>,
    /// Others have needed the core: until then they have it.
    given_up_until: Cell<Option<Instant>>,
}

/// An operation that the kernel has been, or will be, asked for.
enum State {
    Pending(Option<Waker>),
    /// The system's result: not negative, or an error's number, negated.
    Ended(i32),
    /// Nobody waits any more. What it uses stays until it ends.
    Abandoned(Box<dyn Any>),
}

/// What a cancellation is known by: no operation has this number.
const CANCEL: u64 = u64::MAX;
/// How long the thread sleeps as it used to, once others have needed its core.
const GIVEN_UP: Duration = Duration::from_millis(2);
/// `io_uring_enter`: completions that were put off are made now.
const GET_EVENTS: u32 = 1;

impl Ring {
    /// A ring that takes `entries` operations at once.
    pub(super) fn new(entries: u32) -> io::Result<Rc<Ring>> {
        let deferred = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries);
        let uring = match deferred {
            // What an older kernel says to flags that it does not know.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                IoUring::new(entries)?
            }
            made => made?,
        };
        Ok(Rc::new(Ring {
            uring: RefCell::new(uring),
            operations: RefCell::default(),
            woken: RefCell::default(),
            awake: Cell::new(None),
            given_up_until: Cell::new(None),
        }))
    }

    /// Queues an operation that uses `kept`. That is also who owns the descriptor that it names:
    /// closed before the operation is handed over, its number could be another file's by then.
    ///
    /// # Safety
    /// Whatever memory `entry` points to belongs to `kept`, does not move when `kept` does, and is
    /// not touched otherwise until the operation gives `kept` back.
    pub(super) unsafe fn start<T: Unpin + 'static>(
        self: &Rc<Ring>,
        entry: squeue::Entry,
        kept: T,
    ) -> Operation<T> {
        let at = self.operations.borrow_mut().insert(State::Pending(None));
        let entry = entry.user_data(at as u64);
        // SAFETY: the caller's promise; `Operation` keeps `kept` until the operation has ended.
        while unsafe { self.uring.borrow_mut().submission().push(&entry) }.is_err() {
            // Full: the kernel takes all that is queued.
            self.turn().expect("a ring that was set up takes operations");
        }
        Operation { ring: self.clone(), at, kept: Some(kept) }
    }

    /// The thread does not sleep for this long, where others take the core for less than
    /// `taken_max` at once.
    pub(super) fn stay_awake(&self, time: Duration, taken_max: Duration) {
        let now = Instant::now();
        let given_up = self.given_up_until.get().is_some_and(|until| now < until);
        self.awake.set((!given_up).then_some((now + time, taken_max)));
    }

    /// The thread sleeps when there is nothing to do.
    pub(super) fn may_sleep(&self) {
        self.awake.set(None);
    }

    /// Whether the thread is to look again instead of sleeping. Lets others have the core first;
    /// where somebody keeps it, it is needed more than this needs it.
    fn stays_awake(&self) -> bool {
        let Some((until, taken_max)) = self.awake.get() else { return false };
        let before = Instant::now();
        if before < until {
            std::thread::yield_now();
            let now = Instant::now();
            if now - before < taken_max {
                return true;
            }
            self.given_up_until.set(Some(now + GIVEN_UP));
        }
        self.awake.set(None);
        false
    }

    /// Hands over what is queued and wakes those whose operations have ended.
    fn turn(&self) -> io::Result<()> {
        let entered = {
            let mut uring = self.uring.borrow_mut();
            let submission = uring.submission();
            let (queued, work) = (submission.len(), submission.taskrun());
            let work = work || submission.cq_overflow();
            drop(submission);
            let queued = u32::try_from(queued).expect("not more than the ring has entries");
            let ask = queued > 0 || work;
            // SAFETY: entries are as `start` was promised; there is no argument.
            ask.then(|| unsafe { uring.submitter().enter::<()>(queued, 0, GET_EVENTS, None) })
        };
        self.collect();
        match entered {
            Some(Err(error)) if is_final(&error) => Err(error),
            // What was not taken stays queued for the next turn.
            _ => Ok(()),
        }
    }

    /// Hands over what is queued without waiting for this turn's end: it is worth a system call of
    /// its own where other tasks have much to do first.
    pub(super) fn hand_over(&self) {
        // What is not taken, and why, is seen at the end of the turn.
        let _ = self.uring.borrow_mut().submit();
    }

    fn has_queued(&self) -> bool {
        !self.uring.borrow_mut().submission().is_empty()
    }

    /// Takes what has ended off the completion queue.
    fn collect(&self) {
        let mut uring = self.uring.borrow_mut();
        let mut operations = self.operations.borrow_mut();
        let mut woken = self.woken.take();
        let mut dropped = Vec::new();
        for completion in uring.completion() {
            if completion.user_data() == CANCEL {
                continue;
            }
            let at = usize::try_from(completion.user_data()).expect("a number of ours");
            let ended = State::Ended(completion.result());
            match std::mem::replace(&mut operations[at], ended) {
                State::Pending(waker) => woken.extend(waker),
                State::Abandoned(kept) => {
                    operations.remove(at);
                    dropped.push(kept);
                }
                State::Ended(_) => unreachable!("an operation ends once"),
            }
        }
        // Whoever is woken, or owns what is dropped, may ask the ring for something.
        drop((uring, operations));
        drop(dropped);
        woken.drain(..).for_each(Waker::wake);
        self.woken.replace(woken);
    }

    /// Cancels what is under way and waits for its end: no memory is used by the kernel afterwards.
    fn close(&self) {
        let pending = |operations: &Slab<State>| {
            let pending = operations.iter().filter(|(_, state)| !matches!(state, State::Ended(_)));
            pending.map(|(at, _)| at as u64).collect::<Vec<u64>>()
        };
        let open = pending(&self.operations.borrow());
        for at in open {
            let cancel = opcode::AsyncCancel::new(at).build().user_data(CANCEL);
            // SAFETY: a cancellation uses no memory.
            while unsafe { self.uring.borrow_mut().submission().push(&cancel) }.is_err() {
                self.turn().expect("a ring that was set up takes operations");
            }
        }
        while !pending(&self.operations.borrow()).is_empty() {
            let waited = self.uring.borrow_mut().submit_and_wait(1);
            self.collect();
            if waited.is_err_and(|error| is_final(&error)) {
                // Nobody can tell when the kernel is done with it: its memory is never used again.
                std::mem::forget(self.operations.take());
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether asking again is of no use.
fn is_final(error: &io::Error) -> bool {
    !matches!(Errno::from_io_error(error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
}

/// An operation under way. Dropped before it has ended, what it uses is kept for the kernel.
pub(super) struct Operation<T: 'static> {
    ring: Rc<Ring>,
    at: usize,
    kept: Option<T>,
}

impl<T: Unpin + 'static> Future for Operation<T> {
    type Output = (io::Result<usize>, T);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut operations = this.ring.operations.borrow_mut();
        match &mut operations[this.at] {
            State::Ended(result) => {
                let result = *result;
                operations.remove(this.at);
                let result = usize::try_from(result)
                    .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
                Poll::Ready((result, this.kept.take().expect("an operation ends once")))
            }
            State::Pending(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            State::Abandoned(_) => unreachable!("only a dropped operation is abandoned"),
        }
    }
}

impl<T: 'static> Drop for Operation<T> {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        let mut operations = self.ring.operations.borrow_mut();
        if matches!(operations[self.at], State::Ended(_)) {
            operations.remove(self.at);
        } else {
            operations[self.at] = State::Abandoned(Box::new(kept));
        }
    }
}

/// Runs `main`, and the local tasks it spawns, on a ring of its own.
///
/// # Errors
/// When no ring can be set up, or the system takes nothing more.
pub(super) fn block_on<F: Future>(
    entries: u32,
    main: impl FnOnce(Rc<Ring>) -> F,
) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ring = Ring::new(entries)?;
    let tasks = LocalSet::new();
    let output = runtime.block_on(drive(&ring, tasks.run_until(main(ring.clone()))));
    // All tasks, and with them what they have under way. Somebody may still hold the ring.
    drop(tasks);
    ring.close();
    output
}

async fn drive<F: Future>(ring: &Ring, main: F) -> io::Result<F::Output> {
    let alarm = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    ring.uring.borrow().submitter().register_eventfd(alarm.as_raw_fd())?;
    // SAFETY: whoever watches the descriptor owns it.
    let alarm = unsafe { AsyncFd::register_with_interest(alarm, Interest::READABLE) }?;
    let mut main = pin!(main);
    poll_fn(|context| {
        // Cleared before the ring is looked at: what ends later raises it anew, though nobody has
        // read it (tokio watches for edges).
        while let Poll::Ready(mut raised) = alarm.poll_read_ready(context)? {
            raised.clear_ready();
        }
        ring.turn()?;
        if let Poll::Ready(output) = main.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        ring.turn()?;
        if ring.has_queued() || ring.stays_awake() {
            context.waker().wake_by_ref();
        }
        // Whoever was woken has woken this as well: then tokio polls again, without sleeping.
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use io_uring::types;

    use super::*;

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn receive(ring: &Rc<Ring>, socket: &TcpStream, mut buffer: Vec<u8>) -> Operation<Vec<u8>> {
        let (at, room) = (buffer.as_mut_ptr(), u32::try_from(buffer.len()).unwrap());
        let entry = opcode::Recv::new(types::Fd(socket.as_raw_fd()), at, room).build();
        // SAFETY: the vector's memory is on the heap, and its own.
        unsafe { ring.start(entry, buffer) }
    }

    #[test]
    fn what_ends_while_the_thread_sleeps_wakes_it() {
        let (near, mut far) = sockets();
        let writer = std::thread::spawn(move || {
            for number in 0..50u8 {
                std::thread::sleep(Duration::from_millis(u64::from(number % 3)));
                far.write_all(&[number]).unwrap();
                far.read_exact(&mut [0]).unwrap();
            }
        });
        let answered = block_on(8, |ring| async move {
            for number in 0..50u8 {
                let (read, buffer) = receive(&ring, &near, vec![0; 16]).await;
                assert_eq!((read.unwrap(), buffer[0]), (1, number));
                (&near).write_all(&[number]).unwrap();
            }
            50
        });
        assert_eq!(answered.unwrap(), 50);
        writer.join().unwrap();
    }

    #[test]
    fn more_operations_than_entries_all_end() {
        let ended = block_on(4, |ring| async move {
            let start = |_| {
                // SAFETY: it uses no memory.
                unsafe { ring.start(opcode::Nop::new().build(), ()) }
            };
            let started: Vec<Operation<()>> = (0..100).map(start).collect();
            let mut ended = 0;
            for operation in started {
                assert_eq!(operation.await.0.unwrap(), 0);
                ended += 1;
            }
            ended
        });
        assert_eq!(ended.unwrap(), 100);
    }

    #[test]
    fn what_nobody_waits_for_keeps_its_memory_until_it_ends() {
        let (near, _far) = sockets();
        let memory = Rc::new(());
        let held = memory.clone();
        let pending = block_on(8, |ring| async move {
            let entry = opcode::PollAdd::new(types::Fd(near.as_raw_fd()), 1).build();
            // SAFETY: it uses no memory.
            let abandoned = unsafe { ring.start(entry, held) };
            tokio::task::yield_now().await;
            drop(abandoned);
            (Rc::strong_count(&memory), memory, near)
        });
        let (while_pending, memory, _near) = pending.unwrap();
        assert_eq!(while_pending, 2);
        assert_eq!(Rc::strong_count(&memory), 1, "closing the ring cancels and waits");
    }

    #[test]
    fn more_than_the_ring_takes_at_once_is_cancelled_in_the_end() {
        let (near, _far) = sockets();
        let near = Rc::new(near);
        let kept = near.clone();
        block_on(4, |ring| async move {
            let start = |_| {
                let entry = opcode::PollAdd::new(types::Fd(kept.as_raw_fd()), 1).build();
                // SAFETY: it uses no memory.
                unsafe { ring.start(entry, kept.clone()) }
            };
            let started: Vec<Operation<Rc<TcpStream>>> = (0..50).map(start).collect();
            tokio::task::yield_now().await;
            drop(started);
        })
        .unwrap();
        assert_eq!(Rc::strong_count(&near), 1);
    }

    #[test]
    fn errors_are_the_systems() {
        let failed = block_on(8, |ring| async move {
            let entry = opcode::Recv::new(types::Fd(-1), std::ptr::null_mut(), 0).build();
            // SAFETY: there is no such descriptor, and no room.
            unsafe { ring.start(entry, ()) }.await.0
        });
        let error = failed.unwrap().unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::BADF));
    }

    #[test]
    fn a_thread_that_stays_awake_sees_others_wake_it_and_goes_to_sleep_in_time() {
        let slept = block_on(8, |ring| async move {
            ring.stay_awake(Duration::from_millis(50), Duration::from_secs(9));
            let (said, heard) = tokio::sync::oneshot::channel();
            let other = std::thread::spawn(move || said.send(7).unwrap());
            assert_eq!(heard.await.unwrap(), 7);
            other.join().unwrap();
            tokio::time::sleep(Duration::from_millis(80)).await;
            ring.awake.get().is_none()
        });
        assert!(slept.unwrap());
    }
}
