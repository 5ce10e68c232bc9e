//! `state`, `list`, `ps`: looking at containers.

use std::process::Command;

use orlop_container::clock;
use orlop_container::stage::Step;
use orlop_kernel::cgroup::Cgroups;
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::failure::{Failure, Outcome};
use crate::store::{Record, Status, Store};

/// What `state` prints: what the specification has, and what others' readers look for.
fn describe(record: &Record, status: Status) -> Value {
    let pid = if status == Status::Stopped { 0 } else { record.pid };
    let mut state = json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": pid,
        "status": status.word(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": clock::timestamp(record.created),
        "owner": "",
    });
    if !record.annotations.is_empty() {
        state["annotations"] = json!(record.annotations);
    }
    state
}

/// Prints a value so that people can read it.
pub fn print(value: &Value) -> Outcome {
    println!("{}", serde_json::to_string_pretty(value).step("encode the answer")?);
    Ok(0)
}

/// `state`.
pub fn state(store: &Store, arguments: &Arguments) -> Outcome {
    let id = arguments.id()?;
    let (record, status) = store.find(id)?.look(id)?;
    print(&describe(&record, status))
}

/// `list`.
pub fn list(store: &Store, arguments: &Arguments) -> Outcome {
    let ids = store.ids()?;
    if arguments.has("quiet") {
        ids.iter().for_each(|id| println!("{id}"));
        return Ok(0);
    }
    // One that goes meanwhile, or has a damaged record, hides none of the others.
    let look = |id: &String| store.find(id).and_then(|place| place.look(id)).ok();
    let found: Vec<(Record, Status)> = ids.iter().filter_map(look).collect();
    match arguments.get("format").unwrap_or("table") {
        "json" => {
            let all: Vec<Value> = found.iter().map(|(record, status)| describe(record, *status)).collect();
            println!("{}", json!(all));
        }
        "table" => table(&found),
        other => return Err(Failure::Usage(format!("invalid format option {other:?}: table or json"))),
    }
    Ok(0)
}

fn table(found: &[(Record, Status)]) {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let row = |(record, status): &(Record, Status)| {
        let pid = if *status == Status::Stopped { 0 } else { record.pid };
        let bundle = record.bundle.display().to_string();
        let created = clock::timestamp(record.created);
        [record.id.clone(), pid.to_string(), status.word().into(), bundle, created, "root".into()]
    };
    let rows: Vec<[String; 6]> = [head].into_iter().chain(found.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(9) + 3;
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let line: String = row.iter().zip(widths).map(|(text, width)| format!("{text:width$}")).collect();
        println!("{}", line.trim_end());
    }
}

/// `ps`.
pub fn ps(store: &Store, arguments: &Arguments) -> Outcome {
    let (id, options) = match arguments.rest.split_first() {
        Some((id, options)) => (id, options),
        None => return Err(Failure::Usage("container id cannot be empty: ps wants one".into())),
    };
    let (record, _) = store.find(id)?.look(id)?;
    let pids = Cgroups::detect().step("find the cgroups")?.processes(&record.cgroup);
    match arguments.get("format").unwrap_or("table") {
        "json" => {
            println!("{}", json!(pids));
            return Ok(0);
        }
        "table" => {}
        other => return Err(Failure::Usage(format!("invalid format option {other:?}: table or json"))),
    }
    let mut command = Command::new("ps");
    if options.is_empty() {
        command.arg("-ef");
    }
    let output = command.args(options).output().step("run ps (the package procps has it)")?;
    if !output.status.success() {
        return Err(Failure::Usage(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| Failure::Usage("the output of ps has no column PID".into()))?;
    println!("{head}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(0)
}
