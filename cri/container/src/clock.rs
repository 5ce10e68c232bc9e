//! Wall-clock time as records and logs want it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
#[must_use]
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Appends a time as RFC 3339 in UTC with nanoseconds, as the CRI log format has it.
pub fn write_timestamp(nanoseconds: i64, out: &mut Vec<u8>) {
    use std::io::Write;
    let (seconds, nanos) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z");
}

/// The same as a text of its own.
#[must_use]
pub fn timestamp(nanoseconds: i64) -> String {
    let mut out = Vec::new();
    write_timestamp(nanoseconds, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Year, month and day of a count of days since 1970-01-01: years are counted from March, in eras of 400.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #[test]
    fn timestamps() {
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_217_999_123_456_789, "2026-11-20T23:39:59.123456789Z"),
        ];
        for (nanoseconds, text) in table {
            let mut out = Vec::new();
            super::write_timestamp(nanoseconds, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
