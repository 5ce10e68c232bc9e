//! Requests to systemd's manager on the system bus, or, where there is no bus, at systemd's own socket.

use futures::StreamExt;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, DBusError, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, Variant};

use crate::SystemdError;
use crate::properties::{Property, Value};

/// systemd's name on the bus.
const NAME: &str = "org.freedesktop.systemd1";
/// The manager.
const PATH: &str = "/org/freedesktop/systemd1";
/// Its interface.
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// The interface of reading properties.
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// systemd's own socket, for root.
const PRIVATE: &str = "unix:path=/run/systemd/private";
/// How a job is to get along with others of its unit: it takes their place.
const REPLACE: &str = "replace";
/// The same for a unit that must be new.
const FAIL: &str = "fail";
/// What the job says that went well.
const DONE: &str = "done";

/// Drop-ins and auxiliary units: none.
type NoUnits = Vec<(&'static str, Vec<(&'static str, Variant<'static>)>)>;

/// A connection of one request.
struct Bus {
    connection: Connection,
    /// Nobody stands between us and systemd.
    direct: bool,
}

impl Bus {
    async fn connect() -> Result<Bus, SystemdError> {
        let over_bus = match Builder::system().build().await {
            Ok(connection) => return Ok(Bus { connection, direct: false }),
            Err(error) => error,
        };
        match Builder::address(PRIVATE).p2p().build().await {
            Ok(connection) => Ok(Bus { connection, direct: true }),
            Err(error) => Err(SystemdError::Unreachable { reason: format!("{over_bus}; {error}") }),
        }
    }

    async fn call<B>(&self, unit: &str, interface: &str, method: &str, body: &B) -> Result<Message, SystemdError>
    where
        B: zbus::export::serde::ser::Serialize + DynamicType,
    {
        let name = (!self.direct).then_some(NAME);
        let answer = self.connection.call_method(name, PATH, Some(interface), method, body).await;
        let refused = |name: String, message: String| SystemdError::Refused { unit: unit.into(), name, message };
        answer.map_err(|error| match error {
            zbus::Error::MethodError(name, message, _) => refused(name.to_string(), message.unwrap_or_default()),
            zbus::Error::FDO(error) => {
                refused(error.name().to_string(), error.description().unwrap_or_default().to_string())
            }
            other => broken(other),
        })
    }

    /// The ends of jobs, from now on.
    async fn jobs(&self) -> Result<MessageStream, SystemdError> {
        let rule = MatchRule::builder().msg_type(Type::Signal).interface(MANAGER).member("JobRemoved");
        let rule = if self.direct { rule } else { rule.sender(NAME) };
        let rule = rule.build().map_err(broken)?;
        let stream = MessageStream::for_match_rule(rule, &self.connection, None).await.map_err(broken)?;
        self.call("itself", MANAGER, "Subscribe", &()).await?;
        Ok(stream)
    }
}

fn broken(error: zbus::Error) -> SystemdError {
    SystemdError::Broken { reason: error.to_string() }
}

/// Waits for the end of the job that an answer names.
async fn wait(unit: &str, jobs: &mut MessageStream, answer: &Message) -> Result<(), SystemdError> {
    let job: OwnedObjectPath = answer.body().deserialize().map_err(broken)?;
    while let Some(message) = jobs.next().await {
        let body = message.map_err(broken)?.body();
        let Ok((_, ended, _, result)) = body.deserialize::<(u32, OwnedObjectPath, String, String)>() else { continue };
        if ended == job {
            return if result == DONE { Ok(()) } else { Err(SystemdError::Job { unit: unit.into(), result }) };
        }
    }
    Err(SystemdError::Broken { reason: format!("the connection ended before the job of {unit}") })
}

fn variants(properties: &[Property]) -> Vec<(&'static str, Variant<'_>)> {
    let variant = |value: &Value| match value {
        Value::Flag(flag) => Variant::from(*flag),
        Value::Number(number) => Variant::from(*number),
        Value::Processes(pids) => Variant::from(pids.clone()),
        Value::Set(mask) => Variant::from(mask.clone()),
        Value::Text(text) => Variant::from(text.clone()),
    };
    properties.iter().map(|property| (property.name, variant(&property.value))).collect()
}

pub(crate) async fn version() -> Result<String, SystemdError> {
    let bus = Bus::connect().await?;
    let answer = bus.call("itself", PROPERTIES, "Get", &(MANAGER, "Version")).await?;
    let body = answer.body();
    let version: Variant<'_> = body.deserialize().map_err(broken)?;
    version.downcast_ref::<&str>().map(str::to_string).map_err(broken)
}

pub(crate) async fn start(unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
    let bus = Bus::connect().await?;
    let mut jobs = bus.jobs().await?;
    let body = (unit, FAIL, variants(properties), NoUnits::new());
    let answer = bus.call(unit, MANAGER, "StartTransientUnit", &body).await?;
    wait(unit, &mut jobs, &answer).await
}

pub(crate) async fn set(unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
    let bus = Bus::connect().await?;
    // For as long as the unit is there, which does not outlive a boot.
    let body = (unit, true, variants(properties));
    bus.call(unit, MANAGER, "SetUnitProperties", &body).await.map(drop)
}

pub(crate) async fn stop(unit: &str) -> Result<(), SystemdError> {
    let bus = Bus::connect().await?;
    let mut jobs = bus.jobs().await?;
    match bus.call(unit, MANAGER, "StopUnit", &(unit, REPLACE)).await {
        Ok(answer) => wait(unit, &mut jobs, &answer).await?,
        Err(error) if error.is_missing() => return Ok(()),
        Err(error) => return Err(error),
    }
    match bus.call(unit, MANAGER, "ResetFailedUnit", &(unit,)).await {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}
