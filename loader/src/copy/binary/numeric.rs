//! The binary form of `numeric`.

use common::canonical::Number;

/// Decimal digits in one digit of a `numeric`.
const GROUP: usize = 4;
/// The sign field of negative numbers and of the special values (`numeric.c`).
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const MINUS_INFINITY: u16 = 0xf000;

/// Appends the number of digits, the weight of the first one, the sign and the decimal digits after
/// the point; then the digits, of base 10,000, aligned to the point.
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
    let Number {
        negative,
        integer,
        fraction,
        exponent: None,
    } = Number::read(text)?
    else {
        return None;
    };
    let sign = if negative { NEGATIVE } else { 0 };
    let scale = u16::try_from(fraction.len()).ok()?;
    let groups = groups(integer, fraction);
    // Without the zeros at both ends; 0 has no digits.
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

/// Digits of base 10,000: the integer padded with zeros on the left, the fraction on the right.
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
    fn numeric_is_digits_of_base_ten_thousand_around_the_point() {
        assert_eq!(encoded("12345.6789"), [3, 1, 0, 4, 1, 2345, 6789]);
        assert_eq!(encoded("-0.00001"), [1, -2, 0x4000, 5, 1000]);
        assert_eq!(encoded("10000.00"), [1, 1, 0, 2, 1]);
        assert_eq!(encoded("0.00"), [0, 0, 0, 2]);
        assert_eq!(encoded("0"), [0, 0, 0, 0]);
    }
}
