//! Integers, floating-point numbers and `numeric`.

use std::borrow::Cow;

use common::schema::{AthenaType, PgType};

use super::decimal::{Decimal, Scanned};
use super::{Excess, Problem};

/// Digits before and after the point that a `numeric` without precision can hold: PostgreSQL
/// documentation, "Numeric Types".
const NUMERIC_DIGITS: (usize, usize) = (131_072, 16_383);

/// An integer between `min` and `max`. A decimal's fraction may be zeros, anything else has none.
pub(super) fn integer(
    from: AthenaType,
    text: &str,
    min: i64,
    max: i64,
    to: PgType,
) -> Result<Cow<'_, str>, Problem> {
    let digits = match from {
        AthenaType::Decimal(..) => {
            whole(text).ok_or("has a fraction, and the column holds integers")?
        }
        _ => text,
    };
    // Rust reads a leading + too.
    let number = digits
        .parse::<i64>()
        .ok()
        .filter(|_| !digits.starts_with('+'));
    match number {
        Some(number) if (min..=max).contains(&number) => Ok(canonical_integer(digits, number)),
        Some(_) => Err(out_of_range(to)),
        None if Scanned::read(digits).is_some() && !digits.contains(['.', 'e', 'E']) => {
            Err(out_of_range(to))
        }
        None => Err("is not an integer".into()),
    }
}

/// A decimal without its fraction, if that is zeros.
fn whole(text: &str) -> Option<&str> {
    match text.split_once('.') {
        None => Some(text),
        Some((integer, fraction)) => fraction.bytes().all(|byte| byte == b'0').then_some(integer),
    }
}

fn canonical_integer(digits: &str, number: i64) -> Cow<'_, str> {
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    let is_canonical = if unsigned.starts_with('0') {
        digits == "0"
    } else {
        true
    };
    if is_canonical {
        digits.into()
    } else {
        number.to_string().into()
    }
}

fn out_of_range(to: PgType) -> Problem {
    format!("is out of the range of {to}").into()
}

/// `numeric(p,s)`, exact: a number whose digits do not fit is refused, only zeros at the end of the
/// fraction may go, or digits that the job has rounded. Without precision and scale also `NaN` and the
/// infinities (Postgres 14 or later).
pub(super) fn numeric(
    text: &str,
    size: Option<(u32, u32)>,
    excess: Excess,
) -> Result<Cow<'_, str>, Problem> {
    if size.is_none() && is_special(text) {
        return Ok(text.into());
    }
    let number = Decimal::parse(text).ok_or("is not a decimal number")?;
    let Some((precision, scale)) = size else {
        let (before, after) = NUMERIC_DIGITS;
        if number.integer_digits() > before || number.fraction_digits() > after {
            return Err("has more digits than numeric can hold".into());
        }
        return Ok(number.show(text, number.fraction_digits()));
    };
    let number = match number.precision_at(scale as usize) {
        None if excess == Excess::Round => number.rounded(scale as usize),
        _ => number,
    };
    match number.precision_at(scale as usize) {
        None => {
            Err(format!("has more than {scale} digits after the point, and is not rounded").into())
        }
        Some(digits) if digits > precision as usize => {
            Err(format!("does not fit into numeric({precision},{scale})").into())
        }
        Some(_) => Ok(number.show(text, scale as usize)),
    }
}

fn is_special(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

/// `real`. Athena's own numbers pass as they are; text must be a number that the type keeps.
///
/// No number is formatted anew: Postgres reads the text to the same nearest value.
pub(super) fn real(from: AthenaType, text: &str) -> Result<Cow<'_, str>, Problem> {
    if is_special(text) {
        return Ok(text.into());
    }
    let number = Scanned::read(text).ok_or("is not a number")?;
    let value: f32 = text.parse().map_err(|_| "is not a number")?;
    if value.is_infinite() || (value == 0.0 && !number.is_zero()) {
        return Err(out_of_range(PgType::Real));
    }
    if is_text(from) && !is_kept(text, &value.to_string()) {
        return Err("has more digits than real keeps".into());
    }
    Ok(text.into())
}

/// `double precision`. See [`real`].
pub(super) fn double(from: AthenaType, text: &str) -> Result<Cow<'_, str>, Problem> {
    if is_special(text) {
        return Ok(text.into());
    }
    let number = Scanned::read(text).ok_or("is not a number")?;
    let value: f64 = text.parse().map_err(|_| "is not a number")?;
    if value.is_infinite() || (value == 0.0 && !number.is_zero()) {
        return Err(out_of_range(PgType::Double));
    }
    if is_text(from) && !is_kept(text, &value.to_string()) {
        return Err("has more digits than double precision keeps".into());
    }
    Ok(text.into())
}

/// A number that Athena computed is a float already; one that was text may have more digits.
fn is_text(from: AthenaType) -> bool {
    matches!(from, AthenaType::Char | AthenaType::Varchar)
}

/// Whether the float, shown with the digits that tell it from its neighbours, is what was written.
fn is_kept(text: &str, shown: &str) -> bool {
    match (Decimal::parse(text), Decimal::parse(shown)) {
        (Some(written), Some(kept)) => written == kept,
        _ => false,
    }
}
