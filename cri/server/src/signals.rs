//! Names of signals, as images and requests write them.

use std::str::FromStr;

use nix::sys::signal::Signal;
use orlop_proto::cri;

/// The first real-time signal that programs of the C library see.
const RTMIN: i32 = 34;
/// The last one.
const RTMAX: i32 = 64;

/// The number of a signal: `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`, `SIGRTMINPLUS3`.
pub(crate) fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str, signs: [&str; 2]| -> Option<i32> {
        let digits = signs.iter().find_map(|sign| rest.strip_prefix(sign));
        if rest.is_empty() { Some(0) } else { digits?.parse().ok() }
    };
    let number = match bare {
        "CLD" => Signal::SIGCHLD as i32,
        "IOT" => Signal::SIGABRT as i32,
        "POLL" => Signal::SIGIO as i32,
        _ => {
            if let Some(rest) = bare.strip_prefix("RTMIN") {
                RTMIN + offset(rest, ["+", "PLUS"])?
            } else if let Some(rest) = bare.strip_prefix("RTMAX") {
                RTMAX - offset(rest, ["-", "MINUS"])?
            } else {
                Signal::from_str(&format!("SIG{bare}")).ok()? as i32
            }
        }
    };
    (1..=RTMAX).contains(&number).then_some(number)
}

/// The signal that asks a container to end: the request's word, the image's word, SIGTERM.
pub(crate) fn stop_signal(asked: i32, image: &str) -> i32 {
    let asked = match cri::Signal::try_from(asked) {
        Ok(cri::Signal::RuntimeDefault) | Err(_) => None,
        Ok(signal) => number(signal.as_str_name()),
    };
    asked.or_else(|| number(image)).unwrap_or(Signal::SIGTERM as i32)
}

/// A number as the CRI names it.
pub(crate) fn to_cri(number: i32) -> cri::Signal {
    let name = match number {
        RTMIN..=49 => format!("SIGRTMINPLUS{}", number - RTMIN).replace("PLUS0", ""),
        50..=RTMAX => format!("SIGRTMAXMINUS{}", RTMAX - number).trim_end_matches("MINUS0").to_string(),
        _ => Signal::try_from(number).map(|signal| signal.as_str().to_string()).unwrap_or_default(),
    };
    cri::Signal::from_str_name(&name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let table = [
            ("15", Some(15)),
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMINPLUS3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("SIGCLD", Some(17)),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
        ];
        for (name, expected) in table {
            assert_eq!(number(name), expected, "{name:?}");
        }
    }

    #[test]
    fn every_number_has_its_name() {
        for signal in 1..=RTMAX {
            let name = to_cri(signal);
            if name != cri::Signal::RuntimeDefault {
                assert_eq!(number(name.as_str_name()), Some(signal), "{signal}");
            }
        }
        assert_eq!(to_cri(15), cri::Signal::Sigterm);
        assert_eq!(to_cri(37), cri::Signal::Sigrtminplus3);
    }

    #[test]
    fn the_request_goes_before_the_image() {
        assert_eq!(stop_signal(cri::Signal::Sigusr1 as i32, "SIGQUIT"), 10);
        assert_eq!(stop_signal(0, "SIGQUIT"), 3);
        assert_eq!(stop_signal(0, "nonsense"), 15);
    }
}
