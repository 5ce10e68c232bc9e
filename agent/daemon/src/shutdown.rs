//! The end of the node with its machine: told by logind or by the program, it makes the node refuse pods and ends those
//! that are there, group after group.
//!
//! ```text
//!  logind ── PrepareForShutdown ──┐                 not ready, no new pods
//!                                 ├──> Keeper ──>   record, end a group, wait    [again for each group]
//!  program (SIGPWR, SIGUSR1) ─────┘                 statuses written
//!                                                   logind: lock given back      program: the agent ends
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orlop_agent_core::metrics::{Metrics, names};
use orlop_agent_core::ports::{EventType, StatusSink};
use orlop_agent_core::shutdown::{LAST_WORDS, PodEnd, ShutdownPeriods};
use orlop_agent_node::{NodeAgent, NodeInputs};
use orlop_agent_pods::{NextEnd, PodHandle, PodShutdown};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::serve::Parts;
use crate::shutdown::logind::Listener;
use crate::shutdown::record::ShutdownRecord;

pub(crate) mod logind;
pub(crate) mod record;

/// Reason of the node's events.
const EVENT: &str = "Shutdown";
/// How long keeping the record may hold up the pods' end.
const RECORD_DEADLINE: Duration = Duration::from_secs(5);

/// How long statuses are waited for, though the pods have used up all time.
const LEAST_FLUSH: Duration = Duration::from_secs(1);

/// What the agent is told of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownOrder {
    /// The machine is about to go down: end all pods, and stay.
    Begin,
    /// The same, and the agent ends when that is done.
    BeginAndLeave,
    /// It stays up after all.
    CallOff,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing is under way.
    #[default]
    Up,
    /// Pods are being ended.
    Ending,
    /// All is done that can be.
    Over,
}

/// Who carries out a shutdown.
pub(crate) struct Keeper {
    pub(crate) periods: ShutdownPeriods,
    pub(crate) root: PathBuf,
    pub(crate) record: ShutdownRecord,
    pub(crate) pods: PodHandle,
    pub(crate) statuses: Arc<dyn StatusSink>,
    pub(crate) node: Arc<NodeAgent>,
    pub(crate) inputs: watch::Sender<NodeInputs>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stage: watch::Sender<Stage>,
}

impl Parts {
    /// How long pods have; checked when the settings were read.
    pub(crate) fn shutdown_periods(&self) -> ShutdownPeriods {
        self.config.kubelet.shutdown_periods().unwrap_or_default()
    }

    /// Orders of the program and, where pods are to be ended, of logind.
    pub(crate) fn follow_orders(
        &self,
        tasks: &mut JoinSet<()>,
        mut program: mpsc::Receiver<ShutdownOrder>,
        stage: watch::Receiver<Stage>,
        cancel: &CancellationToken,
    ) -> mpsc::Receiver<ShutdownOrder> {
        let (sender, orders) = mpsc::channel(1);
        let periods = self.shutdown_periods();
        if !periods.is_empty() {
            let drop_ins = self.config.logind_drop_ins.clone();
            let (needed, orders) = (periods.longest(), sender.clone());
            let listener = Listener { needed, drop_ins, orders, stage, under_way: false };
            tasks.spawn(listener.run(cancel.clone()));
        }
        let token = cancel.clone();
        tasks.spawn(async move {
            while let Some(Some(order)) = token.run_until_cancelled(program.recv()).await {
                if sender.send(order).await.is_err() {
                    return;
                }
            }
        });
        orders
    }
}

/// How ending the pods ended.
enum Ended {
    /// All were told; of these the node still has something.
    All(Vec<PodEnd>),
    CalledOff,
}

impl Keeper {
    /// Obeys orders until the agent is to end. Returns the pods of which the node still has something then.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<ShutdownOrder>) -> Vec<PodEnd> {
        self.show_times();
        loop {
            let order = next_order(&mut orders).await;
            if order == ShutdownOrder::CallOff {
                continue;
            }
            let mut leave = order == ShutdownOrder::BeginAndLeave;
            if self.periods.is_empty() {
                warn!("no shutdownGracePeriod is set, so no pod is ended");
                if leave {
                    return Vec::new();
                }
                continue;
            }
            self.begin();
            let begun = Instant::now();
            if let Ended::All(left) = self.end_pods(&mut orders, &mut leave).await {
                // What the pods came to is written before the machine goes.
                let time = self.periods.longest().saturating_sub(begun.elapsed()).clamp(LEAST_FLUSH, LAST_WORDS);
                if tokio::time::timeout(time, self.statuses.settled()).await.is_err() {
                    warn!("the API was not told of all pods' ends; the next start does that");
                }
                info!(left = left.len(), "all pods were told to end; the machine may go down");
                self.stage.send_replace(Stage::Over);
                while !leave {
                    match next_order(&mut orders).await {
                        ShutdownOrder::Begin => {}
                        ShutdownOrder::BeginAndLeave => leave = true,
                        ShutdownOrder::CallOff => break,
                    }
                }
                if leave {
                    return left;
                }
            }
            self.call_off();
        }
    }

    /// From here on the node takes no pods, and says so.
    fn begin(&self) {
        info!("the machine is about to go down; the node takes no more pods and ends those it has");
        self.inputs.send_modify(|inputs| inputs.shutting_down = true);
        self.stage.send_replace(Stage::Ending);
        self.node.record(EventType::Normal, EVENT, "Shutdown manager detected shutdown event");
    }

    fn call_off(&self) {
        info!("the machine stays up after all; the node takes pods again, and those that were told to end stay ended");
        self.inputs.send_modify(|inputs| inputs.shutting_down = false);
        self.stage.send_replace(Stage::Up);
        self.node.record(EventType::Normal, EVENT, "Shutdown manager detected shutdown cancellation");
    }

    async fn end_pods(&mut self, orders: &mut mpsc::Receiver<ShutdownOrder>, leave: &mut bool) -> Ended {
        self.record.begin(Timestamp::now());
        self.show_times();
        let mut shutdown = self.pods.begin_shutdown(&self.periods).await;
        // Of pods that an earlier shutdown ended, those that are still there are kept in mind.
        self.record.pods.retain(|uid, _| shutdown.pod(uid).is_some());
        let ended = loop {
            tokio::select! {
                order = next_order(orders) => match order {
                    ShutdownOrder::Begin => {}
                    ShutdownOrder::BeginAndLeave => *leave = true,
                    ShutdownOrder::CallOff => break Ended::CalledOff,
                },
                next = shutdown.next() => match next {
                    NextEnd::Group(group) => self.end_group(&shutdown, &group).await,
                    NextEnd::Over(left) => break Ended::All(left),
                },
            }
        };
        if let Ended::All(left) = &ended {
            for pod in left {
                warn!(pod = pod.name, "the time of a pod is over, and it has not ended");
            }
        }
        self.record.end(Timestamp::now());
        self.show_times();
        self.keep_record().await;
        ended
    }

    /// Ends a group, which is on record by then.
    async fn end_group(&mut self, shutdown: &PodShutdown, group: &[PodEnd]) {
        self.record.pods.extend(group.iter().map(|pod| (pod.uid.clone(), pod.grace_seconds)));
        self.keep_record().await;
        shutdown.end(group);
    }

    fn show_times(&self) {
        for (gauge, time) in [&names::SHUTDOWN_START, &names::SHUTDOWN_END].into_iter().zip(self.record.times()) {
            self.metrics.set(gauge, &[], time.map_or(0.0, |time| time.as_second() as f64));
        }
    }

    async fn keep_record(&self) {
        let (record, root) = (self.record.clone(), self.root.clone());
        let write = tokio::task::spawn_blocking(move || record.write(&root));
        match tokio::time::timeout(RECORD_DEADLINE, write).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => warn!(%error, "the shutdown can't be recorded"),
            Ok(Err(error)) => warn!(%error, "the shutdown can't be recorded"),
            Err(_) => warn!("the shutdown can't be recorded: the disk does not answer"),
        }
    }
}

/// Orders may come from nobody.
async fn next_order(orders: &mut mpsc::Receiver<ShutdownOrder>) -> ShutdownOrder {
    match orders.recv().await {
        Some(order) => order,
        None => std::future::pending().await,
    }
}
