//! Listening to logind: while the node has pods to end, logind delays a shutdown of the machine for it.

use std::path::PathBuf;
use std::time::Duration;

use orlop_systemd::{DelayLock, Logind, LogindError, ShutdownNews};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::shutdown::{ShutdownOrder, Stage};

/// Waiting times before the bus is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// What `systemd-inhibit` shows.
const WHO: &str = "orlop";
const WHY: &str = "pods need time to end";

/// Who listens to logind.
pub(crate) struct Listener {
    /// How long the node needs at most.
    pub(crate) needed: Duration,
    /// Where logind's configuration may be changed.
    pub(crate) drop_ins: Option<PathBuf>,
    pub(crate) orders: mpsc::Sender<ShutdownOrder>,
    pub(crate) stage: watch::Receiver<Stage>,
    /// The machine is about to go down, by the last word of a logind that may be gone.
    pub(crate) under_way: bool,
}

impl Listener {
    /// Listens until cancelled, whatever becomes of bus and logind.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let (mut delay, mut complained, mut lock) = (RETRY_FIRST, false, None);
        loop {
            let listening = self.listen(&mut lock, &mut delay, &mut complained);
            let error = tokio::select! {
                () = cancel.cancelled() => return,
                error = listening => error,
            };
            if std::mem::replace(&mut complained, true) {
                debug!(%error, "logind can't be listened to");
            } else {
                info!(%error, "logind can't be listened to; pods are ended by the signal SIGPWR alone until it can");
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(RETRY_LONGEST);
        }
    }

    /// Listens with one connection, to its end.
    async fn listen(
        &mut self,
        lock: &mut Option<DelayLock>,
        delay: &mut Duration,
        complained: &mut bool,
    ) -> LogindError {
        match self.follow(lock, delay, complained).await {
            Ok(()) => LogindError::Unreachable { reason: "the connection has ended".to_owned() },
            Err(error) => error,
        }
    }

    async fn follow(
        &mut self,
        lock: &mut Option<DelayLock>,
        delay: &mut Duration,
        complained: &mut bool,
    ) -> Result<(), LogindError> {
        let logind = Logind::connect(None).await?;
        let mut shutdowns = logind.shutdowns().await?;
        // Only now: what has begun before is not signalled again.
        self.take_up(&logind, lock).await?;
        (*delay, *complained) = (RETRY_FIRST, false);
        let mut stage = self.stage.clone();
        loop {
            tokio::select! {
                news = shutdowns.next() => match news {
                    None => return Ok(()),
                    Some(ShutdownNews::GoesDown) => self.begin().await,
                    Some(ShutdownNews::StaysUp) => {
                        if !self.call_off().await {
                            return Ok(());
                        }
                        *lock = Some(logind.delay_shutdown(WHO, WHY).await?);
                    }
                    Some(ShutdownNews::NewLogind) => self.take_up(&logind, lock).await?,
                },
                over = becomes(&mut stage, Stage::Over), if self.under_way && lock.is_some() => {
                    if !over {
                        return Ok(());
                    }
                    // The machine goes down now, unless somebody else delays it as well.
                    *lock = None;
                }
            }
        }
    }

    /// Begins with a logind that was not known before.
    async fn take_up(&mut self, logind: &Logind, lock: &mut Option<DelayLock>) -> Result<(), LogindError> {
        if logind.is_going_down().await? {
            self.begin().await;
            return Ok(());
        }
        // The one before was about to; this one knows nothing of it, so nobody will say that it was called off.
        if self.under_way && !self.call_off().await {
            return Ok(());
        }
        self.need_time(logind).await?;
        *lock = Some(logind.delay_shutdown(WHO, WHY).await?);
        info!(seconds = self.needed.as_secs(), "logind tells of shutdowns, and waits for pods");
        Ok(())
    }

    async fn begin(&mut self) {
        self.under_way = true;
        self.order(ShutdownOrder::Begin).await;
    }

    /// Waits until that is done, too: what is over by then belongs to the shutdown that was called off. False when the
    /// agent ends.
    async fn call_off(&mut self) -> bool {
        self.under_way = false;
        self.order(ShutdownOrder::CallOff).await;
        becomes(&mut self.stage, Stage::Up).await
    }

    async fn order(&self, order: ShutdownOrder) {
        // Nobody takes orders any more when the agent ends.
        let _ = self.orders.send(order).await;
    }

    /// Sees that logind waits long enough. Where it doesn't, it is delayed as long as it may be.
    async fn need_time(&self, logind: &Logind) -> Result<(), LogindError> {
        let allowed = logind.longest_delay().await?;
        if allowed >= self.needed {
            return Ok(());
        }
        let (seconds, needed) = (allowed.as_secs(), self.needed.as_secs());
        let Some(folder) = &self.drop_ins else {
            warn!(
                seconds,
                needed, "logind waits for pods for less time than they have; set InhibitDelayMaxSec in logind.conf"
            );
            return Ok(());
        };
        match logind.lengthen_delay(folder, self.needed).await {
            Ok(()) => info!(seconds, needed, folder = %folder.display(), "logind waits longer from now on"),
            Err(error) => warn!(%error, seconds, needed, "logind waits for pods for less time than they have"),
        }
        Ok(())
    }
}

/// Waits for a stage; false when the agent ends before.
async fn becomes(stage: &mut watch::Receiver<Stage>, wanted: Stage) -> bool {
    stage.wait_for(|stage| *stage == wanted).await.is_ok()
}
