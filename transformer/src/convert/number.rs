//! Integers, floating-point numbers and `numeric`.

use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

use common::canonical::{self, Number, is_special};
use common::schema::{AthenaType, PgType};

use super::{Decimal, Excess, Problem};

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
    match canonical::integer::<i64>(digits) {
        Some(number) if (min..=max).contains(&number) => Ok(canonical_integer(digits, number)),
        Some(_) => Err(out_of_range(to)),
        None if Number::read(digits).is_some() && !digits.contains(['.', 'e', 'E']) => {
            Err(out_of_range(to))
        }
        None => Err("is not an integer".into()),
    }
}

/// A decimal without its fraction, if the fraction is zero.
fn whole(text: &str) -> Option<&str> {
    match text.split_once('.') {
        None => Some(text),
        Some((integer, fraction)) => fraction.bytes().all(|byte| byte == b'0').then_some(integer),
    }
}

fn canonical_integer(digits: &str, number: i64) -> Cow<'_, str> {
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    if digits == "0" || !unsigned.starts_with('0') {
        digits.into()
    } else {
        number.to_string().into()
    }
}

fn out_of_range(to: PgType) -> Problem {
    format!("is out of the range of {to}").into()
}

/// `numeric(p,s)`, exact: refuses a number whose digits do not fit. Only zeros at the end of the
/// fraction are removed, or digits that the job rounds. Without precision and scale, `NaN` and the
/// infinities pass as well (Postgres 14 or later).
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

/// `real` or `double precision`. Athena's own numbers pass unchanged; text must be a number that the
/// type keeps.
///
/// No number is formatted anew: Postgres reads the text to the same nearest value.
pub(super) fn float<T: FromStr + Copy + Into<f64> + Display>(
    from: AthenaType,
    text: &str,
    to: PgType,
) -> Result<Cow<'_, str>, Problem> {
    if is_special(text) {
        return Ok(text.into());
    }
    Number::read(text).ok_or("is not a number")?;
    let value: T = canonical::float(text).ok_or_else(|| out_of_range(to))?;
    // A number of Athena is a float already; a text may have more digits.
    let is_text = matches!(from, AthenaType::Char | AthenaType::Varchar);
    if is_text && Decimal::parse(text) != Decimal::parse(&value.to_string()) {
        return Err(format!("has more digits than {to} keeps").into());
    }
    Ok(text.into())
}
