//! Who a container runs as: the request, the image's word and the image's own passwd and group files.

use crate::{SpecError, wrong};

/// What is known of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

impl ResolvedUser {
    /// Adds supplementary groups.
    pub fn add_groups(&mut self, groups: &[u32]) {
        for group in groups {
            if !self.groups.contains(group) {
                self.groups.push(*group);
            }
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserRequest<'a> {
    /// `runAsUser`.
    pub uid: Option<i64>,
    /// `run_as_username`.
    pub name: &'a str,
    /// `runAsGroup`.
    pub gid: Option<i64>,
    /// The image's `USER`: `user[:group]`.
    pub image_user: &'a str,
    /// Groups that are added in any case.
    pub supplemental: &'a [i64],
    /// Groups of the image's group file don't count.
    pub strict: bool,
}

/// Works out the identity. Only digits are a number and never a name; numbers are exact 32-bit values.
///
/// # Errors
/// Names the field that can't be resolved.
pub fn resolve(request: &UserRequest<'_>, passwd: &str, group: &str) -> Result<ResolvedUser, SpecError> {
    let (image_user, image_group) = request.image_user.split_once(':').unwrap_or((request.image_user, ""));
    let (user, field) = match (request.uid, request.name) {
        (Some(uid), _) => (uid.to_string(), "run_as_user"),
        (None, name) if !name.is_empty() => (name.to_string(), "run_as_username"),
        _ => (image_user.to_string(), "the image's USER"),
    };
    let from_image = field == "the image's USER";
    let user = if user.is_empty() { "0".to_string() } else { user };
    let entry = find_user(&user, passwd);
    let uid = match (number(&user), &entry) {
        (Some(uid), _) => uid,
        (None, _) if is_numeric(&user) => return Err(wrong(field, format!("{user:?} is no user number of 32 bits"))),
        (None, Some(entry)) => entry.uid,
        (None, None) => return Err(wrong(field, format!("no user {user:?} in the image's /etc/passwd; use a number"))),
    };
    let gid = match request.gid {
        Some(gid) => {
            u32::try_from(gid).map_err(|_| wrong("run_as_group", format!("{gid} is no group number of 32 bits")))?
        }
        None if from_image && !image_group.is_empty() => find_group(image_group, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    if !request.strict
        && let Some(entry) = &entry
    {
        groups.extend(groups_of(&entry.name, group));
    }
    for extra in request.supplemental {
        let extra =
            u32::try_from(*extra).map_err(|_| wrong("supplemental_groups", format!("{extra} is no group number")))?;
        groups.push(extra);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".into());
    Ok(ResolvedUser { uid, gid, groups, home })
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn number(text: &str) -> Option<u32> {
    // Rust would take a plus sign too.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Meant as a number, a good one or not: never a name.
fn is_numeric(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_digit() || first == b'-' || first == b'+')
        && text.bytes().skip(1).all(|byte| byte.is_ascii_digit())
}

/// The entry of a name, or of a number.
fn find_user(user: &str, passwd: &str) -> Option<Entry> {
    let wanted = number(user);
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) =
            (fields.next()?, fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or_default();
        let fits = match wanted {
            Some(number) => uid == number,
            None => !is_numeric(user) && name == user,
        };
        fits.then(|| Entry { name: name.into(), uid, gid, home: home.into() })
    })
}

fn find_group(name: &str, group: &str) -> Result<u32, SpecError> {
    let field = "the image's USER";
    if let Some(gid) = number(name) {
        return Ok(gid);
    }
    let found = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found
        .filter(|_| !is_numeric(name))
        .ok_or_else(|| wrong(field, format!("no group {name:?} in the image's /etc/group")))
}

fn groups_of<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else { return None };
        members.split(',').any(|member| member == user).then(|| gid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/sh\n1000:x:0:0:trap:/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nextra:x:50:www,other\n";

    #[test]
    fn identities() {
        let image = |image_user| UserRequest { image_user, ..UserRequest::default() };
        for (user, uid, gid, groups) in [
            ("", 0, 0, vec![0]),
            ("www", 33, 34, vec![34, 50]),
            ("33", 33, 34, vec![34, 50]),
            ("1000", 1000, 0, vec![0]),
            ("5:extra", 5, 50, vec![50]),
        ] {
            let found = resolve(&image(user), PASSWD, GROUP).unwrap();
            assert_eq!((found.uid, found.gid, found.groups), (uid, gid, groups), "{user:?}");
        }
        for bad in ["nobody", "-1", "+1", "4294967296", "www:nogroup"] {
            assert!(resolve(&image(bad), PASSWD, GROUP).is_err(), "{bad:?}");
        }
        let strict = UserRequest { name: "www", strict: true, supplemental: &[7], ..UserRequest::default() };
        assert_eq!(resolve(&strict, PASSWD, GROUP).unwrap().groups, [34, 7]);
    }
}
