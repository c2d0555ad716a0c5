//! One column of the target: from a row of the result to the column's value, or to the reject.
//!
//! A value is treated, converted, checked and masked, in this order. No reason contains a masked value.

use std::borrow::Cow;

use common::Row;
use common::job::{Mask, Origin, ResolvedColumn};
use common::message::Reject;
use common::schema::{AthenaType, PgType};

use crate::convert::{Conversion, Unconvertible, convert};
use crate::mask::masked;
use crate::rules::{Broken, Checks, PlanError};
use crate::treat::Treatment;

/// The name of the rule that a value must be of its column's type.
const TYPE_RULE: &str = "type";

/// The most characters of a reason: a batch may have thousands of reasons, and a job's pattern in one may be long.
pub(crate) const MAX_REASON_CHARS: usize = 300;

/// How to make the values of one column. Compiled once for a job and a result.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    name: String,
    to: PgType,
    source: Source,
    mask: Option<Mask>,
    checks: Checks,
}

#[derive(Debug, Clone)]
enum Source {
    /// Canonical text.
    Constant(String),
    Result {
        position: usize,
        treatment: Treatment,
        conversion: Conversion,
    },
}

impl Column {
    pub(crate) fn new(resolved: &ResolvedColumn) -> Result<Self, PlanError> {
        let (name, mask) = (&resolved.target.name, resolved.spec.mask);
        // The job's check made sure that the mask fits the column; the value itself may be longer.
        let to = match mask {
            None => resolved.target.pg_type,
            Some(_) => PgType::Text,
        };
        let source = match &resolved.origin {
            Origin::Job(text) => Source::Constant(constant(name, to, text)?),
            Origin::Result {
                position,
                athena_type,
            } => Source::Result {
                position: *position,
                treatment: Treatment::new(&resolved.spec),
                conversion: Conversion::new(*athena_type, to, &resolved.spec)
                    .map_err(|problem| PlanError::setting(name, "format", problem))?,
            },
        };
        Ok(Self {
            source,
            mask,
            checks: Checks::compile(name, to, &resolved.rules)?,
            name: name.clone(),
            to,
        })
    }

    /// The column's value in a row.
    pub(crate) fn value<'a>(&'a self, row: Row<'a>) -> Result<Option<Cow<'a, str>>, Reject> {
        let value = match self.converted(row) {
            Ok(value) => value,
            Err((_, problem)) => {
                return Err(self.reject(TYPE_RULE, &self.type_reason(&problem)));
            }
        };
        if let Some(broken) = self.checks.first_broken(value.as_deref()) {
            return Err(self.reject(broken.rule, self.rule_reason(&broken)));
        }
        Ok(match (value, self.mask) {
            (Some(value), Some(mask)) => Some(masked(mask, &value).into()),
            (value, _) => value,
        })
    }

    /// For a masked column: its position in the result, and the value that a quarantine record may
    /// show there.
    pub(crate) fn hidden(&self, row: Row<'_>) -> Option<(usize, Option<String>)> {
        let (Some(mask), Source::Result { position, .. }) = (self.mask, &self.source) else {
            return None;
        };
        let value = match self.converted(row) {
            Ok(value) => value,
            Err((treated, _)) => Some(treated),
        };
        Some((*position, value.map(|value| masked(mask, &value))))
    }

    /// The value in the column's type, unmasked; or the text that is not of that type, and why.
    fn converted<'a>(
        &'a self,
        row: Row<'a>,
    ) -> Result<Option<Cow<'a, str>>, (Cow<'a, str>, Unconvertible)> {
        let (position, treatment, conversion) = match &self.source {
            Source::Constant(text) => return Ok(Some(text.into())),
            Source::Result {
                position,
                treatment,
                conversion,
            } => (*position, treatment, conversion),
        };
        match row.get(position).and_then(|text| treatment.apply(text)) {
            None => Ok(None),
            Some(Cow::Borrowed(text)) => match conversion.convert(text) {
                Ok(value) => Ok(Some(value)),
                Err(problem) => Err((text.into(), problem)),
            },
            Some(Cow::Owned(text)) => match conversion.convert(&text) {
                Ok(value) => Ok(Some(value.into_owned().into())),
                Err(problem) => Err((text.into(), problem)),
            },
        }
    }

    fn type_reason(&self, problem: &Unconvertible) -> String {
        match self.mask {
            None => format!("{problem}; the column is {}", self.to),
            Some(_) => format!("the value, which is masked, {}", problem.problem()),
        }
    }

    /// The reason of a rule; for a masked column one that does not reveal the value.
    fn rule_reason<'a>(&self, broken: &'a Broken) -> &'a str {
        match self.mask {
            None => &broken.reason,
            Some(_) => "the value, which is masked, breaks the rule",
        }
    }

    fn reject(&self, rule: &str, reason: &str) -> Reject {
        Reject {
            column: Some(self.name.clone()),
            rule: rule.to_owned(),
            reason: reason.chars().take(MAX_REASON_CHARS).collect(),
        }
    }
}

/// A constant of the job, in canonical text.
pub(crate) fn constant(name: &str, to: PgType, text: &str) -> Result<String, PlanError> {
    match convert(AthenaType::Varchar, to, text) {
        Ok(text) => Ok(text.into_owned()),
        Err(problem) => Err(PlanError::setting(
            name,
            "value",
            format!("{problem}; the column is {to}"),
        )),
    }
}

#[cfg(test)]
mod tests;
