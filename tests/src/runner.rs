//! Runs the list of cases, each with every backend: one cluster per backend for all that can share, several at a time.
//!
//! It takes the arguments of Rust's own test harness that `cargo test` passes on (filters, `--skip`, `--exact`,
//! `--list`, `--test-threads`, `--nocapture`) and reports the same way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Instant;

use crate::case::Case;
use crate::cluster::{Backend, Cluster, Setup};

/// Cases that run at the same time. They wait more than they work.
const THREADS: usize = 6;

/// A case.
#[derive(Clone, Copy)]
pub enum Body {
    /// Runs in a namespace of the cluster that it shares with others.
    Shared(fn(&Case<'_>)),
    /// The same, for what needs the controllers of a real control plane: runs with that backend alone.
    Controlled(fn(&Case<'_>)),
    /// Makes a cluster of its own, because it breaks things.
    Own(fn(Backend)),
    /// Has nothing to do with the API.
    Alone(fn()),
}

/// A case and its name.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub body: Body,
}

/// Cases that share a cluster: `shared![module: case, case, …]`.
#[macro_export]
macro_rules! cases {
    ($($kind:ident $module:ident: [$($case:ident),* $(,)?])*) => {
        &[$($($crate::runner::Entry {
            name: concat!(stringify!($module), "::", stringify!($case)),
            body: $crate::runner::Body::$kind($module::$case),
        }),*),*]
    };
}

/// A case that is known to fail, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// With its backend, as `--list` shows it.
    pub name: String,
    /// Why it fails.
    pub why: String,
}

/// How the cases run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the shared clusters are told.
    pub setup: Setup,
    /// Cases at the same time.
    pub threads: usize,
    /// Cases that have to fail until somebody mends what they show.
    pub known: Vec<Known>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { setup: Setup::default(), threads: THREADS, known: Vec::new() }
    }
}

/// One run of a case.
struct Job {
    name: String,
    entry: Entry,
    backend: Backend,
}

impl Body {
    /// Whether it runs in a cluster that it shares with others on this backend.
    fn shares(&self, backend: Backend) -> bool {
        match self {
            Body::Shared(_) => true,
            Body::Controlled(_) => backend == Backend::Kubernetes,
            Body::Own(_) | Body::Alone(_) => false,
        }
    }
}

/// The clusters that cases share, each started by the first that needs it.
struct Clusters {
    setup: Setup,
    started: BTreeMap<Backend, OnceLock<Result<Cluster, String>>>,
    left: Mutex<BTreeMap<Backend, usize>>,
    done: Condvar,
}

/// What the arguments say.
struct Options {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    threads: Option<usize>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs what the arguments ask for.
#[must_use]
pub fn run(entries: &[Entry]) -> ExitCode {
    run_by(entries, &Plan::default())
}

/// The same by a plan.
#[must_use]
pub fn run_by(entries: &[Entry], plan: &Plan) -> ExitCode {
    let options = Options::read(std::env::args().skip(1));
    let mut jobs = list(entries);
    jobs.retain(|job| options.wants(&job.name));
    if options.list {
        jobs.iter().for_each(|job| println!("{}: test", job.name));
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    println!("\nrunning {} tests", jobs.len());
    std::panic::set_hook(Box::new(|info| {
        let text = format!("{info}");
        // Threads that a case starts have no report of their own.
        if std::thread::current().name() != Some("case") {
            eprintln!("{text}");
        }
        PANIC.with(|slot| *slot.borrow_mut() = Some(text));
    }));
    let failures = work(jobs, options.threads.unwrap_or(plan.threads), plan);
    for (name, text) in &failures {
        println!("\n---- {name} ----\n{text}");
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    let names: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
    println!("\ntest result: {verdict}. {} failed {names:?}; in {:.0} s", names.len(), began.elapsed().as_secs_f64());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Every case with every backend. Those that share come first: their clusters can end early.
fn list(entries: &[Entry]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for backend in Backend::ALL {
        for entry in entries.iter().filter(|entry| entry.body.shares(backend)) {
            jobs.push(Job { name: format!("{}::{}", backend.name(), entry.name), entry: *entry, backend });
        }
    }
    for entry in entries {
        match entry.body {
            Body::Shared(_) | Body::Controlled(_) => {}
            Body::Own(_) => jobs.extend(Backend::ALL.map(|backend| Job {
                name: format!("{}::{}", backend.name(), entry.name),
                entry: *entry,
                backend,
            })),
            Body::Alone(_) => jobs.push(Job { name: entry.name.into(), entry: *entry, backend: Backend::Embedded }),
        }
    }
    jobs
}

/// Runs the jobs on threads; what failed, with why.
fn work(jobs: Vec<Job>, threads: usize, plan: &Plan) -> Vec<(String, String)> {
    let mut left = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.entry.body.shares(job.backend)) {
        *left.entry(job.backend).or_insert(0) += 1;
    }
    let clusters = Arc::new(Clusters {
        setup: plan.setup,
        started: Backend::ALL.map(|backend| (backend, OnceLock::new())).into(),
        left: Mutex::new(left.clone()),
        done: Condvar::new(),
    });
    let queue = Arc::new(Mutex::new(std::collections::VecDeque::from(jobs)));
    let failures = Arc::new(Mutex::new(Vec::new()));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (queue, clusters, failures) = (queue.clone(), clusters.clone(), failures.clone());
            let known = plan.known.clone();
            let work = move || {
                loop {
                    let Some(job) = queue.lock().unwrap().pop_front() else { return };
                    let known = known.iter().find(|known| known.name == job.name);
                    report(&job.name, &failures, || judge(attempt(&job, &clusters), known));
                    clusters.finish(&job);
                }
            };
            std::thread::Builder::new().name("case".into()).spawn(work).expect("start a thread")
        })
        .collect();
    // Each shared cluster has to be as empty as it was, once its last case is over.
    let closers: Vec<_> = left
        .into_keys()
        .map(|backend| {
            let (clusters, failures) = (clusters.clone(), failures.clone());
            let close = move || {
                clusters.wait(backend);
                let name = format!("{}::nothing_is_left", backend.name());
                report(&name, &failures, || clusters.close(backend));
            };
            std::thread::Builder::new().name("case".into()).spawn(close).expect("start a thread")
        })
        .collect();
    for thread in workers.into_iter().chain(closers) {
        thread.join().expect("a thread of the runner");
    }
    drop(clusters);
    Arc::into_inner(failures).expect("all threads have ended").into_inner().unwrap()
}

/// Does something and prints whether it went well.
fn report(name: &str, failures: &Mutex<Vec<(String, String)>>, what: impl FnOnce() -> Result<(), String>) {
    let began = Instant::now();
    let result = what();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    println!("test {name} ... {verdict} ({:.1} s)", began.elapsed().as_secs_f64());
    if let Err(text) = result {
        failures.lock().unwrap().push((name.into(), text));
    }
}

/// A case that is known to fail has to: once it passes, its place in the list of those is wrong.
fn judge(result: Result<(), String>, known: Option<&Known>) -> Result<(), String> {
    match (result, known) {
        (Err(_), Some(_)) => Ok(()),
        (Ok(()), Some(known)) => Err(format!("it passes, but is listed as failing: {}", known.why)),
        (result, None) => result,
    }
}

/// Runs one case.
fn attempt(job: &Job, clusters: &Clusters) -> Result<(), String> {
    match job.entry.body {
        Body::Alone(body) => caught(body),
        Body::Own(body) => caught(|| body(job.backend)),
        Body::Shared(body) | Body::Controlled(body) => {
            let cluster = clusters.get(job.backend)?;
            let case = &mut None;
            let result = caught(|| {
                let namespace = job.entry.name.replace("::", "-").replace('_', "-");
                let case = case.insert(Case::start(cluster, &namespace));
                body(case);
            });
            let result = result.map_err(|text| match case {
                Some(case) => format!("{text}\n{}", case.diagnosis()),
                None => format!("{text}\n{}", cluster.logs(40)),
            });
            let ended = caught(|| case.iter().for_each(Case::end));
            result.and(ended.map_err(|text| format!("at the end of the case: {text}")))
        }
    }
}

fn caught(what: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|_| PANIC.with(|slot| slot.borrow_mut().take()).unwrap_or_default())
}

impl Clusters {
    fn get(&self, backend: Backend) -> Result<&Cluster, String> {
        let started = self.started[&backend].get_or_init(|| {
            let mut cluster = None;
            caught(|| cluster = Some(Cluster::start_with(backend, self.setup)))
                .map_err(|text| format!("the cluster does not start: {text}"))
                .and_then(|()| cluster.ok_or_else(String::new))
        });
        started.as_ref().map_err(Clone::clone)
    }

    fn finish(&self, job: &Job) {
        if job.entry.body.shares(job.backend) {
            *self.left.lock().unwrap().get_mut(&job.backend).expect("counted") -= 1;
            self.done.notify_all();
        }
    }

    fn wait(&self, backend: Backend) {
        let left = self.left.lock().unwrap();
        drop(self.done.wait_while(left, |left| left[&backend] > 0).unwrap());
    }

    fn close(&self, backend: Backend) -> Result<(), String> {
        let cluster = self.get(backend)?;
        caught(|| cluster.assert_nothing_left()).map_err(|text| format!("{text}\n{}", cluster.logs(40)))
    }
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Options {
        let mut options = Options { filters: Vec::new(), skips: Vec::new(), exact: false, list: false, threads: None };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let (flag, given) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_string(), Some(value.to_string())),
                None => (argument.clone(), None),
            };
            match flag.as_str() {
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--skip" => options.skips.extend(given.or_else(|| arguments.next())),
                "--test-threads" => {
                    let number = given.or_else(|| arguments.next()).and_then(|number| number.parse().ok());
                    options.threads = number.map(|number: usize| number.max(1));
                }
                "--format" | "--color" | "--logfile" | "-Z" if given.is_none() => drop(arguments.next()),
                _ if flag.starts_with('-') => {}
                _ => options.filters.push(argument),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let fits = |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(fits)) && !self.skips.iter().any(fits)
    }
}
