//! What logind is asked: to tell of a shutdown before it happens, and to delay it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use orlop_kernel::file::Outlives;

use crate::LogindError;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);
/// logind has no signal for a configuration that it read again, so it is asked this often, and each time after twice the
/// time of the one before.
const LOOKS: u32 = 6;
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// The file that lengthens the delay. A kubelet's comes before it by name, so that this one counts.
const DROP_IN: &str = "99-orlop.conf";

/// A connection to logind.
pub struct Logind(wire::Bus);

/// The machine does not go down while this is held, for as long as logind allows.
#[derive(Debug)]
pub struct DelayLock(#[expect(dead_code, reason = "closing it is what counts")] OwnedFd);

/// What there is to hear of shutdowns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownNews {
    /// The machine is about to go down.
    GoesDown,
    /// It stays up after all.
    StaysUp,
    /// logind was restarted. It has forgotten a shutdown that it was waiting with, and says nothing of it.
    NewLogind,
}

/// News of shutdowns.
pub struct Shutdowns(wire::Signals);

impl Shutdowns {
    /// Waits for the next. None when the connection has ended.
    pub async fn next(&mut self) -> Option<ShutdownNews> {
        self.0.next().await
    }
}

impl Logind {
    /// Connects with the system bus, or with another one by its D-Bus address.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn connect(address: Option<&str>) -> Result<Logind, LogindError> {
        within("connect with the system bus", wire::connect(address)).await.map(Logind)
    }

    /// Everything that logind says of shutdowns from now on.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn shutdowns(&self) -> Result<Shutdowns, LogindError> {
        within("listen for shutdowns", wire::listen(&self.0)).await.map(Shutdowns)
    }

    /// Whether the machine is about to go down now.
    ///
    /// # Errors
    /// When logind does not answer.
    pub async fn is_going_down(&self) -> Result<bool, LogindError> {
        within("ask logind whether the machine goes down", wire::going_down(&self.0)).await
    }

    /// How long a shutdown can be delayed at most (`InhibitDelayMaxSec`).
    ///
    /// # Errors
    /// When logind does not answer.
    pub async fn longest_delay(&self) -> Result<Duration, LogindError> {
        within("ask logind for its longest delay", wire::longest_delay(&self.0)).await
    }

    /// Delays the next shutdown until the lock is dropped.
    ///
    /// # Errors
    /// When logind refuses; it does while a shutdown is under way.
    pub async fn delay_shutdown(&self, who: &str, why: &str) -> Result<DelayLock, LogindError> {
        within("ask logind to delay shutdowns", wire::inhibit(&self.0, who, why)).await.map(DelayLock)
    }

    /// Makes the longest delay at least `wanted`, by a file in `folder` (`/etc/systemd/logind.conf.d`).
    ///
    /// # Errors
    /// When the file can't be written, or logind takes no notice of it.
    pub async fn lengthen_delay(&self, folder: &Path, wanted: Duration) -> Result<(), LogindError> {
        let path = folder.join(DROP_IN);
        let (own, file) = (folder.to_owned(), path.clone());
        let write = async {
            match tokio::task::spawn_blocking(move || write_drop_in(&own, &file, wanted)).await {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        };
        within("write logind's configuration", write).await?;
        within("let logind read its configuration again", wire::reload(&self.0)).await?;
        let mut found = Duration::ZERO;
        for look in 0..LOOKS {
            tokio::time::sleep(FIRST_LOOK * 2_u32.pow(look)).await;
            found = self.longest_delay().await?;
            if found >= wanted {
                return Ok(());
            }
        }
        Err(LogindError::StillShort { path, found, wanted })
    }
}

fn write_drop_in(folder: &Path, path: &Path, wanted: Duration) -> Result<(), LogindError> {
    let failed = |source| LogindError::File { path: path.to_owned(), source };
    let text = format!(
        "# Pods have this long to end when the machine goes down (shutdownGracePeriod of the kubelet's settings).\n\
         [Login]\nInhibitDelayMaxSec={}\n",
        wanted.as_secs()
    );
    if std::fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(failed)?;
    orlop_kernel::file::replace(path, text.as_bytes(), 0o644, Outlives::Power).map_err(failed)
}

async fn within<T>(step: &'static str, work: impl Future<Output = Result<T, LogindError>>) -> Result<T, LogindError> {
    let late = |_| LogindError::Late { step, seconds: LIMIT.as_secs() };
    tokio::time::timeout(LIMIT, work).await.map_err(late)?
}

#[cfg(feature = "bus")]
use crate::logind_bus as wire;

/// Without the way to the bus.
#[cfg(not(feature = "bus"))]
mod wire {
    use std::convert::Infallible;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use crate::{LogindError, ShutdownNews};

    /// There is none.
    pub(super) struct Bus(Infallible);
    pub(super) struct Signals(Infallible);

    impl Signals {
        pub(super) async fn next(&mut self) -> Option<ShutdownNews> {
            match self.0 {}
        }
    }

    pub(super) async fn connect(_address: Option<&str>) -> Result<Bus, LogindError> {
        Err(LogindError::NotBuilt)
    }

    pub(super) async fn listen(bus: &Bus) -> Result<Signals, LogindError> {
        match bus.0 {}
    }

    pub(super) async fn going_down(bus: &Bus) -> Result<bool, LogindError> {
        match bus.0 {}
    }

    pub(super) async fn longest_delay(bus: &Bus) -> Result<Duration, LogindError> {
        match bus.0 {}
    }

    pub(super) async fn inhibit(bus: &Bus, _who: &str, _why: &str) -> Result<OwnedFd, LogindError> {
        match bus.0 {}
    }

    pub(super) async fn reload(bus: &Bus) -> Result<(), LogindError> {
        match bus.0 {}
    }
}
