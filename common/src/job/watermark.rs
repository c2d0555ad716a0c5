//! Watermarks: a run of a job reads what is new since the run before. One parameter of the job takes the watermark, a value of a
//! column of the result that grows.
//!
//! In mode `append` a range is `[from, to)`, and the next one begins at `to`, not at the latest value that was there: a row that
//! appears later with the same value is then neither lost nor there twice. With a key a range is closed and has no end: rows
//! with the latest value are read again, and merged.

mod check;
mod point;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Job, ParameterSpec, ParameterType};
use crate::schema::{AthenaType, ResultColumn, SchemaError};

pub(super) use check::check;
pub use point::Point;

/// The rows that a run reads, for the stages that look at them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatermarkRange {
    /// The column of the result.
    pub column: String,
    /// The parameters that take the bounds. The other ones of a run say which of the rows in the range it reads.
    #[serde(default)]
    pub parameters: Vec<String>,
    #[serde(rename = "type")]
    pub parameter_type: ParameterType,
    /// The first value of the range, in its canonical text.
    pub from: String,
    /// Mode `append`: the first value after the range. A row outside of the range is rejected, since another run reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// With a key: the time of the request, which the next watermark does not exceed. One wrong value of the future would hide
    /// all rows until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<String>,
}

/// What a request reads on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOn {
    /// The watermark at the request, in its canonical text.
    pub watermark: String,
    pub range: WatermarkRange,
}

/// The parameter that takes a job's watermark.
#[derive(Debug, Clone, Copy)]
pub struct Watermark<'a> {
    pub parameter: &'a str,
    pub spec: &'a ParameterSpec,
    /// The column of the result.
    pub column: &'a str,
    /// Mode `append`: the parameter that takes the end of the range.
    pub end: Option<&'a str>,
}

impl WatermarkRange {
    /// The position of the column in a result, which has to have it with a type whose values the parameter takes.
    pub fn position(&self, result: &[ResultColumn]) -> Result<usize, SchemaError> {
        let named = |column: &ResultColumn| column.name.eq_ignore_ascii_case(&self.column);
        let position = result.iter().position(named);
        let position = position.ok_or_else(|| SchemaError::MissingWatermark {
            column: self.column.clone(),
            returned: result.iter().map(|column| column.name.clone()).collect(),
        })?;
        let type_name = &result[position].type_name;
        let fits = match type_name.parse() {
            Ok(AthenaType::Date) => self.parameter_type == ParameterType::Date,
            Ok(AthenaType::Timestamp) => self.parameter_type == ParameterType::Timestamp,
            Ok(
                AthenaType::TinyInt
                | AthenaType::SmallInt
                | AthenaType::Integer
                | AthenaType::BigInt,
            ) => self.parameter_type == ParameterType::Integer,
            Ok(AthenaType::Decimal(..)) => self.parameter_type == ParameterType::Decimal,
            _ => false,
        };
        if fits {
            return Ok(position);
        }
        Err(SchemaError::WatermarkType {
            column: self.column.clone(),
            type_name: type_name.clone(),
            parameter: self.parameter_type.to_string(),
        })
    }

    /// Whether a value of the column, as Athena wrote it, is in the range.
    pub fn contains(&self, value: Option<&str>) -> bool {
        let read = |text: &str| Point::read(self.parameter_type, text);
        let Some(point) = value.and_then(read) else {
            return false;
        };
        let ends_before = |to: &String| read(to).is_none_or(|to| to <= point);
        read(&self.from).is_some_and(|from| from <= point)
            && !self.to.as_ref().is_some_and(ends_before)
    }

    /// Whether no value is in the range.
    pub fn is_empty(&self) -> bool {
        let read = |text: &String| Point::read(self.parameter_type, text);
        let to = self.to.as_ref();
        to.is_some_and(|to| read(to) <= read(&self.from))
    }

    /// Whether a value can be in both ranges of one job.
    pub fn overlaps(&self, other: &Self) -> bool {
        let read = |text: &String| Point::read(self.parameter_type, text);
        let begins_before_the_end = |one: &Self, other: &Self| {
            let to = other.to.as_ref();
            to.is_none_or(|to| read(&one.from) < read(to))
        };
        begins_before_the_end(self, other) && begins_before_the_end(other, self)
    }

    /// The latest of these values; those that are none of the type do not count.
    pub fn latest(&self, values: Vec<String>) -> Option<String> {
        let read = |text: &String| Point::read(self.parameter_type, text);
        let values = values.into_iter().filter(|text| read(text).is_some());
        values.max_by_key(read)
    }

    /// Whether two texts are the same value.
    pub fn is_same(&self, one: &str, other: &str) -> bool {
        let read = |text| Point::read(self.parameter_type, text);
        one == other || read(one).is_some_and(|one| read(other) == Some(one))
    }

    /// Whether a value comes before another one.
    pub fn is_before(&self, one: &str, other: &str) -> bool {
        let read = |text| Point::read(self.parameter_type, text);
        read(one) < read(other)
    }

    /// The watermark once a run of this range is complete: the end of the range, or the latest value that was there, `found`, but
    /// none beyond the time of the request and none before `watermark`.
    pub fn next(&self, watermark: &str, found: Option<&str>) -> String {
        if let Some(to) = &self.to {
            return to.clone();
        }
        let read = |text: &str| Point::read(self.parameter_type, text);
        let found = found.filter(|found| read(found).is_some());
        let capped = match (&self.at_most, found) {
            (Some(most), Some(found)) if read(found) > read(most) => Some(most.as_str()),
            (_, found) => found,
        };
        let next = capped.filter(|next| read(next) > read(watermark));
        let canonical = next.and_then(|next| self.parameter_type.floored(next));
        canonical.unwrap_or_else(|| watermark.to_owned())
    }
}

impl Job {
    /// The parameter with the watermark, if the job has one.
    pub fn watermark(&self) -> Option<Watermark<'_>> {
        watermark(&self.parameters)
    }

    /// The same, for what needs one.
    pub fn its_watermark(&self) -> Result<Watermark<'_>, String> {
        let name = &self.spec.name;
        self.watermark().ok_or_else(|| {
            format!(
                "the job {name} has no watermark; a parameter gets one with watermark = \"...\", the column of the result whose values grow"
            )
        })
    }

    /// A value that a person gives the watermark, in its canonical text; it may be relative.
    pub fn watermark_value(&self, text: &str, now: Timestamp) -> Result<String, String> {
        let name = &self.spec.name;
        let kind = self.its_watermark()?.spec.parameter_type;
        let now = now.to_zoned(self.timezone.clone());
        let resolved = kind.resolved(text, &now);
        let canonical = kind.canonical(resolved.as_deref().unwrap_or(text));
        canonical.ok_or_else(|| {
            format!(
                "{text:?} is no {kind} such as {}, as the watermark of the job {name} is",
                kind.example()
            )
        })
    }

    /// What a request reads on from, with the values that [`Job::resolve`] gave: puts the beginning of the range into them. None
    /// for a job without a watermark, and for a request that sets an end of the range itself. `watermark`: the ledger's; none
    /// before the first run is complete. `recorded`: the values are those of a run that was requested before, and stay.
    pub fn read_on(
        &self,
        set: &BTreeMap<String, String>,
        values: &mut BTreeMap<String, String>,
        watermark: Option<&str>,
        recorded: bool,
        now: Timestamp,
    ) -> Result<Option<ReadOn>, String> {
        let Some(one) = self.watermark() else {
            return Ok(None);
        };
        let is_set = |name: &str| set.contains_key(name);
        // Of a run that was requested before, a value can only be the same.
        match (is_set(one.parameter), one.end.map(is_set)) {
            _ if recorded => {}
            (false, None | Some(false)) => {}
            (true, None | Some(true)) => return Ok(None),
            (..) => {
                return Err(format!(
                    "a range by hand needs both of its ends: set {} and {}, or none of them to read on from the watermark",
                    one.parameter,
                    one.end.unwrap_or_default()
                ));
            }
        }
        let parameter_type = one.spec.parameter_type;
        let initial = one.initial()?;
        let watermark = match watermark {
            None => initial.clone(),
            Some(text) => parameter_type.canonical(text).ok_or_else(|| {
                let job = &self.spec.name;
                format!(
                    "the watermark of the job {job} is {text:?}, and its parameter {:?} is of type {parameter_type}; correct it with `etl watermark {job} --set ... --why ...`",
                    one.parameter
                )
            })?,
        };
        let now = now.to_zoned(self.timezone.clone());
        if !recorded {
            let from = match one.end {
                Some(_) => watermark.clone(),
                None => one.lagging(&watermark, &initial)?,
            };
            values.insert(one.parameter.to_owned(), from);
        }
        let at_most =
            (one.end.is_none() && parameter_type.is_moment()).then(|| parameter_type.moment(&now));
        let range = WatermarkRange {
            at_most,
            ..one.range(values)
        };
        Ok(Some(ReadOn { watermark, range }))
    }

    /// Mode `append`: the range that these values are, whether a run reads on from the watermark or a person set them. None for a
    /// job without a watermark, and for one with a key: it merges what it reads again.
    pub(super) fn range(&self, values: &BTreeMap<String, String>) -> Option<WatermarkRange> {
        let one = self.watermark().filter(|one| one.end.is_some())?;
        Some(one.range(values))
    }
}

/// The parameter with the watermark.
pub(super) fn watermark(declared: &BTreeMap<String, ParameterSpec>) -> Option<Watermark<'_>> {
    let mut all = declared.iter();
    let (parameter, spec, column) =
        all.find_map(|(name, spec)| Some((name, spec, spec.watermark.as_deref()?)))?;
    let mut ends = declared.iter().filter(|(_, spec)| spec.end_of.is_some());
    Some(Watermark {
        parameter,
        spec,
        column,
        end: ends.next().map(|(name, _)| name.as_str()),
    })
}

impl Watermark<'_> {
    /// The range of these values, in their canonical text.
    fn range(&self, values: &BTreeMap<String, String>) -> WatermarkRange {
        let value = |name: &str| values.get(name).cloned();
        let names = [Some(self.parameter), self.end].into_iter().flatten();
        WatermarkRange {
            column: self.column.to_owned(),
            parameters: names.map(str::to_owned).collect(),
            parameter_type: self.spec.parameter_type,
            from: value(self.parameter).unwrap_or_default(),
            to: self.end.and_then(value),
            at_most: None,
        }
    }

    /// The watermark before the first run is complete.
    pub fn initial(&self) -> Result<String, String> {
        let name = self.parameter;
        let (kind, initial) = (self.spec.parameter_type, self.spec.initial.as_ref());
        let initial = initial.ok_or_else(|| {
            format!("the parameter {name:?} has a watermark and needs initial = ..., from where the first run reads")
        })?;
        kind.canonical(initial.as_str()).ok_or_else(|| {
            format!(
                "initial = {:?} of the parameter {name:?} is no {kind} such as {}",
                initial.as_str(),
                kind.example()
            )
        })
    }

    /// The watermark less the lag, and not before the initial one.
    fn lagging(&self, watermark: &str, initial: &str) -> Result<String, String> {
        let Some(lag) = &self.spec.lag else {
            return Ok(watermark.to_owned());
        };
        let kind = self.spec.parameter_type;
        let less = kind.less(watermark, lag.as_str());
        let less = less.ok_or_else(|| self.wrong_lag(lag.as_str()))?;
        let is_before = Point::read(kind, &less) < Point::read(kind, initial);
        Ok(if is_before { initial.to_owned() } else { less })
    }

    fn wrong_lag(&self, lag: &str) -> String {
        let such = match self.spec.parameter_type {
            ParameterType::Date | ParameterType::Timestamp => "a time such as \"3h\" or \"2d\"",
            ParameterType::Integer => "a whole number such as \"100\"",
            ParameterType::Decimal | ParameterType::Text | ParameterType::Boolean => {
                "possible: values of this type have none"
            }
        };
        format!(
            "lag = {lag:?} of the parameter {:?} is not {such}",
            self.parameter
        )
    }
}

#[cfg(test)]
mod tests;
