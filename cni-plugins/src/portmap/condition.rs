//! `conditionsV4` and `conditionsV6`: which connections are looked at, in the words of nftables.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use orlop_kernel::nftables::Step;

/// What is understood, for messages.
const KNOWN: &str = "ip|ip6 saddr|daddr [!=] ADDRESS[/PREFIX], iifname|oifname [!=] NAME, meta mark [!=] NUMBER";

/// Reads conditions: a list of words, or of texts of several words, as upstream's plugin joins them.
pub(crate) fn parse(conditions: &[String], v6: bool) -> Result<Vec<Step>, String> {
    if let Some(option) = conditions.first().filter(|first| first.starts_with(['-', '!'])) {
        return Err(format!("{option:?} is an option of iptables; the backend is nftables: {KNOWN}"));
    }
    let text = conditions.join(" ");
    let mut words = text.split_whitespace().peekable();
    let mut steps = Vec::new();
    while let Some(word) = words.next() {
        let unknown = || format!("{word:?} in {text:?} is not understood; these are: {KNOWN}");
        let what = match word {
            "ip" | "ip6" if (word == "ip6") == v6 => words.next().ok_or_else(unknown)?,
            "meta" => words.next().ok_or_else(unknown)?,
            "iifname" | "oifname" => word,
            _ => return Err(unknown()),
        };
        let equal = words.peek() != Some(&"!=");
        let _ = words.next_if(|word| matches!(*word, "==" | "!="));
        let value = words.next().ok_or_else(unknown)?.trim_matches('"');
        steps.push(match (what, word) {
            ("saddr" | "daddr", "ip" | "ip6") => {
                let (address, prefix) = network(value, v6)?;
                if what == "saddr" {
                    Step::SourceIn(address, prefix, equal)
                } else {
                    Step::DestinationIn(address, prefix, equal)
                }
            }
            ("iifname", "meta" | "iifname") => Step::CameBy(value.into(), equal),
            ("oifname", "meta" | "oifname") => Step::LeavesBy(value.into(), equal),
            ("mark", "meta") => Step::HasMark(mark(value)?, equal),
            _ => return Err(unknown()),
        });
    }
    Ok(steps)
}

fn network(text: &str, v6: bool) -> Result<(IpAddr, u8), String> {
    let network: IpNetwork = text.parse().map_err(|_| format!("{text:?} is no address or network"))?;
    match network.is_ipv6() == v6 {
        true => Ok((network.ip(), network.prefix())),
        false => Err(format!("{text:?} is of the other family")),
    }
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no mark"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_or_named() {
        let read = |text: &str, v6| parse(&[text.to_string()], v6);
        assert_eq!(read("ip saddr != 10.0.0.0/8", false).unwrap(), [Step::SourceIn([10, 0, 0, 0].into(), 8, false)]);
        assert_eq!(
            read("iifname \"eth0\" meta mark 0x10", false).unwrap(),
            [Step::CameBy("eth0".into(), true), Step::HasMark(16, true)]
        );
        let words: Vec<String> = ["ip6", "daddr", "==", "fd00::1"].map(String::from).into();
        assert_eq!(parse(&words, true).unwrap(), [Step::DestinationIn("fd00::1".parse().unwrap(), 128, true)]);
        assert_eq!(parse(&[], false).unwrap(), []);
        for (text, v6, in_message) in [
            ("-d 10.0.0.1", false, "iptables"),
            ("ip saddr 10.0.0.1", true, "\"ip\""),
            ("ip saddr", false, "not understood"),
            ("ip saddr fd00::1", false, "other family"),
            ("ct state new", false, "\"ct\""),
            ("meta mark x", false, "no mark"),
        ] {
            let message = read(text, v6).unwrap_err();
            assert!(message.contains(in_message), "{text}: {message}");
        }
    }
}
