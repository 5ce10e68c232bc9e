//! Traffic of the interfaces in the network namespace of a process.

use std::io;

/// Traffic of one interface since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Its name.
    pub name: String,
    /// What came in.
    pub received: Counters,
    /// What went out.
    pub sent: Counters,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were wrong.
    pub errors: u64,
    /// Packets that found no room.
    pub dropped: u64,
}

/// The interfaces that a process sees, in the kernel's order.
///
/// # Errors
/// When the process is gone.
pub fn interface_counters(pid: i32) -> io::Result<Vec<InterfaceCounters>> {
    Ok(parse(&std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?))
}

/// `/proc/net/dev`: two lines of heading, then one interface per line with eight numbers for each direction.
fn parse(text: &str) -> Vec<InterfaceCounters> {
    let of = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let direction = |first: usize| {
            let [bytes, packets, errors, dropped] = *numbers.get(first..first + 4)?.first_chunk::<4>()?;
            Some(Counters { bytes, packets, errors, dropped })
        };
        Some(InterfaceCounters { name: name.trim().to_string(), received: direction(0)?, sent: direction(8)? })
    };
    text.lines().skip(2).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
                    \x20   lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n\
                    \x20 eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        let eth0 = &found[1];
        assert_eq!(eth0.name, "eth0");
        assert_eq!(eth0.received, Counters { bytes: 1, packets: 2, errors: 3, dropped: 4 });
        assert_eq!(eth0.sent, Counters { bytes: 9, packets: 10, errors: 11, dropped: 12 });
    }

    #[test]
    fn this_process_has_a_loopback() {
        let own = interface_counters(std::process::id() as i32).unwrap();
        assert!(own.iter().any(|interface| interface.name == "lo"));
    }
}
