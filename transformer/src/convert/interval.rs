//! `interval`. Athena shows `2 03:04:05.000` and `1-2`; a sign belongs to the whole value.

use std::borrow::Cow;

use common::canonical::digits;

use super::{Excess, Problem};

const NOT_AN_INTERVAL: &str = "is not an interval written D HH:MM:SS or Y-M";

/// As Postgres shows it: `2 days 03:04:05`, `1 year 2 mons`.
pub(super) fn interval(text: &str) -> Result<Cow<'_, str>, Problem> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let parts = match unsigned.split_once(' ') {
        Some((days, time)) => day_to_second(sign, days, time)?,
        None => year_to_month(sign, unsigned)?,
    };
    let shown: Vec<String> = parts.into_iter().flatten().collect();
    Ok(if shown.is_empty() {
        "00:00:00".into()
    } else {
        shown.join(" ").into()
    })
}

fn day_to_second(sign: &str, days: &str, time: &str) -> Result<[Option<String>; 2], Problem> {
    let days = digits(days.as_bytes()).ok_or(NOT_AN_INTERVAL)?;
    let time = super::moment::time(time, Excess::Refuse).map_err(|_| NOT_AN_INTERVAL)?;
    let time = super::without_zeros(&time);
    let time = (time != "00:00:00").then(|| format!("{sign}{time}"));
    Ok([counted(sign, days, "day"), time])
}

fn year_to_month(sign: &str, text: &str) -> Result<[Option<String>; 2], Problem> {
    let (years, months) = text.split_once('-').ok_or(NOT_AN_INTERVAL)?;
    let years = digits(years.as_bytes()).ok_or(NOT_AN_INTERVAL)?;
    let months = digits(months.as_bytes())
        .filter(|months| *months < 12)
        .ok_or(NOT_AN_INTERVAL)?;
    // Postgres stores the months of an interval in 32 bits.
    if years > 178_956_969 {
        return Err("is out of the range of interval".into());
    }
    Ok([counted(sign, years, "year"), counted(sign, months, "mon")])
}

/// `1 day`, `-1 days`, `2 days`; None for zero.
fn counted(sign: &str, count: u32, unit: &str) -> Option<String> {
    let plural = if count == 1 && sign.is_empty() {
        ""
    } else {
        "s"
    };
    (count > 0).then(|| format!("{sign}{count} {unit}{plural}"))
}
