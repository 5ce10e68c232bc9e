//! The resources of the API as one table; everything that differs by resource and is a fact, not behaviour.

mod core_resources;
mod group_resources;

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What a resource can do: the verbs of discovery.
pub type Verbs = &'static [&'static str];

/// The verbs of a stored resource.
pub const STORED: Verbs = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// The verbs of namespaces and services, which can't be deleted as a collection.
pub const STORED_SINGLY: Verbs = &["create", "delete", "get", "list", "patch", "update", "watch"];
/// The verbs of a question that is answered and not stored.
pub const ASKED: Verbs = &["create"];
/// The verbs of a part of an object.
pub const PART: Verbs = &["get", "patch", "update"];

/// A part of a resource with an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Last part of the address.
    pub name: &'static str,
    /// Kind of what is sent and answered.
    pub kind: &'static str,
    /// Group of that kind, when it isn't the resource's.
    pub group: Option<&'static str>,
    /// Version of that kind, when it isn't the resource's.
    pub version: Option<&'static str>,
    /// What can be done.
    pub verbs: Verbs,
}

const fn part(name: &'static str, kind: &'static str, verbs: Verbs) -> Subresource {
    Subresource { name, kind, group: None, version: None, verbs }
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Plural name, as in addresses.
    pub plural: &'static str,
    /// Singular name.
    pub singular: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Short names of the command line.
    pub short_names: &'static [&'static str],
    /// Categories, such as `all`.
    pub categories: &'static [&'static str],
    /// True when objects lie in namespaces.
    pub namespaced: bool,
    /// First part of the key in the store; shared by versions of one thing.
    pub storage: &'static str,
    /// What can be done.
    pub verbs: Verbs,
    /// Parts with addresses of their own.
    pub subresources: &'static [Subresource],
    /// Selectable fields besides name and namespace, with the pointer to each.
    pub selectable_fields: &'static [(&'static str, &'static str)],
    /// Name of the schema in OpenAPI.
    pub schema: &'static str,
    /// The last form is answered when an object is deleted, not a Status.
    pub answers_deleted: bool,
    /// `metadata.generation` counts changes of the spec.
    pub counts_generation: bool,
    /// Objects may be lost in a power cut for a second's worth (events, leases).
    pub short_lived: bool,
    /// An update of a missing object makes it.
    pub update_creates: bool,
    /// How names are checked.
    pub name_rule: NameRule,
}

/// How names are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
}

impl Resource {
    const fn new(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        singular: &'static str,
        kind: &'static str,
    ) -> Resource {
        Resource {
            group,
            version,
            plural,
            singular,
            kind,
            short_names: &[],
            categories: &[],
            namespaced: true,
            storage: plural,
            verbs: STORED,
            subresources: &[],
            selectable_fields: &[],
            schema: "",
            answers_deleted: false,
            counts_generation: false,
            short_lived: false,
            update_creates: false,
            name_rule: NameRule::Subdomain,
        }
    }

    /// `v1` or `group/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `leases.coordination.k8s.io`: as messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod` or `Lease.coordination.k8s.io`: as messages about validity name it.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.into() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// True when objects are kept.
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// The part of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|part| part.name == name)
    }

    /// True when status has an address of its own.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

/// Every resource, core group first, in the order of discovery.
pub fn all() -> impl Iterator<Item = &'static Resource> {
    core_resources::CORE.iter().chain(group_resources::GROUPS)
}

static INDEX: LazyLock<BTreeMap<(&'static str, &'static str, &'static str), &'static Resource>> =
    LazyLock::new(|| all().map(|resource| ((resource.group, resource.version, resource.plural), resource)).collect());

/// The resource at an address.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    INDEX.get(&(group, version, plural)).copied()
}

/// The resource of a kind.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    all().find(|resource| resource.group == group && resource.version == version && resource.kind == kind)
}

/// A core resource that the program itself uses.
///
/// # Panics
/// When the table has no such row.
pub fn core(plural: &str) -> &'static Resource {
    find("", "v1", plural).unwrap_or_else(|| panic!("the table has {plural}"))
}

/// Groups besides core, each with its versions, preferred first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for resource in group_resources::GROUPS {
        match found.iter_mut().find(|(group, _)| *group == resource.group) {
            Some((_, versions)) if versions.contains(&resource.version) => {}
            Some((_, versions)) => versions.push(resource.version),
            None => found.push((resource.group, vec![resource.version])),
        }
    }
    found
}

/// Stored resources, each storage once.
pub fn storages() -> Vec<&'static Resource> {
    let mut found: Vec<&'static Resource> = Vec::new();
    for resource in all().filter(|resource| resource.is_stored()) {
        if !found.iter().any(|other| other.storage == resource.storage) {
            found.push(resource);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_named() {
        for resource in all() {
            assert!(
                find(resource.group, resource.version, resource.plural)
                    .is_some_and(|found| std::ptr::eq(found, resource))
            );
            assert!(resource.schema.starts_with("io.k8s.api."), "{}", resource.kind);
            assert!(resource.schema.ends_with(&format!(".{}", resource.kind)), "{}", resource.kind);
        }
        assert_eq!(find("", "v1", "events").unwrap().storage, find("events.k8s.io", "v1", "events").unwrap().storage);
    }
}
