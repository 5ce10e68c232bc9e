//! `loopback`, beside upstream's.

use serde_json::json;

use crate::machine::{Call, Machine, Ours, Upstream};

#[test]
fn lo_goes_up_and_down_as_upstreams() {
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let seen = [Ours, Upstream].map(|maker| {
            let machine = Machine::new();
            let pod = machine.pod("pod");
            let config = json!({"cniVersion": version, "name": "lo", "type": "loopback"});
            let call = |command| {
                let mut call = Call::new(maker, "loopback", command, &config, "one").pod(&pod);
                call.ifname = "lo";
                call
            };
            let mut result = call("ADD").done(&machine);
            let flags = |name: &str| pod.ip("link show dev lo")[0]["flags"].to_string().contains(name);
            assert!(flags("\"UP\""));
            if version != "0.3.1" {
                call("CHECK").previous(&result).done(&machine);
            }
            call("DEL").done(&machine);
            assert!(!flags("\"UP\""));
            if version != "0.3.1" {
                assert!(call("CHECK").previous(&result).run(&machine).is_err());
            }
            call("DEL").done(&machine);
            result["interfaces"][0]["sandbox"].take();
            // Upstream's answers in the words of 1.0.0 here, also before.
            result.as_object_mut().unwrap().remove("dns");
            for ip in result["ips"].as_array_mut().unwrap() {
                let family = ip.as_object_mut().unwrap().remove("version");
                assert_eq!(maker == Ours && version == "0.3.1", family.is_some());
            }
            result
        });
        assert_eq!(seen[0], seen[1], "{version}");
    }
}
