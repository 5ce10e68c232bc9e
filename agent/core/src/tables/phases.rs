//! The phase: restart policy × states of an init container and two app containers × the pod's life.

use serde_json::json;

use super::{Come, compare, render};
use crate::lifecycle::Lifecycle;
use crate::world::World;

#[test]
fn phases() {
    let inits = [None, Some(Come::Nothing), Some(Come::Runs), Some(Come::Ended(0)), Some(Come::Ended(1))];
    let apps = [Come::Nothing, Come::Made, Come::Runs, Come::Ended(0), Come::Ended(1)];
    let mut rows = Vec::new();
    for policy in ["Always", "OnFailure", "Never"] {
        for init in inits {
            for a in apps {
                for b in apps {
                    let mut row = vec![policy.to_owned(), init.map_or("none".into(), Come::text), a.text(), b.text()];
                    let columns = [
                        ("", Lifecycle::Syncing),
                        ("Running", Lifecycle::Syncing),
                        ("Running", Lifecycle::Terminating),
                        ("Running", Lifecycle::Terminated),
                        ("Succeeded", Lifecycle::Syncing),
                        ("Failed", Lifecycle::Terminated),
                    ];
                    row.extend(columns.map(|(before, life)| phase(policy, [init, Some(a), Some(b)], before, life)));
                    rows.push(row);
                }
            }
        }
    }
    let head = [
        "policy",
        "init",
        "a",
        "b",
        "new, Syncing",
        "Running, Syncing",
        "Running, Terminating",
        "Running, Terminated",
        "Succeeded, Syncing",
        "Failed, Terminated",
    ];
    compare("phases.txt", &render(&head, &rows));
}

fn phase(policy: &str, comes: [Option<Come>; 3], before: &str, life: Lifecycle) -> String {
    let init = comes[0].map(|_| json!([{"name": "i"}]));
    let mut world = World::new(json!({"restartPolicy": policy, "initContainers": init,
        "containers": [{"name": "a"}, {"name": "b"}]}));
    world.make_sandbox();
    for (name, come) in ["i", "a", "b"].into_iter().zip(comes) {
        if let Some(come) = come {
            come.happen(&mut world, name);
        }
    }
    world.status.phase = Some(before.to_owned()).filter(|phase| !phase.is_empty());
    world.memory.lifecycle = life;
    world.publish();
    world.phase().to_owned()
}
