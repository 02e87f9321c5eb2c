//! The OS thread that owns a rank.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Command, Engine, Facts, Model, Outcome, PrefixChange, Settings, Tier, TierFacts};

/// Time since the process started.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Told after every step and when the rank falls idle; runs on the engine's thread, so it must not
/// wait.
pub type Observer = Box<dyn FnMut(&Observed) + Send>;

/// One step as seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `None`: the rank just fell idle.
    pub step: Option<(Facts, Duration)>,
    pub running: usize,
    pub waiting: usize,
    pub free_pages: u32,
    /// All pages of the scarcest class.
    pub pages: u32,
    /// What the prefix cache gained and lost, if that was asked for.
    pub prefixes: Vec<PrefixChange>,
    pub tier: TierFacts,
}

/// The way in: one bounded queue of commands. Full means that the engine is far behind: a request is
/// refused. Hints (draft frames, commits, windows) are dropped when three quarters are full; they heal
/// by themselves.
#[derive(Clone, Debug)]
pub struct Inbox {
    commands: SyncSender<Command>,
    /// Commands that wait, nearly: read only to keep room.
    waiting: Arc<AtomicUsize>,
    /// Hints are dropped beyond this, so that a chatty drafter never takes the room of requests.
    room_for_hints: usize,
}

/// The command that did not fit, or that came after the engine ended.
#[derive(Debug, thiserror::Error)]
#[error("the engine's inbox is full or closed")]
pub struct InboxFull(pub Box<Command>);

impl Inbox {
    pub fn send(&self, command: Command) -> Result<(), InboxFull> {
        if command.is_hint() && self.waiting.load(Ordering::Relaxed) >= self.room_for_hints {
            return Err(InboxFull(Box::new(command)));
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.commands.try_send(command).map_err(|e| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match e {
                TrySendError::Full(command) | TrySendError::Disconnected(command) => {
                    InboxFull(Box::new(command))
                }
            }
        })
    }
}

/// A running engine. It ends when every [`Inbox`] is dropped and its sequences are done.
#[derive(Debug)]
pub struct EngineThread {
    thread: JoinHandle<()>,
}

impl EngineThread {
    /// Starts a rank: `make` builds the model on the thread that will own it. Returns when the model
    /// is there (or failed to be).
    pub fn start<M: Model, E: Send + 'static>(
        make: impl FnOnce() -> Result<M, E> + Send + 'static,
        settings: Settings,
        tier: Option<Box<dyn Tier>>,
        capacity: usize,
        clock: Clock,
        mut observer: Observer,
    ) -> Result<(Self, Inbox, crate::ModelSpec), E> {
        let (commands, inbox) = sync_channel(capacity);
        let waiting = Arc::new(AtomicUsize::new(0));
        let inbox = Commands { commands: inbox, waiting: waiting.clone(), capacity };
        let (ready, made) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || match make() {
                Ok(model) => {
                    let mut engine = Engine::new(model, settings);
                    if let Some(tier) = tier {
                        engine = engine.with_tier(tier);
                    }
                    // What the model cannot do here it cannot do for a request, which is told so.
                    let _ = engine.calibrate(&clock);
                    // Nobody waits any more: the process gave up on this start.
                    if ready.send(Ok(engine.spec().clone())).is_ok() {
                        run(&mut engine, &inbox, &clock, &mut observer);
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .unwrap_or_else(|e| panic!("the operating system gives no thread: {e}"));
        match made.recv() {
            Ok(Ok(spec)) => {
                let inbox = Inbox { commands, waiting, room_for_hints: capacity - capacity / 4 };
                Ok((Self { thread }, inbox, spec))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the engine thread answers before it ends"),
            },
        }
    }

    /// Waits for the end; `Err` when the thread panicked.
    pub fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }
}

fn run<M: Model>(engine: &mut Engine<M>, inbox: &Commands, clock: &Clock, observer: &mut Observer) {
    let mut open = true;
    loop {
        // At most one inbox full between two steps: whoever fills it all the time does not stop them.
        for _ in 0..inbox.capacity {
            match inbox.try_recv() {
                Ok(command) => engine.command(clock(), command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        if !open && engine.is_empty() {
            return;
        }
        let started = clock();
        let outcome = engine.step(started);
        let (prefixes, tier) = (engine.prefix_changes(), engine.tier_facts());
        let seen = |step| Observed {
            step,
            prefixes,
            tier,
            running: engine.scheduler().running(),
            waiting: engine.scheduler().waiting(),
            free_pages: engine.scheduler().free_pages(),
            pages: engine.scheduler().pages().total,
        };
        match outcome {
            Outcome::Worked(facts) => {
                let took = clock().saturating_sub(started);
                observer(&seen(Some((facts, took))));
                if engine.lost().is_some() {
                    return;
                }
                engine.took(&facts, took);
            }
            Outcome::Idle { until } => {
                observer(&seen(None));
                // Readers free their outlets without a command; look again soon while lanes are held.
                let patience = match until {
                    Some(until) => until.saturating_sub(clock()).min(HELD_POLL),
                    None if engine.is_empty() => FOREVER,
                    None => HELD_POLL,
                };
                match inbox.recv_timeout(patience) {
                    Ok(command) => engine.command(clock(), command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        open = false;
                        if !engine.is_empty() {
                            std::thread::park_timeout(patience.min(HELD_POLL));
                        }
                    }
                }
            }
        }
    }
}

/// The engine's end of the inbox.
struct Commands {
    commands: Receiver<Command>,
    waiting: Arc<AtomicUsize>,
    capacity: usize,
}

impl Commands {
    fn try_recv(&self) -> Result<Command, TryRecvError> {
        self.commands.try_recv().inspect(|_| self.taken())
    }

    fn recv_timeout(&self, patience: Duration) -> Result<Command, RecvTimeoutError> {
        self.commands.recv_timeout(patience).inspect(|_| self.taken())
    }

    fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often an outlet without room is looked at again.
const HELD_POLL: Duration = Duration::from_millis(5);
/// An empty rank sleeps until a command comes; a bound, so that no wait is endless.
const FOREVER: Duration = Duration::from_secs(3600);
