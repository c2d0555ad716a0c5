//! Exact decimal numbers as digits, without floats.

use std::borrow::Cow;
use std::cmp::Ordering;

use common::canonical::Number;

/// A double ranges from 4.9E-324 to 1.8E308. Beyond this bound a text of ten bytes would stand for
/// thousands of digits.
const MAX_EXPONENT: u32 = 400;

/// A finite decimal number. Two are equal when their values are, whatever their spelling.
#[derive(Debug, Clone)]
pub(crate) struct Decimal<'a> {
    negative: bool,
    /// Without leading zeros; empty for 0.
    integer: Cow<'a, str>,
    /// With its trailing zeros.
    fraction: Cow<'a, str>,
    /// Whether Postgres shows the text unchanged, if the fraction stays as it is.
    plain: bool,
}

impl<'a> Decimal<'a> {
    /// Reads a number, with or without an exponent (of at most 400 in either direction).
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let written_as = Number::read(text)?;
        let (integer, fraction) = match written_as.exponent {
            None => (
                Cow::Borrowed(written_as.integer),
                Cow::Borrowed(written_as.fraction),
            ),
            Some(exponent) => shifted(
                written_as.integer,
                written_as.fraction,
                exponent.parse().ok()?,
            )?,
        };
        let significant = integer.trim_start_matches('0').len();
        let written = integer.len();
        let integer = match integer {
            Cow::Borrowed(digits) => Cow::Borrowed(&digits[written - significant..]),
            Cow::Owned(digits) => Cow::Owned(digits[written - significant..].to_owned()),
        };
        let negative = written_as.negative && !written_as.is_zero();
        let plain = written_as.exponent.is_none()
            && written_as.negative == negative
            && written == significant.max(1);
        Some(Self {
            negative,
            integer,
            fraction,
            plain,
        })
    }

    /// The same number, which does not borrow from the text.
    pub(crate) fn into_owned(self) -> Decimal<'static> {
        Decimal {
            negative: self.negative,
            integer: Cow::Owned(self.integer.into_owned()),
            fraction: Cow::Owned(self.fraction.into_owned()),
            plain: self.plain,
        }
    }

    /// The digits before the point; 0 for a number below one.
    pub(super) fn integer_digits(&self) -> usize {
        self.integer.len()
    }

    /// The digits after the point, as written.
    pub(super) fn fraction_digits(&self) -> usize {
        self.fraction.len()
    }

    /// The digits that a `numeric` with this many fraction digits needs to hold the number, or
    /// `None` where the fraction has more significant digits than that.
    pub(super) fn precision_at(&self, scale: usize) -> Option<usize> {
        let fraction = self.fraction.trim_end_matches('0');
        if fraction.len() > scale {
            return None;
        }
        if !self.integer.is_empty() {
            return Some(self.integer.len() + scale);
        }
        let leading_zeros = fraction.len() - fraction.trim_start_matches('0').len();
        Some(if fraction.is_empty() {
            0
        } else {
            scale - leading_zeros
        })
    }

    /// The number as Postgres shows it, with `scale` digits after the point. `text` is the parsed text.
    /// The fraction may only lose zeros: see [`Self::precision_at`].
    pub(super) fn show(&self, text: &'a str, scale: usize) -> Cow<'a, str> {
        if self.plain && self.fraction.len() == scale {
            return text.into();
        }
        let sign = if self.negative { "-" } else { "" };
        let integer = if self.integer.is_empty() {
            "0"
        } else {
            &self.integer
        };
        let fraction = &self.fraction[..self.fraction.len().min(scale)];
        let point = if scale == 0 { "" } else { "." };
        let zeros = scale - fraction.len();
        format!("{sign}{integer}{point}{fraction}{:0<zeros$}", "").into()
    }

    /// The number with at most `scale` digits after the point, to the nearest; a half goes away from
    /// zero, as in Postgres.
    pub(super) fn rounded(&self, scale: usize) -> Decimal<'static> {
        let kept = &self.fraction[..self.fraction.len().min(scale)];
        let up = self.fraction.as_bytes().get(scale) >= Some(&b'5');
        let mut digits = format!("0{}{kept}", self.integer).into_bytes();
        if up {
            // The zero in front stops the carry.
            for digit in digits.iter_mut().rev() {
                *digit = if *digit == b'9' { b'0' } else { *digit + 1 };
                if *digit != b'0' {
                    break;
                }
            }
        }
        let mut digits: String = digits.into_iter().map(char::from).collect();
        let fraction = digits.split_off(digits.len() - kept.len());
        let integer = digits.trim_start_matches('0').to_owned();
        let is_zero = integer.is_empty() && fraction.bytes().all(|digit| digit == b'0');
        Decimal {
            negative: self.negative && !is_zero,
            integer: integer.into(),
            fraction: fraction.into(),
            plain: false,
        }
    }

    /// The number times ten to the power of `shift` as a whole number, to the nearest, a half going
    /// up; and whether it is exact. None where it has too many digits for any use.
    pub(super) fn shifted(&self, shift: i32) -> Option<(i128, bool)> {
        let (whole, rest) = shifted(&self.integer, &self.fraction, shift)?;
        let rest = rest.trim_end_matches('0');
        let magnitude: i128 = format!("0{whole}").parse().ok()?;
        let up = rest >= "5" && !(rest == "5" && self.negative);
        let magnitude = magnitude.checked_add(i128::from(up))?;
        Some((
            if self.negative { -magnitude } else { magnitude },
            rest.is_empty(),
        ))
    }

    /// One text for every spelling of the same value.
    pub(crate) fn key(&self) -> String {
        let scale = self.fraction.trim_end_matches('0').len();
        let spelled = Self {
            plain: false,
            ..self.clone()
        };
        spelled.show("", scale).into_owned()
    }
}

/// The digits on both sides of the point, once the point has moved by the exponent.
fn shifted(
    integer: &str,
    fraction: &str,
    exponent: i32,
) -> Option<(Cow<'static, str>, Cow<'static, str>)> {
    if exponent.unsigned_abs() > MAX_EXPONENT {
        return None;
    }
    let mut digits = format!("{integer}{fraction}");
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    let point = if exponent < 0 {
        let missing = shift.saturating_sub(integer.len());
        digits.insert_str(0, &"0".repeat(missing));
        integer.len() + missing - shift
    } else {
        let missing = shift.saturating_sub(fraction.len());
        digits.push_str(&"0".repeat(missing));
        integer.len() + shift
    };
    let fraction = digits.split_off(point);
    Some((digits.into(), fraction.into()))
}

impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let magnitude = || {
            let integers =
                (self.integer.len(), &*self.integer).cmp(&(other.integer.len(), &other.integer));
            let fraction = self.fraction.trim_end_matches('0');
            integers.then_with(|| fraction.cmp(other.fraction.trim_end_matches('0')))
        };
        match (self.negative, other.negative) {
            (false, false) => magnitude(),
            (true, true) => magnitude().reverse(),
            (negative, other) => other.cmp(&negative),
        }
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(text: &str) -> Decimal<'_> {
        Decimal::parse(text).unwrap_or_else(|| panic!("{text} is a decimal"))
    }

    #[test]
    fn exponent_moves_the_point() {
        for (text, wanted) in [
            ("1.0E10", "10000000000"),
            ("1.5E-3", "0.0015"),
            ("123.45e1", "1234.5"),
            ("0.00E5", "0"),
            ("-0.0", "0"),
            ("007.10", "7.1"),
            ("12E-2", "0.12"),
            ("-1e+2", "-100"),
        ] {
            assert_eq!(decimal(text).key(), wanted, "{text}");
        }
    }

    #[test]
    fn text_that_is_not_a_number_is_none() {
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            ".5",
            "5.",
            "1e",
            "1e+",
            "1e401",
            "1e-401",
            "1e-2147483648",
            "0e-2147483648",
            "0x1",
            "1,5",
            "--1",
            "NaN",
            "١",
        ] {
            assert!(Decimal::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn rounding_is_to_the_nearest() {
        for (text, scale, wanted) in [
            ("1.005", 2, "1.01"),
            ("1.0049999", 2, "1"),
            ("-1.5", 0, "-2"),
            ("-0.4", 0, "0"),
            ("0.5", 0, "1"),
            ("99.995", 2, "100"),
            ("12", 2, "12"),
            ("9E-1", 0, "1"),
        ] {
            assert_eq!(decimal(text).rounded(scale).key(), wanted, "{text}");
        }
        for (text, shift, wanted) in [
            ("1522627200", 6, (1_522_627_200_000_000, true)),
            ("1.5E9", 3, (1_500_000_000_000, true)),
            ("-0.0000015", 6, (-1, false)),
            ("-0.0000016", 6, (-2, false)),
            ("0.0000015", 6, (2, false)),
            ("1500", -3, (2, false)),
            ("-1500", -3, (-1, false)),
            ("499", -3, (0, false)),
            ("50", -3, (0, false)),
            ("0", -3, (0, true)),
            ("1000", -3, (1, true)),
        ] {
            assert_eq!(decimal(text).shifted(shift), Some(wanted), "{text}");
        }
        assert_eq!(decimal("1E39").shifted(0), None);
    }

    proptest! {
        #[test]
        fn order_is_numeric(a in -100_000_i64..100_000, b in -100_000_i64..100_000, scale in 0_usize..5) {
            let text = |n: i64| {
                let digits = format!("{:0>6}", n.unsigned_abs());
                let (integer, fraction) = digits.split_at(6 - scale);
                let point = if scale == 0 { "" } else { "." };
                format!("{}{integer}{point}{fraction}", if n < 0 { "-" } else { "" })
            };
            prop_assert_eq!(decimal(&text(a)).cmp(&decimal(&text(b))), a.cmp(&b));
        }

        #[test]
        fn spellings_of_a_value_are_equal(n in any::<i64>(), zeros in 0_usize..5) {
            let plain = n.to_string();
            let spelled = format!("{n}.{:0<zeros$}0E{zeros}", "");
            let back = format!("{n}{:0<zeros$}E-{zeros}", "");
            prop_assert_eq!(decimal(&back), decimal(&plain));
            prop_assert_eq!(decimal(&spelled).key(), decimal(&format!("{n}{:0<zeros$}", "")).key());
        }
    }
}
