//! Objects that the node does nothing with: pod templates.

/// Pod templates.
pub mod pod_templates {
    use orlop_tests::case::{Case, image};
    use serde_json::{Value, json};

    use crate::shape::watched;

    const KIND: &str = "podtemplates";

    fn template(name: &str, labels: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name, "labels": labels},
            "template": {"spec": {"containers": [{"name": "c", "image": image("busybox")}]}}})
    }

    /// Made, found everywhere, patched, deleted, and all of it watched.
    pub fn life(case: &Case<'_>) {
        let api = &case.cluster.api;
        case.make(KIND, &template("one", json!({"stage": "made"})));
        let made = api.get(&case.path(KIND, "one"));
        assert_eq!(made["template"]["spec"]["containers"][0]["name"], "c");
        assert_eq!(made["template"]["spec"]["restartPolicy"], "Always", "defaults are set");
        api.must("PATCH", &case.path(KIND, "one"), Some(&json!({"metadata": {"labels": {"stage": "patched"}}})));
        let all = api.get("/api/v1/podtemplates?labelSelector=stage=patched");
        assert!(all["items"].as_array().unwrap().iter().any(|one| one["metadata"]["namespace"] == case.namespace));
        api.must("DELETE", &case.path(KIND, "one"), None);
        assert!(api.find(&case.path(KIND, "one")).is_none());
        let events = watched(case, KIND, made["metadata"]["resourceVersion"].as_str().unwrap());
        let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["MODIFIED", "DELETED"]);
    }

    /// All of a label go at once.
    pub fn delete_collection(case: &Case<'_>) {
        for name in ["one", "two", "three"] {
            case.make(KIND, &template(name, json!({"set": "many"})));
        }
        let list = || case.cluster.api.get(&case.path(KIND, ""))["items"].as_array().unwrap().len();
        assert_eq!(list(), 3);
        case.cluster.api.must("DELETE", &format!("{}?labelSelector=set=many", case.path(KIND, "")), None);
        assert_eq!(list(), 0);
    }

    /// One is replaced.
    pub fn replace(case: &Case<'_>) {
        case.make(KIND, &template("one", json!({})));
        let mut one = case.cluster.api.get(&case.path(KIND, "one"));
        one["metadata"]["annotations"] = json!({"updated": "true"});
        case.cluster.api.must("PUT", &case.path(KIND, "one"), Some(&one));
        assert_eq!(case.cluster.api.get(&case.path(KIND, "one"))["metadata"]["annotations"]["updated"], "true");
    }
}
