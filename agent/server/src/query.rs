//! The query of a request's URL. Pure.

/// Keys and values, decoded, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Takes the query of a URL apart; what is not UTF-8 after decoding becomes U+FFFD.
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All values of a key.
    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    }

    /// A yes or no, in all spellings that Kubernetes takes; absent is no.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key).unwrap_or("false") {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(format!("{key}: {other:?} is neither true nor false")),
        }
    }

    /// Whether any of the keys is set; nonsense counts as not set, as the kubelet has it for streams.
    pub(crate) fn any(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.flag(key).unwrap_or(false))
    }
}

/// `%XX` and `+`, as forms encode.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', _, _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo+a%20b%26%C3%A9&tty=1&x&stdin=%zz"));
        assert_eq!(query.all("command"), ["sh", "-c", "echo a b&é"]);
        assert!(query.flag("tty").unwrap() && query.any(&["input", "tty"]) && !query.any(&["input", "x"]));
        assert!(query.flag("stdin").is_err() && !query.any(&["stdin"]));
        assert!(Query::parse(None).all("command").is_empty());
    }
}
