//! Files of variables that a container of the pod has written (`fileKeyRef`): a small, strict part of the shell's syntax.

/// A line that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct EnvFileError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: &'static str,
}

/// The value of `key`, none if the file does not have it or has it without a value.
///
/// A line is `KEY='value'`; a value may span lines, nothing in it is special. After it a comment may follow. Empty lines and
/// those that begin with `#` are left out. What lies behind the wanted key is not looked at.
///
/// # Errors
/// [`EnvFileError`] with the first line before the key that is none of these.
pub fn value_in_file(text: &str, key: &str) -> Result<Option<String>, EnvFileError> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((line, content)) = lines.next() {
        let refuse = |why| Err(EnvFileError { line, why });
        let content = content.trim_start_matches([' ', '\t']);
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let Some((name, value)) = content.split_once('=') else { return refuse("there is no '='") };
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return refuse("there is no name before '='");
        }
        if name.ends_with([' ', '\t']) {
            return refuse("there is white space before '='");
        }
        let found = match value.strip_prefix('\'') {
            Some(rest) => quoted(rest, line, &mut lines)?,
            // As in the shell: the name is given no value, whatever comes behind the space.
            None if value.starts_with([' ', '\t']) => String::new(),
            None => return refuse("the value is not in single quotes"),
        };
        if name == key {
            return Ok(Some(found).filter(|found| !found.is_empty()));
        }
    }
    Ok(None)
}

/// The rest of a quoted value, up to the closing quote.
fn quoted<'a>(
    first: &'a str,
    begun: usize,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
) -> Result<String, EnvFileError> {
    let mut value = String::new();
    let (mut line, mut rest) = (begun, first);
    loop {
        if let Some((end, behind)) = rest.split_once('\'') {
            value.push_str(end);
            let behind = behind.trim_start_matches([' ', '\t']);
            if !behind.is_empty() && !behind.starts_with('#') {
                return Err(EnvFileError { line, why: "something other than a comment follows the closing quote" });
            }
            return Ok(value);
        }
        value.push_str(rest);
        value.push('\n');
        (line, rest) = lines.next().ok_or(EnvFileError { line: begun, why: "the quote is never closed" })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found() {
        for (text, want) in [
            ("KEY='v'", Some("v")),
            ("  KEY='v'  # why", Some("v")),
            ("\tKEY='v'#why\r\n", Some("v")),
            ("# KEY='c'\n\nOTHER='o'\nKEY='v'\nKEY='later'", Some("v")),
            ("OTHER='a\nKEY=b'\nKEY='v'", Some("v")),
            ("KEY='a\n  b\n'", Some("a\n  b\n")),
            ("KEY='$HOME \\n \"x\"'", Some("$HOME \\n \"x\"")),
            ("KEY='v'\nnonsense", Some("v")),
            ("KEY=''", None),
            ("KEY= 'v'", None),
            ("key='v'", None),
            ("", None),
        ] {
            assert_eq!(value_in_file(text, "KEY").unwrap().as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn lines_that_are_no_assignment_are_named() {
        for (text, line, word) in [
            ("nonsense", 1, "no '='"),
            ("A='1'\n='v'", 2, "no name"),
            ("A ='v'", 1, "white space"),
            ("A=v", 1, "single quotes"),
            ("A=\"v\"", 1, "single quotes"),
            ("A='v' b", 1, "follows"),
            ("A='1'\nB='v\nw", 2, "never closed"),
            ("A='1\n2' x", 2, "follows"),
        ] {
            let error = value_in_file(text, "KEY").unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(error.why.contains(word), "{text:?}: {error}");
        }
    }
}
