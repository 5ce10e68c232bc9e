//! The end of a pod with sidecars: which of its containers run × what is left of the grace × which stops are under way,
//! with the order and grace of the stops.

use jiff::SignedDuration;
use serde_json::json;

use super::{Come, compare, render, words};
use crate::lifecycle::Lifecycle;
use crate::world::World;

/// The containers of the pod: two sidecars and two app containers.
const ALL: [&str; 4] = ["s", "t", "a", "b"];
/// Which of them run.
const RUNNING: [&[&str]; 7] = [&["s", "t", "a", "b"], &["s", "t", "a"], &["s", "t"], &["t"], &["s"], &["s", "b"], &[]];

#[test]
fn order_and_grace() {
    let mut rows = Vec::new();
    for running in RUNNING {
        for left in [Some(30_000), Some(1_200), Some(0), Some(-5_000), None] {
            for stopping in [&[][..], &["a", "b"], &ALL] {
                let mut world = World::new(json!({"terminationGracePeriodSeconds": 45,
                    "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}],
                    "containers": [{"name": "a"}, {"name": "b"}]}));
                world.make_sandbox();
                for name in ALL {
                    let come = if running.contains(&name) { Come::Runs } else { Come::Ended(0) };
                    come.happen(&mut world, name);
                }
                world.memory.lifecycle = Lifecycle::Terminating;
                world.memory.stop_by = left.map(|left| world.now + SignedDuration::from_millis(left));
                world.memory.stopping.extend(stopping.iter().map(|name| format!("{name}0")));
                let text = |names: &[&str]| if names.is_empty() { "-".to_owned() } else { names.join(" ") };
                rows.push(vec![
                    text(running),
                    left.map_or("not begun".to_owned(), |left| format!("{:.1}s", left as f64 / 1000.0)),
                    text(stopping),
                    words(&world),
                ]);
            }
        }
    }
    compare("ends.txt", &render(&["running", "grace left", "being stopped", "planned"], &rows));
}
