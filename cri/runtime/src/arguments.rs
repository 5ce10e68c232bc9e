//! Reading a command line: flags by tables, in the spelling that Go's programs have (`-x`, `--x`, `--x=v`, `--x v`).

use crate::failure::Failure;

/// A flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name.
    pub name: &'static str,
    /// One letter that stands for it.
    pub short: &'static str,
    /// What its value is called; empty for a switch.
    pub value: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// A switch.
pub const fn switch(name: &'static str, short: &'static str, help: &'static str) -> Flag {
    Flag { name, short, value: "", help }
}

/// A flag with a value.
pub const fn value(name: &'static str, short: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, short, value, help }
}

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    flags: Vec<(&'static str, String)>,
    /// What is no flag.
    pub rest: Vec<String>,
}

impl Arguments {
    /// Reads arguments. With `stop` everything after the first that is no flag belongs to the rest.
    ///
    /// # Errors
    /// Names a flag that is not known, or lacks its value.
    pub fn read(table: &[Flag], arguments: &[String], stop: bool) -> Result<Arguments, Failure> {
        let mut read = Arguments::default();
        let mut left = arguments.iter();
        while let Some(argument) = left.next() {
            let name = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(name) = name.filter(|name| !name.is_empty()) else {
                if argument == "--" {
                    read.rest.extend(left.cloned());
                    break;
                }
                read.rest.push(argument.clone());
                if stop {
                    read.rest.extend(left.cloned());
                    break;
                }
                continue;
            };
            let (name, given) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            let flag = table.iter().find(|flag| flag.name == name || (!flag.short.is_empty() && flag.short == name));
            let flag = flag.ok_or_else(|| Failure::Usage(format!("flag provided but not defined: {argument}")))?;
            let text = match (flag.value.is_empty(), given) {
                (true, None) => "true".to_string(),
                (_, Some(given)) => given.to_string(),
                (false, None) => {
                    let next = left.next().cloned();
                    next.ok_or_else(|| Failure::Usage(format!("flag needs an argument: {argument}")))?
                }
            };
            if flag.value.is_empty() && text != "true" && text != "false" {
                return Err(Failure::Usage(format!("flag --{name}: {text:?} is not true or false")));
            }
            read.flags.push((flag.name, text));
        }
        Ok(read)
    }

    /// Whether a switch is on.
    pub fn has(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// The value of a flag; the last one counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a flag is there.
    pub fn given(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All values of a flag.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a flag as a number.
    ///
    /// # Errors
    /// When it is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let wrong = |text: &str| Failure::Usage(format!("flag --{name}: {text:?} is not a number that fits"));
        self.get(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }

    /// The one argument that is no flag: the container's id.
    ///
    /// # Errors
    /// When there are none or more.
    pub fn id(&self) -> Result<&str, Failure> {
        match &self.rest[..] {
            [id] => Ok(id),
            [] => Err(Failure::Usage("container id cannot be empty: give the id of a container".into())),
            more => Err(Failure::Usage(format!("one container id is wanted, not {}: {}", more.len(), more.join(" ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Flag; 3] =
        [switch("force", "f", ""), value("bundle", "b", "PATH", ""), value("env", "e", "NAME=VALUE", "")];

    fn read(line: &str, stop: bool) -> Result<Arguments, Failure> {
        Arguments::read(&TABLE, &line.split_whitespace().map(String::from).collect::<Vec<_>>(), stop)
    }

    #[test]
    fn every_spelling() {
        for line in ["--bundle /b -f c", "--bundle=/b --force c", "-b /b -force=true c", "c -bundle /b -f"] {
            let read = read(line, false).unwrap();
            assert_eq!((read.get("bundle"), read.has("force"), read.id().unwrap()), (Some("/b"), true, "c"), "{line}");
        }
        let exec = read("-e A=b --env=C=d c ls -f --bundle", true).unwrap();
        assert_eq!(exec.all("env").collect::<Vec<_>>(), ["A=b", "C=d"]);
        assert_eq!(exec.rest, ["c", "ls", "-f", "--bundle"]);
        assert!(!read("--force=false c", false).unwrap().has("force"));
        for (line, words) in
            [("--fly c", "not defined: --fly"), ("c --bundle", "needs an argument"), ("--force=maybe", "true or false")]
        {
            let said = read(line, false).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        assert!(read("", false).unwrap().id().is_err() && read("a b", false).unwrap().id().is_err());
    }
}
