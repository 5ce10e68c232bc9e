//! What logind is asked over a real bus: locks, its longest delay, and what it says of shutdowns.

use std::time::Duration;

use orlop_systemd::{Logind, LogindError, ShutdownNews};
use orlop_tests::logind;
use orlop_tests::world::until;

#[test]
fn locks_delays_and_signals() {
    let folder = tempfile::tempdir().unwrap();
    let drop_ins = folder.path().join("logind.conf.d");
    let served = logind::Logind::start(folder.path(), &drop_ins);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = logind::address(folder.path());
    let ask = runtime.block_on(Logind::connect(Some(&address))).unwrap();
    assert!(!runtime.block_on(ask.is_going_down()).unwrap());
    let mut news = runtime.block_on(ask.shutdowns()).unwrap();

    let lock = runtime.block_on(ask.delay_shutdown("me", "I need time")).unwrap();
    assert_eq!(served.locks(), [["shutdown", "me", "I need time", "delay"].map(String::from)]);
    drop(lock);
    until("the lock is given back", || served.locks().is_empty().then_some(()));

    assert_eq!(runtime.block_on(ask.longest_delay()).unwrap(), Duration::from_secs(5));
    runtime.block_on(ask.lengthen_delay(&drop_ins, Duration::from_secs(35))).unwrap();
    assert_eq!(runtime.block_on(ask.longest_delay()).unwrap(), Duration::from_secs(35));
    let names: Vec<_> = std::fs::read_dir(&drop_ins).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["99-orlop.conf"]);
    // A file after it by name wins, and is to blame.
    std::fs::write(drop_ins.join("zz.conf"), "[Login]\nInhibitDelayMaxSec=7\n").unwrap();
    let short = runtime.block_on(ask.lengthen_delay(&drop_ins, Duration::from_secs(40))).unwrap_err();
    assert!(matches!(short, LogindError::StillShort { .. }) && short.to_string().contains("99-orlop.conf"), "{short}");

    for (going_down, word) in [(true, ShutdownNews::GoesDown), (false, ShutdownNews::StaysUp)] {
        served.prepare(going_down);
        assert_eq!(runtime.block_on(news.next()), Some(word));
        assert_eq!(runtime.block_on(ask.is_going_down()).unwrap(), going_down);
    }
    served.prepare(true);
    assert_eq!(runtime.block_on(news.next()), Some(ShutdownNews::GoesDown));
    served.restart();
    assert_eq!(runtime.block_on(news.next()), Some(ShutdownNews::NewLogind));
    assert!(!runtime.block_on(ask.is_going_down()).unwrap(), "it has forgotten");
    drop(served);
    assert_eq!(runtime.block_on(news.next()), None, "the bus is gone");
    let error = runtime.block_on(Logind::connect(Some(&address))).err().unwrap();
    assert!(matches!(error, LogindError::Unreachable { .. }), "{error}");
}
