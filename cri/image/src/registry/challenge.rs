//! The `WWW-Authenticate` header (RFC 9110, 11.6.1), as far as registries use it.

use std::collections::BTreeMap;

/// How a registry wants to be convinced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from a token server.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry there.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
}

/// Longest header looked at, in bytes.
const HEADER_BYTES_MAX: usize = 8192;

/// Reads all challenges of one header value; schemes that we don't know are left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = &header[..header.len().min(HEADER_BYTES_MAX)];
    if !header.is_char_boundary(rest.len()) {
        return found;
    }
    while let Some((scheme, after)) = take_token(rest.trim_start_matches([' ', '\t', ','])) {
        let (parameters, after) = take_parameters(after);
        rest = after;
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameters.get("realm")
        {
            let field = |name: &str| parameters.get(name).filter(|value| !value.is_empty()).cloned();
            found.push(Challenge::Bearer { realm: realm.clone(), service: field("service"), scope: field("scope") });
        }
    }
    found
}

fn take_token(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Takes `name=value, …` until something that is no parameter: the next scheme.
fn take_parameters(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut parameters = BTreeMap::new();
    loop {
        let here = text.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = take_token(here) else { return (parameters, here) };
        let Some(value) = after.trim_start().strip_prefix('=') else { return (parameters, here) };
        let Some((value, after)) = take_value(value.trim_start()) else { return (parameters, "") };
        parameters.entry(name.to_ascii_lowercase()).or_insert(value);
        text = after;
    }
}

fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return take_token(text).map(|(value, after)| (value.to_owned(), after));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        let table = [
            (r#"Basic realm="x""#, vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/token",service="r",scope="repository:a/b:pull,push""#,
                vec![bearer("https://a/token", Some("r"), Some("repository:a/b:pull,push"))],
            ),
            (r#"bearer REALM=https"#, vec![bearer("https", None, None)]),
            (
                r#"Negotiate, Basic realm="a, b", Bearer realm="q\"q""#,
                vec![Challenge::Basic, bearer("q\"q", None, None)],
            ),
            (r#"Bearer service="none""#, vec![]),
            (r#"Bearer realm="open"#, vec![]),
            ("", vec![]),
            ("=,=\"", vec![]),
        ];
        for (header, expected) in table {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics(header in ".{0,200}") {
            parse(&header);
        }
    }
}
