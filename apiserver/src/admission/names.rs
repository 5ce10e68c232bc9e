//! The rules of names (RFC 1123, RFC 1035 and Kubernetes' qualified names), with Kubernetes' wording.

/// Longest label of a name.
const LABEL_MAX: usize = 63;
/// Longest subdomain.
const SUBDOMAIN_MAX: usize = 253;

/// Text for a name that is no subdomain.
pub const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
/// Text for a name that is no label.
pub const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// Text for a name that is no qualified name.
pub const QUALIFIED_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// Text for a label's value.
pub const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn ends_well(bytes: &[u8], good: impl Fn(u8) -> bool) -> bool {
    bytes.first().is_some_and(|byte| good(*byte)) && bytes.last().is_some_and(|byte| good(*byte))
}

/// True for an RFC 1123 label.
pub fn is_label(name: &str) -> bool {
    name.len() <= LABEL_MAX && is_label_of_any_length(name)
}

fn is_label_of_any_length(name: &str) -> bool {
    ends_well(name.as_bytes(), lower_alphanumeric) && name.bytes().all(|byte| lower_alphanumeric(byte) || byte == b'-')
}

/// True for an RFC 1123 subdomain.
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= SUBDOMAIN_MAX && name.split('.').all(is_label_of_any_length)
}

fn is_name_part(name: &str) -> bool {
    ends_well(name.as_bytes(), |byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// True for `name` or `domain/name`.
pub fn is_qualified_name(name: &str) -> bool {
    let (domain, name) = name.split_once('/').map_or((None, name), |(domain, name)| (Some(domain), name));
    name.len() <= LABEL_MAX && is_name_part(name) && domain.is_none_or(is_subdomain)
}

/// True for the value of a label.
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || (value.len() <= LABEL_MAX && is_name_part(value))
}

/// True for a key of a ConfigMap or Secret.
pub fn is_config_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= SUBDOMAIN_MAX
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && key != "."
        && !key.starts_with("..")
}

/// True for the name of a port: at most 15 characters, one letter at least.
pub fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && ends_well(name.as_bytes(), lower_alphanumeric)
        && name.bytes().all(|byte| lower_alphanumeric(byte) || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
}

/// True for the name of a sysctl, with dots or slashes between its parts.
pub fn is_sysctl(name: &str) -> bool {
    let part = |part: &str| {
        ends_well(part.as_bytes(), lower_alphanumeric)
            && part.bytes().all(|byte| lower_alphanumeric(byte) || matches!(byte, b'-' | b'_'))
    };
    name.len() <= SUBDOMAIN_MAX && name.split(['.', '/']).all(part)
}

/// What is wrong with the name of a port; nothing when it is good.
pub fn port_name_faults(name: &str) -> Vec<&'static str> {
    let mut faults = Vec::new();
    if name.len() > 15 {
        faults.push("must be no more than 15 characters");
    }
    if !name.bytes().all(|byte| lower_alphanumeric(byte) || byte == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        faults.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        faults.push("must not begin or end with a hyphen");
    }
    faults
}

/// True for the name of an environment variable (relaxed: printable ASCII without `=`).
pub fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-b", "1a", "a.b"] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", "a/b"] {
            assert!(!is_subdomain(bad), "{bad}");
        }
        assert!(
            is_qualified_name("a.b/C_d.e")
                && !is_qualified_name("/c")
                && !is_qualified_name("A/b")
                && !is_qualified_name("a/b/c")
        );
        assert!(is_label_value("") && !is_label_value("-"));
        assert!(is_port_name("http") && !is_port_name("8080") && !is_port_name("a--b"));
        assert!(is_config_key("a.conf") && !is_config_key("..a") && !is_config_key("a/b"));
    }
}
