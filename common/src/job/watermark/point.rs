//! Values of a column with a watermark, in the order of their type.

use std::cmp::Ordering;

use jiff::civil::{Date, DateTime};

use super::ParameterType;
use crate::canonical::Number;

/// A value of a column with a watermark, in its order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    Moment(DateTime),
    Number(Decimal),
}

/// A decimal of any length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    /// Without leading zeros.
    integer: String,
    /// Without zeros at its end.
    fraction: String,
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let size = |one: &Self, other: &Self| {
            let length = one.integer.len().cmp(&other.integer.len());
            let digits = || (&one.integer, &one.fraction).cmp(&(&other.integer, &other.fraction));
            length.then_with(digits)
        };
        match (self.negative, other.negative) {
            (false, false) => size(self, other),
            (true, true) => size(other, self),
            (negative, _) => negative.cmp(&false).reverse(),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Point {
    /// The value of a text: a parameter's, or Athena's. None for one that is not of the type, or beyond the calendar.
    pub fn read(parameter_type: ParameterType, text: &str) -> Option<Self> {
        match parameter_type {
            ParameterType::Date => {
                let date: Date = text.parse().ok()?;
                Some(Self::Moment(date.into()))
            }
            ParameterType::Timestamp => Some(Self::Moment(text.parse().ok()?)),
            ParameterType::Integer | ParameterType::Decimal => {
                let number = Number::read(text).filter(|number| number.exponent.is_none())?;
                Some(Self::Number(Decimal {
                    negative: number.negative && !number.is_zero(),
                    integer: number.integer.trim_start_matches('0').to_owned(),
                    fraction: number.fraction.trim_end_matches('0').to_owned(),
                }))
            }
            ParameterType::Text | ParameterType::Boolean => None,
        }
    }
}
