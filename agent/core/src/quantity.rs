//! Quantities of the API (`100m`, `1.5Gi`, `2e3`) as integers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity")]
pub struct QuantityError(pub String);

/// The value in thousandths, rounded up (1 CPU is 1000).
pub fn milli(quantity: &Quantity) -> Result<i64, QuantityError> {
    scaled(&quantity.0, 1000)
}

/// The value in units, rounded up (bytes, counts).
pub fn units(quantity: &Quantity) -> Result<i64, QuantityError> {
    scaled(&quantity.0, 1)
}

fn scaled(text: &str, scale: i128) -> Result<i64, QuantityError> {
    let bad = || QuantityError(text.to_owned());
    let trimmed = text.trim();
    let digits_end =
        trimmed.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits_end);
    let (numerator, denominator) = factor(suffix).ok_or_else(bad)?;
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 || whole.len() > 18 {
        return Err(bad());
    }
    let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let below = denominator.checked_mul(10_i128.pow(fraction.len() as u32)).ok_or_else(bad)?;
    let above = digits.checked_mul(numerator).and_then(|value| value.checked_mul(scale)).ok_or_else(bad)?;
    let value = (above + below - 1) / below;
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Ok(if negative { -value } else { value })
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (10_i128.pow(15), 1),
        "E" => (10_i128.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-18..=18).contains(&power) {
                return None;
            }
            let ten = 10_i128.pow(power.unsigned_abs());
            if power < 0 { (1, ten) } else { (ten, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_api_reads_them() {
        for (text, thousandths, whole) in [
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("2e3", 2_000_000, 2000),
            ("1k", 1_000_000, 1000),
            ("100u", 1, 1),
            ("-2", -2000, -2),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!(milli(&quantity).unwrap(), thousandths, "{text}");
            assert_eq!(units(&quantity).unwrap(), whole, "{text}");
        }
        for text in ["", "x", "1.2.3", "1Zi", "--", "1e99"] {
            assert!(milli(&Quantity(text.into())).is_err(), "{text}");
        }
    }
}
