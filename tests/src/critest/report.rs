//! What critest says of its specs, and what of it is expected: the table of exceptions.

use serde::Deserialize;

use super::Subject;

/// A spec that was chosen, and how it ended.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its whole name.
    pub name: String,
    /// How it ended.
    pub end: End,
    /// What it said when it did not pass.
    pub message: String,
    /// How long it took.
    pub seconds: f64,
}

/// How a spec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It passed.
    Passed,
    /// It failed, panicked or was not in time.
    Failed,
    /// It skipped itself.
    Skipped,
}

/// A spec that does not pass for a reason that is known.
struct Exception {
    /// A part of the names of the specs.
    specs: &'static str,
    /// How they end.
    end: End,
    /// A part of what they say.
    says: &'static str,
    /// Why that is as it should be.
    reason: &'static str,
    /// Whether the reason is given on this machine, with this runtime.
    given: fn(Subject) -> bool,
}

/// Every exception there is.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        specs: " AppArmor ",
        end: End::Skipped,
        says: "AppArmor is disabled on this host",
        reason: "this kernel has no AppArmor, or it is off",
        given: |_| !has_apparmor(),
    },
    Exception {
        specs: "public image with digest should be pulled and removed",
        end: End::Failed,
        says: "test-image-digest@sha256:",
        reason: "it asks for the original image by its digest, and images made here have other digests",
        given: |_| true,
    },
    Exception {
        specs: " NRI ",
        end: End::Skipped,
        says: "NRI socket not configured",
        reason: "NRI is not there; only critests newer than the pinned one ask for it",
        given: |_| true,
    },
];

/// Whether the kernel confines by AppArmor.
fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

impl Spec {
    /// Why it is right that it did not pass; none when it is not.
    #[must_use]
    pub fn excuse(&self, subject: Subject) -> Option<&'static str> {
        let fits = |exception: &&Exception| {
            self.name.contains(exception.specs)
                && self.end == exception.end
                && self.message.contains(exception.says)
                && (exception.given)(subject)
        };
        EXCEPTIONS.iter().find(fits).map(|exception| exception.reason)
    }

    /// The name without what stands before all names.
    #[must_use]
    pub fn short(&self) -> &str {
        self.name.strip_prefix("[k8s.io] ").unwrap_or(&self.name)
    }
}

/// A run as ginkgo reports it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Vec<SpecReport>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    run_time: u64,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

/// The specs of a report; those that were not chosen are left out.
///
/// # Errors
/// With what is wrong, when it is not such a report or something around the specs failed.
pub fn read(text: &str) -> Result<Vec<Spec>, String> {
    let reports: Vec<Report> = serde_json::from_str(text).map_err(|error| format!("critest's report: {error}"))?;
    let mut specs = Vec::new();
    for one in reports.into_iter().flat_map(|report| report.spec_reports) {
        if one.leaf_node_type != "It" {
            if one.state != "passed" {
                return Err(format!("{} ended with {}: {}", one.leaf_node_type, one.state, one.failure.message));
            }
            continue;
        }
        let end = match one.state.as_str() {
            "passed" => End::Passed,
            // What the focus or the choice of no benchmarks leaves out says nothing.
            "skipped" if one.failure.message.is_empty() => continue,
            "skipped" | "pending" => End::Skipped,
            _ => End::Failed,
        };
        let mut words = one.container_hierarchy_texts.unwrap_or_default();
        words.push(one.leaf_node_text);
        let message = match one.state.as_str() {
            "passed" | "skipped" | "failed" => one.failure.message,
            state => format!("{state}: {}", one.failure.message),
        };
        specs.push(Spec { name: words.join(" "), end, message, seconds: one.run_time as f64 / 1e9 });
    }
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(entries: &str) -> Result<Vec<Spec>, String> {
        read(&format!(r#"[{{"SpecReports": [{entries}]}}]"#))
    }

    fn entry(kind: &str, name: &str, state: &str, message: &str) -> String {
        format!(
            r#"{{"ContainerHierarchyTexts": ["[k8s.io] Group"], "LeafNodeType": "{kind}", "LeafNodeText": "{name}",
                "State": "{state}", "RunTime": 1500000000, "Failure": {{"Message": "{message}"}}}}"#
        )
    }

    #[test]
    fn ends_are_read_and_what_was_not_chosen_is_left_out() {
        let cases = [
            ("passed", "", Some((End::Passed, ""))),
            ("failed", "no", Some((End::Failed, "no"))),
            ("panicked", "oh", Some((End::Failed, "panicked: oh"))),
            ("timedout", "", Some((End::Failed, "timedout: "))),
            ("interrupted", "", Some((End::Failed, "interrupted: "))),
            ("skipped", "can't", Some((End::Skipped, "can't"))),
            ("skipped", "", None),
        ];
        for (state, message, expected) in cases {
            let specs = report(&entry("It", "works", state, message)).unwrap();
            let seen = specs.first().map(|spec| (spec.end, spec.message.as_str()));
            assert_eq!(seen, expected, "{state}");
            for spec in specs {
                assert_eq!((spec.name.as_str(), spec.short()), ("[k8s.io] Group works", "Group works"));
                assert!((spec.seconds - 1.5).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_failure_around_the_specs_is_an_error() {
        assert!(report(&entry("BeforeSuite", "", "passed", "")).unwrap().is_empty());
        let said = report(&entry("BeforeSuite", "", "failed", "no socket")).unwrap_err();
        assert_eq!(said, "BeforeSuite ended with failed: no socket");
        assert!(read("{").unwrap_err().starts_with("critest's report: "));
    }

    #[test]
    fn an_exception_wants_the_spec_the_end_and_the_words() {
        let digest = "Image Manager public image with digest should be pulled and removed [Conformance]";
        let named = "failed to pull registry/test-image-digest@sha256:97";
        let cases = [
            (digest, End::Failed, named, true),
            (digest, End::Failed, "the server is gone", false),
            (digest, End::Skipped, named, false),
            ("Image Manager public image with tag should be pulled", End::Failed, named, false),
        ];
        for (name, end, message, excused) in cases {
            let spec = Spec { name: name.into(), end, message: message.into(), seconds: 0.0 };
            assert_eq!(spec.excuse(Subject::Orlop).is_some(), excused, "{name} {message}");
        }
    }
}
