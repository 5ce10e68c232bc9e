//! `orlop up` and `orlop down`: an instance from its first word to nothing.

use std::path::Path;

use orlop_tests::census::Census;
use orlop_tests::world::{World, read, run};

/// The machine's side of a world: links, tables of rules, and what lies in the instance's folder.
fn machine(world: &World) -> (String, String, Vec<std::path::PathBuf>) {
    let links = read(world.command("ip").args(["-o", "link"]));
    let tables = read(world.command("nft").args(["list", "tables"]));
    let entries = std::fs::read_dir(&world.root).unwrap().flatten().map(|entry| entry.path()).collect();
    (links, tables, entries)
}

#[test]
fn an_instance_leaves_nothing_behind() {
    let world = World::new();
    let (before, mark) = (machine(&world), world.root.display().to_string());
    let said = read(world.orlop().args(["up", "--detach"]));
    assert!(said.contains("the node is ready: export KUBECONFIG="), "{said}");
    world.load_image();
    let manifest = world.folder().join("pod.yaml");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: hello}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
               - {name: hello, image: 'localhost/test:1', command: [/hello], ports: [{containerPort: 8080, hostPort: 18080}]}\n";
    std::fs::write(&manifest, pod).unwrap();
    run(world.orlop().arg("apply").arg("-f").arg(&manifest));
    run(world.orlop().args(["wait", "hello"]));
    let page = read(world.command("curl").args(["--silent", "http://127.0.0.1:18080/"]));
    assert!(page.contains("Hello from Orlop"), "{page}");
    let during = machine(&world);
    assert!(during.1.contains("cni_hostport") && during.1.contains("cni_plugins_masquerade"), "{during:?}");
    run(world.orlop().arg("down"));
    assert_eq!(machine(&world), before);
    assert_eq!(Census::take(&mark), Census::default());
    let again = read(world.orlop().arg("down"));
    assert!(again.contains("nothing to stop"), "{again}");
    assert!(Path::new(&mark).exists(), "the folder itself was there before");
}
