//! Requests to logind on the system bus, and its signal before a shutdown.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{Select, select};
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, DynamicType, MatchRule, Message, MessageStream, Variant};

use crate::{LogindError, ShutdownNews};

/// logind's name on the bus.
const NAME: &str = "org.freedesktop.login1";
/// The manager.
const PATH: &str = "/org/freedesktop/login1";
/// Its interface.
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// The interface of reading properties.
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The signal before a shutdown, and when it was called off.
const SIGNAL: &str = "PrepareForShutdown";
/// The bus itself, and its signal when a name is taken or given back.
const BUS: &str = "org.freedesktop.DBus";
const NAME_CHANGED: &str = "NameOwnerChanged";
/// systemd, which sends logind the signal to read its configuration again.
const SYSTEMD: (&str, &str, &str) =
    ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
/// logind's unit.
const UNIT: &str = "systemd-logind.service";

/// The connection.
pub(crate) struct Bus(Connection);

/// logind's signals, and the bus's about its name.
pub(crate) struct Signals {
    messages: Select<MessageStream, MessageStream>,
    /// logind was there, and is not now.
    gone: bool,
}

impl Signals {
    pub(crate) async fn next(&mut self) -> Option<ShutdownNews> {
        while let Some(Ok(message)) = self.messages.next().await {
            let body = message.body();
            if let Ok((begins,)) = body.deserialize::<(bool,)>() {
                return Some(if begins { ShutdownNews::GoesDown } else { ShutdownNews::StaysUp });
            }
            if let Ok((_, _, owner)) = body.deserialize::<(&str, &str, &str)>() {
                // Its first start is no news.
                let is_back = !owner.is_empty() && self.gone;
                self.gone = owner.is_empty();
                if is_back {
                    return Some(ShutdownNews::NewLogind);
                }
            }
        }
        None
    }
}

fn refused(step: &'static str) -> impl FnOnce(zbus::Error) -> LogindError {
    move |error| LogindError::Refused { step, reason: error.to_string() }
}

pub(crate) async fn connect(address: Option<&str>) -> Result<Bus, LogindError> {
    let connection = address.map_or_else(Builder::system, Builder::address).build().await;
    connection.map(Bus).map_err(|error| LogindError::Unreachable { reason: error.to_string() })
}

pub(crate) async fn listen(bus: &Bus) -> Result<Signals, LogindError> {
    let step = "listen for shutdowns";
    let signal = || MatchRule::builder().msg_type(Type::Signal);
    let own = signal().sender(NAME).path(PATH).interface(MANAGER).member(SIGNAL);
    let name = signal().sender(BUS).interface(BUS).member(NAME_CHANGED).arg(0, NAME);
    let own = MessageStream::for_match_rule(own.build().map_err(refused(step))?, &bus.0, None);
    let own = own.await.map_err(refused(step))?;
    let name = MessageStream::for_match_rule(name.build().map_err(refused(step))?, &bus.0, None);
    let name = name.await.map_err(refused(step))?;
    Ok(Signals { messages: select(own, name), gone: false })
}

async fn call<B>(bus: &Bus, step: &'static str, interface: &str, method: &str, body: &B) -> Result<Message, LogindError>
where
    B: zbus::export::serde::ser::Serialize + DynamicType,
{
    bus.0.call_method(Some(NAME), PATH, Some(interface), method, body).await.map_err(refused(step))
}

pub(crate) async fn going_down(bus: &Bus) -> Result<bool, LogindError> {
    let step = "ask logind whether the machine goes down";
    let answer = call(bus, step, PROPERTIES, "Get", &(MANAGER, "PreparingForShutdown")).await?;
    let body = answer.body();
    let value: Variant<'_> = body.deserialize().map_err(refused(step))?;
    value.downcast_ref::<bool>().map_err(refused(step))
}

pub(crate) async fn longest_delay(bus: &Bus) -> Result<Duration, LogindError> {
    let step = "ask logind for its longest delay";
    let answer = call(bus, step, PROPERTIES, "Get", &(MANAGER, "InhibitDelayMaxUSec")).await?;
    let body = answer.body();
    let value: Variant<'_> = body.deserialize().map_err(refused(step))?;
    value.downcast_ref::<u64>().map(Duration::from_micros).map_err(refused(step))
}

pub(crate) async fn inhibit(bus: &Bus, who: &str, why: &str) -> Result<OwnedFd, LogindError> {
    let step = "ask logind to delay shutdowns";
    let answer = call(bus, step, MANAGER, "Inhibit", &("shutdown", who, why, "delay")).await?;
    let lock: zbus::OwnedFd = answer.body().deserialize().map_err(refused(step))?;
    let own = lock.as_fd().try_clone_to_owned();
    own.map_err(|error| LogindError::Refused { step, reason: error.to_string() })
}

pub(crate) async fn reload(bus: &Bus) -> Result<(), LogindError> {
    let (name, path, interface) = SYSTEMD;
    let body = (UNIT, "all", 1_i32);
    let answer = bus.0.call_method(Some(name), path, Some(interface), "KillUnit", &body).await;
    answer.map(drop).map_err(refused("let logind read its configuration again"))
}
