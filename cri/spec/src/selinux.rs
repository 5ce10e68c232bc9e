//! SELinux options of pods and containers: looked at and not applied, as containerd does unless SELinux is switched on in
//! its configuration.

use orlop_proto::cri;

use crate::{SpecError, wrong};

/// Checks the form of a level, the one part that is refused where nothing is applied.
///
/// # Errors
/// Names the field.
pub(crate) fn check(field: &str, options: Option<&cri::SeLinuxOption>) -> Result<(), SpecError> {
    let level = options.map(|options| options.level.as_str()).filter(|level| !level.is_empty());
    match level {
        Some(level) if !is_level(level) => {
            let message = format!("{level:?} must be a sensitivity with categories, such as s0 or s0:c1,c2");
            Err(wrong(format!("{field}.selinux_options.level"), message))
        }
        _ => Ok(()),
    }
}

/// `s0`, `s0-s1`, and either with categories: `s0:c1.c5,c7`.
fn is_level(level: &str) -> bool {
    let (sensitivities, categories) = match level.split_once(':') {
        Some((sensitivities, categories)) => (sensitivities, Some(categories)),
        None => (level, None),
    };
    let numbered = |text: &str, letter: char, digits: usize| {
        text.strip_prefix(letter).is_some_and(|number| {
            (1..=digits).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let pair = |text: &str, mark: char, letter: char, digits: usize| match text.split_once(mark) {
        Some((first, last)) => numbered(first, letter, digits) && numbered(last, letter, digits),
        None => numbered(text, letter, digits),
    };
    pair(sensitivities, '-', 's', 1)
        && categories.is_none_or(|categories| categories.split(',').all(|part| pair(part, '.', 'c', 4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_a_form() {
        for level in ["", "s0", "s0-s3", "s0:c1", "s0:c1,c1023", "s0-s1:c1.c5,c7", "s9:c0.c1"] {
            let options = cri::SeLinuxOption { level: level.into(), user: "anything".into(), ..Default::default() };
            assert_eq!(check("f", Some(&options)), Ok(()), "{level}");
        }
        for level in ["0", "s", "s00", "s0:", "s0:c", "s0:c12345", "s0:c1,", "s0:c1.c2.c3", "s0-s1-s2", "gibberish"] {
            let options = cri::SeLinuxOption { level: level.into(), ..Default::default() };
            let said = check("f", Some(&options)).unwrap_err().to_string();
            assert!(said.starts_with("f.selinux_options.level: ") && said.contains(level), "{said}");
        }
        assert_eq!(check("f", None), Ok(()));
    }
}
