//! The table of all rows in `docs/conformance.md`: it has to agree with the list of cases, and says which must fail.

use std::collections::{BTreeMap, BTreeSet};

use orlop_tests::cluster::Backend;
use orlop_tests::runner::Known;

/// The page.
const PAGE: &str = include_str!("../../../docs/conformance.md");
/// Stands for a case that is not there yet.
const NO_CASE: &str = "—";

/// A row.
struct Row {
    /// Source file and text: what makes it a row of its own.
    name: (&'static str, &'static str),
    /// The case, where there is one.
    case: Option<&'static str>,
    state: State,
}

/// How the case of a row ends.
enum State {
    Passes,
    /// With one backend or with all of them, for a reason.
    Fails(Vec<Backend>, &'static str),
    /// Not written yet.
    Later,
}

/// The page's rows: lines of four cells whose first one is a file.
fn rows() -> Vec<Row> {
    let cells = |line: &'static str| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        <[&str; 4]>::try_from(cells).ok().filter(|cells| cells[0].ends_with(".go`"))
    };
    let plain = |cell: &'static str| cell.trim_matches('`');
    let row = |[file, text, case, state]: [&'static str; 4]| Row {
        name: (plain(file), plain(text)),
        case: (case != NO_CASE).then(|| plain(case)),
        state: state_of(state),
    };
    PAGE.lines().filter_map(cells).map(row).collect()
}

fn state_of(text: &'static str) -> State {
    let (state, why) = text.split_once(": ").unwrap_or((text, ""));
    match (state, why) {
        ("passes", "") => State::Passes,
        ("later", why) if !why.is_empty() => State::Later,
        ("fails", why) if !why.is_empty() => State::Fails(Backend::ALL.into(), why),
        (state, why) if !why.is_empty() => {
            let backend = Backend::ALL.into_iter().find(|one| state.strip_prefix("fails with ") == Some(one.name()));
            State::Fails(vec![backend.unwrap_or_else(|| panic!("the page has a state {text:?}"))], why)
        }
        _ => panic!("the page has a state {text:?}"),
    }
}

/// Cases that have to fail.
pub fn known() -> Vec<Known> {
    let mut known = Vec::new();
    for row in rows() {
        let (Some(case), State::Fails(backends, why)) = (row.case, row.state) else { continue };
        let named = |backend: Backend| Known { name: format!("{}::{case}", backend.name()), why: why.into() };
        known.extend(backends.into_iter().map(named));
    }
    known
}

/// Each row once, each row with a case or the reason why there is none, no case without a row, none with two.
pub fn every_row_has_a_case() {
    let own = |name: &str| name.starts_with("table::");
    let cases: BTreeSet<&str> = crate::CASES.iter().map(|entry| entry.name).filter(|name| !own(name)).collect();
    let mut wrong = Vec::new();
    let (mut seen, mut of_case) = (BTreeSet::new(), BTreeMap::new());
    for row in rows() {
        let (file, text) = row.name;
        if !seen.insert(row.name) {
            wrong.push(format!("{file}, {text:?} is there twice"));
        }
        match (row.case, &row.state) {
            (None, State::Later) => {}
            (Some(case), State::Passes | State::Fails(..)) => {
                if !cases.contains(case) {
                    wrong.push(format!("{file}, {text:?} names {case}, which is no case"));
                }
                if of_case.insert(case, text).is_some() {
                    wrong.push(format!("{case} is the case of two rows"));
                }
            }
            (_, _) => wrong.push(format!("{file}, {text:?}: a case, or `later` with the reason, not both")),
        }
    }
    wrong.extend(cases.iter().filter(|case| !of_case.contains_key(*case)).map(|case| format!("{case} has no row")));
    assert!(wrong.is_empty(), "docs/conformance.md and the cases differ:\n{}", wrong.join("\n"));
    assert!(!seen.is_empty(), "docs/conformance.md has no rows");
}
