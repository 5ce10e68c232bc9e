//! Pods that do not come from the API, and volumes that a driver makes.

use orlop_tests::case::{Case, container, image};
use orlop_tests::world::until;

/// A manifest in the node's folder runs and shows in the API as a mirror, which can't end it; the file's end does.
pub fn static_pods_have_mirrors(case: &Case<'_>) {
    let file = case.cluster.manifests().join("still.yaml");
    let manifest = |word: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: still, namespace: {}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - name: c\n    image: {}\n    command: [sh, -c, 'echo {word}; exec sleep 1000']\n",
            case.namespace,
            image("busybox")
        )
    };
    std::fs::write(&file, manifest("first")).unwrap();
    let name = "still-node-1";
    let path = case.path("pods", name);
    until("the mirror is there", || case.cluster.api.find(&path).map(drop));
    let pod = case.until_ready(name);
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(pod["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(case.log(name, ""), "first");
    let id = container(&pod, "c")["containerID"].clone();
    let _ = case.say(&["delete", "pod", name, "--force", "--grace-period=0"]);
    let again = until("the mirror is back", || {
        let pod = case.cluster.api.find(&path)?;
        (pod["metadata"]["uid"] != case.pod(name)["metadata"]["creationTimestamp"]
            && container(&pod, "c")["containerID"].is_string())
        .then_some(pod)
    });
    assert_eq!(container(&again, "c")["containerID"], id, "the container did not notice");
    std::fs::write(&file, manifest("second")).unwrap();
    until("the new manifest runs", || {
        let pod = case.cluster.api.find(&path)?;
        let running = container(&pod, "c")["state"]["running"].is_object();
        (running && container(&pod, "c")["containerID"] != id && case.log(name, "") == "second").then_some(())
    });
    std::fs::write(case.cluster.manifests().join("wrong.yaml"), "apiVersion: v1\nkind: Pod\nspec: [").unwrap();
    std::fs::remove_file(&file).unwrap();
    case.until_gone(name);
    std::fs::remove_file(case.cluster.manifests().join("wrong.yaml")).unwrap();
}
