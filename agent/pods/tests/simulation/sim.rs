//! The world around the agent: one queue of events on one clock, one set of dice, one trace.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::api::ApiState;
use crate::disk::DiskState;
use crate::laws::Laws;
use crate::runtime::RuntimeState;

/// When all simulations begin: 2026-01-01T00:00:00Z.
const BEGINNING: i64 = 1_767_225_600;

/// The dice of one seed.
pub struct Dice(StdRng);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    pub fn share(&mut self) -> f64 {
        self.0.random()
    }

    /// Whether something of that probability happens.
    pub fn hits(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// A number of `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.random_range(0..from.len())]
    }

    /// How long something takes in milliseconds: usually little.
    pub fn delay(&mut self) -> u64 {
        match self.between(0, 19) {
            0..8 => 0,
            8..16 => self.between(1, 20),
            16..19 => self.between(1, 400),
            _ => self.between(100, 4_000),
        }
    }
}

/// Something that happens to the world.
pub type Event = Box<dyn FnOnce(&mut State) + Send>;

/// How a call of the agent fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done and answered.
    Good,
    /// It is refused.
    Refused,
    /// It is done, but the caller hears of an error.
    AnswerLost,
    /// It is never done; the caller waits for its deadline.
    Hangs,
    /// It is done after the caller has given up.
    Late,
}

/// Whose work a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That of another program.
    Outside,
    /// The same; one that comes late does not overtake the next, since there is none.
    Write,
    /// The same, and it comes again and again.
    Probe,
    /// The agent's own: it ends with the task that does it.
    Own,
}

/// What a caller hears when a call does not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refused,
    Cut,
    Deadline,
}

/// Everything outside the agent.
pub struct State {
    pub dice: Dice,
    start: Instant,
    last: Timestamp,
    serial: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub trace: Vec<String>,
    /// Which life of the agent this is.
    pub era: u32,
    /// How often a call goes wrong.
    pub rate: f64,
    /// Calls that are not answered yet, and those that are still to be carried out.
    pub under_way: u64,
    /// What happens now was given up by the agent.
    pub late: bool,
    /// Containers and probes fail by themselves.
    pub wild: bool,
    pub runtime: RuntimeState,
    pub api: ApiState,
    pub disk: DiskState,
    pub laws: Laws,
}

/// The world, shared with the agent's ports.
pub struct Sim {
    state: Mutex<State>,
}

impl Sim {
    pub fn new(seed: u64) -> Arc<Sim> {
        let state = State {
            dice: Dice::new(seed),
            start: Instant::now(),
            last: Timestamp::from_second(BEGINNING).unwrap(),
            serial: 0,
            queue: BTreeMap::new(),
            trace: Vec::new(),
            era: 0,
            rate: 0.0,
            wild: false,
            late: false,
            under_way: 0,
            runtime: RuntimeState::default(),
            api: ApiState::default(),
            disk: DiskState::default(),
            laws: Laws::default(),
        };
        Arc::new(Sim { state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A call of the agent: `effect` is what it does, `error` what the caller hears where it goes wrong. `deadline` is in
    /// milliseconds.
    pub async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        what: String,
        deadline: u64,
        error: fn(Fault) -> T,
        effect: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> T {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state();
            let fate = state.fate_of(kind);
            let (there, back, era) = (state.dice.delay(), state.dice.delay(), state.era);
            state.note(&format!("call {what}: {fate:?}"));
            let reply = state.reply(kind, sender);
            let done = move |state: &mut State, given_up: bool| {
                state.note(&format!("done {what}"));
                // What a dead agent had asked for comes as unforeseen as what was given up.
                let late = std::mem::replace(&mut state.late, given_up || era != state.era);
                let value = effect(state);
                state.late = late;
                value
            };
            match fate {
                Fate::Good => state.after(there, move |state| {
                    let given_up = reply.sender.is_closed();
                    if kind == Kind::Own && (given_up || era != state.era) {
                        return reply.drop(state);
                    }
                    let value = done(state, given_up);
                    reply.give(state, back, value);
                }),
                Fate::Refused => reply.give(&mut state, there, error(Fault::Refused)),
                Fate::AnswerLost => {
                    let slow = state.dice.hits(0.3);
                    let there = if kind == Kind::Own { 0 } else { there };
                    state.after(there, move |state| drop(done(state, false)));
                    let (delay, fault) = if slow { (deadline, Fault::Deadline) } else { (there + back, Fault::Cut) };
                    reply.give(&mut state, delay, error(fault));
                }
                Fate::Hangs => reply.give(&mut state, deadline, error(Fault::Deadline)),
                Fate::Late => {
                    reply.give(&mut state, deadline, error(Fault::Deadline));
                    state.under_way += 1;
                    state.after(deadline + there, move |state| {
                        state.under_way -= 1;
                        drop(done(state, true));
                    });
                }
            }
        }
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The way back to the caller of a call.
struct Reply<T> {
    kind: Kind,
    sender: oneshot::Sender<T>,
}

impl<T: Send + 'static> Reply<T> {
    fn give(self, state: &mut State, delay: u64, value: T) {
        state.after(delay, move |state| {
            state.under_way -= u64::from(self.kind != Kind::Probe);
            drop(self.sender.send(value));
        });
    }

    fn drop(self, state: &mut State) {
        state.under_way -= u64::from(self.kind != Kind::Probe);
    }
}

impl State {
    /// Milliseconds since the beginning.
    pub fn elapsed(&self) -> u64 {
        Instant::now().duration_since(self.start).as_millis() as u64
    }

    /// The time of day; no two readings are the same.
    pub fn now(&mut self) -> Timestamp {
        let begin = Timestamp::from_second(BEGINNING).unwrap();
        let time = begin + SignedDuration::from_millis(self.elapsed() as i64);
        self.last = time.max(self.last + SignedDuration::from_nanos(1));
        self.last
    }

    pub fn note(&mut self, text: &str) {
        let line = format!("{:>8} {text}", self.elapsed());
        self.trace.push(line);
    }

    /// Something happens in so many milliseconds.
    pub fn after(&mut self, delay: u64, event: impl FnOnce(&mut State) + Send + 'static) {
        let at = self.elapsed() + delay;
        self.serial += 1;
        self.queue.insert((at, self.serial), Box::new(event));
    }

    /// Something is made for a pod.
    pub fn makes(&mut self, uid: &str) {
        if self.late {
            self.laws.haunt(uid);
        }
    }

    fn reply<T>(&mut self, kind: Kind, sender: oneshot::Sender<T>) -> Reply<T> {
        self.under_way += u64::from(kind != Kind::Probe);
        Reply { kind, sender }
    }

    fn fate_of(&mut self, kind: Kind) -> Fate {
        match (self.fate(), kind) {
            (Fate::Late, Kind::Write) => Fate::AnswerLost,
            (Fate::Late, Kind::Own) => Fate::Hangs,
            (fate, _) => fate,
        }
    }

    fn fate(&mut self) -> Fate {
        let rate = self.rate;
        if rate == 0.0 || !self.dice.hits(rate) {
            return Fate::Good;
        }
        self.dice.pick(&[
            Fate::Refused,
            Fate::Refused,
            Fate::Refused,
            Fate::AnswerLost,
            Fate::AnswerLost,
            Fate::AnswerLost,
            Fate::Hangs,
            Fate::Late,
        ])
    }

    /// When the simulation began.
    pub fn begin(&self) -> Instant {
        self.start
    }

    /// A task of the agent took a step.
    pub fn took_step(&mut self, number: u64, name: &str) {
        self.note(&format!("  step of {name} {number}"));
    }

    /// When the next event is due.
    pub fn next_event(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(at, _)| self.start + Duration::from_millis(*at))
    }

    /// Lets the next event happen, if it is due.
    pub fn step(&mut self) -> bool {
        let now = self.elapsed();
        match self.queue.first_entry().filter(|entry| entry.key().0 <= now) {
            Some(entry) => {
                entry.remove()(self);
                true
            }
            None => false,
        }
    }
}
