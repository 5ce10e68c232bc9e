//! `start` and `run`: the program of a container that is made.

use std::path::Path;
use std::time::{Duration, Instant};

use orlop_container::hook;
use orlop_container::stage::{self, Message, Step};
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::{process, socket};

use crate::arguments::Arguments;
use crate::create::{self, Created, Request, hear};
use crate::failure::{Failure, Outcome};
use crate::foreground;
use crate::kill;
use crate::log::Log;
use crate::store::{Place, Record, Status, Store};

/// How long the exec of a program may take: its file may lie on a share.
const TIME: Duration = Duration::from_secs(60);

/// `start`.
pub fn start(store: &Store, arguments: &Arguments, log: &Log) -> Outcome {
    let id = arguments.id()?;
    let place = store.find(id)?;
    let _held = place.lock(id)?;
    let (record, status) = place.look(id)?;
    if status != Status::Created {
        let status = status.word().into();
        return Err(Failure::WrongState { command: "cannot start", id: id.into(), status, advice: "" });
    }
    go(&place, &record, log)?;
    Ok(0)
}

/// Lets the first process become the program.
fn go(place: &Place, record: &Record, log: &Log) -> Result<(), Failure> {
    if place.config()?.process.args.is_empty() {
        return Err(Failure::Usage("process: config.json had none when the container was made".into()));
    }
    let what = "start the container";
    let file = place.start_socket();
    let connection = socket::connect(&file).step(what)?;
    stage::send(&connection, &Message::Start).step(what)?;
    let end = Instant::now() + TIME + hook::time_of(&record.hooks.start_container);
    match hear(&connection, end) {
        // The socket ends with the exec.
        Ok(None) => {}
        Ok(Some(other)) => return Err(create::unexpected(&other)),
        Err(error) => {
            // What could not be started has ended, or does so now.
            let _ = kill::send(record, 9);
            return Err(error);
        }
    }
    let _ = std::fs::remove_file(&file);
    for one in &record.hooks.poststart {
        // The specification has the container go on whatever comes of these.
        if let Err(error) = hook::run(one, &record.hook_state("running", record.pid), Path::new("/")) {
            log.warn(&format!("run the poststart hook {}: {error}", one.path.display()));
        }
    }
    Ok(())
}

/// `create`.
pub fn create(store: &Store, arguments: &Arguments, log: &Log) -> Outcome {
    let request = Request::read(arguments)?;
    create::create(store, arguments, &request, true, log)?;
    Ok(0)
}

/// `run`.
pub fn run(store: &Store, arguments: &Arguments, log: &Log) -> Outcome {
    let request = Request::read(arguments)?;
    let detached = arguments.has("detach");
    if !detached && !arguments.has("no-subreaper") {
        process::become_subreaper().step("become the parent of orphans")?;
    }
    let created = create::create(store, arguments, &request, detached, log)?;
    let Created { place, held, record, pidfd, terminal } = created;
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    let follow = (!detached).then(|| foreground::Watch::new(terminal)).transpose();
    let began = follow.and_then(|follow| go(&place, &record, log).map(|()| follow));
    let follow = match began {
        Ok(follow) => follow,
        Err(error) => {
            kill::remove(&place, &record, &cgroups, log)?;
            return Err(error);
        }
    };
    drop(held);
    let Some(follow) = follow else { return Ok(0) };
    let code = follow.run(&pidfd);
    if !arguments.has("keep") {
        let _held = match place.lock(&record.id) {
            // Somebody else has removed it.
            Err(Failure::Missing) => return code,
            held => held?,
        };
        kill::remove(&place, &record, &cgroups, log)?;
    }
    code
}
