//! Many at once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::machine::{Call, Machine, Ours, Upstream, address_of, network};

const CROWD: usize = 50;

#[test]
fn fifty_at_once_get_addresses_of_their_own() {
    let machine = Machine::new();
    let config = network(&machine, "net");
    let pods: Vec<_> = (0..CROWD).map(|number| machine.pod(&format!("pod{number}"))).collect();
    let each = |work: &(dyn Fn(usize) -> Value + Sync)| -> Vec<Value> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CROWD).map(|number| scope.spawn(move || work(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let id = |number: usize| format!("c{number}");
    // Upstream's host-local takes from the same folder in between.
    let theirs = json!({"cniVersion": "1.1.0", "name": "net", "ipam": config["ipam"]});
    let portmap = |number: usize| {
        let port = 10000 + number;
        json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "backend": "nftables",
            "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}})
    };
    let results = each(&|number| {
        if number % 10 == 9 {
            let mut call = Call::new(Upstream, "host-local", "ADD", &theirs, &id(number));
            call.netns = pods[number].0.clone();
            return call.done(&machine);
        }
        let result = Call::new(Ours, "bridge", "ADD", &config, &id(number)).pod(&pods[number]).done(&machine);
        let ports = Call::new(Ours, "portmap", "ADD", &portmap(number), &id(number)).pod(&pods[number]);
        ports.previous(&result).done(&machine)
    });
    for v6 in [false, true] {
        let addresses: BTreeSet<_> = results.iter().map(|result| address_of(result, v6)).collect();
        assert_eq!(addresses.len(), CROWD);
    }
    assert_eq!(machine.pairs().len(), CROWD - CROWD / 10);
    let dnat = machine.rules().iter().filter(|rule| rule.contains("dnat to")).count();
    assert_eq!(dnat, 2 * (CROWD - CROWD / 10));
    each(&|number| {
        Call::new(Ours, "portmap", "DEL", &portmap(number), &id(number)).pod(&pods[number]).done(&machine);
        Call::new(Ours, "bridge", "DEL", &config, &id(number)).pod(&pods[number]).done(&machine)
    });
    machine.assert_empty("net");
}
