//! Numbers, from the text that the transformer makes.

/// Decimal digits in one digit of a `numeric`.
const GROUP: usize = 4;
/// The sign of a negative `numeric`, and what stands there for the special ones (`numeric.c`).
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const MINUS_INFINITY: u16 = 0xf000;

/// `-7`; no plus sign, which Rust reads and no canonical text has.
pub(super) fn integer<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok()
}

/// The nearest `real`, as Postgres' `strtof` reads it.
pub(super) fn real(text: &str) -> Option<f32> {
    match text {
        "NaN" => Some(f32::NAN),
        "Infinity" => Some(f32::INFINITY),
        "-Infinity" => Some(f32::NEG_INFINITY),
        _ if is_plain(text) => text
            .parse()
            .ok()
            .filter(|number: &f32| number.is_finite() && (*number != 0.0 || is_zero(text))),
        _ => None,
    }
}

/// The nearest `double precision`, as Postgres' `strtod` reads it.
pub(super) fn double(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ if is_plain(text) => text
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite() && (*number != 0.0 || is_zero(text))),
        _ => None,
    }
}

/// Of the many texts that Rust reads as a number, one that begins with a digit, behind a minus sign at most.
fn is_plain(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    unsigned.starts_with(|c: char| c.is_ascii_digit())
}

/// Whether a number that was read as zero is none that was too small, which Postgres refuses.
fn is_zero(text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    !mantissa.contains(|c: char| ('1'..='9').contains(&c))
}

/// `numeric`: number of digits, weight of the first, sign, digits after the point that are shown; then the digits, of
/// base 10,000, aligned to the point.
pub(super) fn numeric(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let special = match text {
        "NaN" => Some(NAN),
        "Infinity" => Some(INFINITY),
        "-Infinity" => Some(MINUS_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        put(out, 0, 0, sign, 0, std::iter::empty());
        return Some(());
    }
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (NEGATIVE, rest),
        None => (0, text),
    };
    let (integer, fraction) = match unsigned.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (unsigned, ""),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if integer.is_empty() || !is_digits(integer) || !is_digits(fraction) {
        return None;
    }
    let scale = u16::try_from(fraction.len()).ok()?;
    let groups = groups(integer, fraction);
    // Without the zeros at both ends; none at all for 0.
    let first = groups.iter().position(|group| *group != 0);
    let Some(first) = first else {
        put(out, 0, 0, 0, scale, std::iter::empty());
        return Some(());
    };
    let end = groups.iter().rposition(|group| *group != 0)? + 1;
    let before_point = integer.len().div_ceil(GROUP);
    let weight = i16::try_from(before_point).ok()? - 1 - i16::try_from(first).ok()?;
    let count = u16::try_from(end - first).ok()?;
    put(
        out,
        count,
        weight,
        sign,
        scale,
        groups[first..end].iter().copied(),
    );
    Some(())
}

/// Digits of base 10,000: the integer's, filled with zeros in front, and the fraction's, filled behind.
fn groups(integer: &str, fraction: &str) -> Vec<u16> {
    let number = |digits: &[u8], zeros: usize| {
        let digits = digits.iter().map(|digit| u16::from(digit - b'0'));
        digits
            .chain(std::iter::repeat_n(0, zeros))
            .fold(0, |number, digit| number * 10 + digit)
    };
    let (head, rest) = integer.as_bytes().split_at(integer.len() % GROUP);
    let head = (!head.is_empty()).then(|| number(head, 0));
    let whole = rest.chunks(GROUP).map(|digits| number(digits, 0));
    let parts = fraction
        .as_bytes()
        .chunks(GROUP)
        .map(|digits| number(digits, GROUP - digits.len()));
    head.into_iter().chain(whole).chain(parts).collect()
}

fn put(
    out: &mut Vec<u8>,
    count: u16,
    weight: i16,
    sign: u16,
    scale: u16,
    digits: impl Iterator<Item = u16>,
) {
    let length = u32::from(count) * 2 + 8;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&scale.to_be_bytes());
    for digit in digits {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> Vec<i32> {
        let mut out = Vec::new();
        numeric(&mut out, text).unwrap();
        assert_eq!(
            out[..4],
            (u32::try_from(out.len()).unwrap() - 4).to_be_bytes()
        );
        let words = out[4..].chunks(2);
        words
            .map(|word| i32::from(i16::from_be_bytes([word[0], word[1]])))
            .collect()
    }

    #[test]
    fn a_numeric_is_digits_of_base_ten_thousand_around_the_point() {
        assert_eq!(encoded("12345.6789"), [3, 1, 0, 4, 1, 2345, 6789]);
        assert_eq!(encoded("-0.00001"), [1, -2, 0x4000, 5, 1000]);
        assert_eq!(encoded("10000.00"), [1, 1, 0, 2, 1]);
        assert_eq!(encoded("0.00"), [0, 0, 0, 2]);
        assert_eq!(encoded("0"), [0, 0, 0, 0]);
    }
}
