//! Kubernetes' quantities: reading them and writing them in canonical form.

/// How a quantity was written, which decides how it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Binary,
    Decimal,
    Exponent,
}

/// A quantity, in thousandths of a millionth (nano), with its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const NANO: i128 = 1_000_000_000;

impl Quantity {
    /// Reads a quantity such as `100m`, `1.5Gi` or `1e3`.
    pub fn parse(text: &str) -> Option<Quantity> {
        let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(split);
        let (negative, digits) = match digits.as_bytes().first()? {
            b'-' => (true, &digits[1..]),
            b'+' => (false, &digits[1..]),
            _ => (false, digits),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty())
            || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
        {
            return None;
        }
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok().or_else(|| Some(0).filter(|_| text == "0"))?;
        let (format, nano) = scale(mantissa, i32::try_from(fraction.len()).ok()?, suffix)?;
        Some(Quantity { nano: if negative { -nano } else { nano }, format })
    }

    /// The value rounded up to whole units.
    pub fn units(&self) -> i128 {
        self.nano.div_euclid(NANO) + i128::from(self.nano.rem_euclid(NANO) != 0)
    }

    /// The value in thousandths, rounded up.
    pub fn milli(&self) -> i128 {
        let milli = NANO / 1000;
        self.nano.div_euclid(milli) + i128::from(self.nano.rem_euclid(milli) != 0)
    }

    /// True below zero.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// True for zero.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// The canonical text: the largest suffix that leaves a whole number.
    pub fn canonical(&self) -> String {
        if self.nano == 0 {
            return "0".into();
        }
        let format = match self.format {
            // What has a fraction, or is below 1024, is written in decimal.
            Format::Binary if self.nano % NANO != 0 || self.nano.abs() < 1024 * NANO => Format::Decimal,
            other => other,
        };
        match format {
            Format::Binary => {
                let units = self.nano / NANO;
                let (suffix, shift) =
                    BINARY.iter().rev().find(|(_, shift)| units % (1i128 << shift) == 0).copied().unwrap_or(("", 0));
                format!("{}{suffix}", units >> shift)
            }
            Format::Decimal | Format::Exponent => {
                let (suffix, power) = DECIMAL
                    .iter()
                    .rev()
                    .find(|(_, power)| self.nano % 10i128.pow((power + 9).unsigned_abs()) == 0)
                    .copied()
                    .unwrap_or(("n", -9));
                let number = self.nano / 10i128.pow((power + 9).unsigned_abs());
                match (format, power) {
                    (Format::Exponent, 0) => number.to_string(),
                    (Format::Exponent, _) => format!("{number}e{power}"),
                    _ => format!("{number}{suffix}"),
                }
            }
        }
    }
}

/// The value in nano, rounded up, of `mantissa` with so many digits after the point and a suffix.
fn scale(mantissa: i128, fraction: i32, suffix: &str) -> Option<(Format, i128)> {
    let by_power = |power: i32| -> Option<i128> {
        let power = power + 9 - fraction;
        if power >= 0 {
            10i128.checked_pow(power.unsigned_abs()).and_then(|factor| mantissa.checked_mul(factor))
        } else {
            let divisor = 10i128.checked_pow(power.unsigned_abs())?;
            Some(mantissa.div_euclid(divisor) + i128::from(mantissa % divisor != 0))
        }
    };
    if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        let value = by_power(0)?.checked_mul(1i128 << shift)?;
        return Some((Format::Binary, value));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Decimal, by_power(*power)?));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    if !(-18..=18).contains(&exponent) {
        return None;
    }
    Some((Format::Exponent, by_power(exponent)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (written, canonical) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("8Mi", "8Mi"),
            ("10m", "10m"),
            ("1e3", "1e3"),
            ("1000", "1k"),
            ("0", "0"),
            ("0Mi", "0"),
            ("512Ki", "512Ki"),
            ("1234567", "1234567"),
            ("-1", "-1"),
            ("2.", "2"),
            ("100k", "100k"),
            ("128974848", "128974848"),
        ] {
            assert_eq!(Quantity::parse(written).unwrap().canonical(), canonical, "{written}");
        }
        for wrong in ["", "x", "1x", "1.2.3", "--1", "1 Mi", "Mi"] {
            assert!(Quantity::parse(wrong).is_none(), "{wrong}");
        }
        assert_eq!(Quantity::parse("1500m").unwrap().units(), 2);
        assert_eq!(Quantity::parse("0.1").unwrap().milli(), 100);
    }
}
