//! A job's rules, compiled once and checked on every value.
//!
//! Values compare as values of the column's Postgres type: numbers exactly, dates and times as
//! moments, text by Unicode code point. NULL passes every rule but `required`. Rules are checked in
//! the order of the job; the first broken one is the row's reject.

mod duplicates;
mod order;
mod window;

use std::cmp::Ordering;
use std::collections::HashSet;

use common::job::{Rule, Scalar};
use common::schema::{AthenaType, PgType, SchemaError};
use regex::{Regex, RegexBuilder};

use crate::convert::{convert, shown, without_zeros};
pub(crate) use duplicates::{KeyColumns, Seen};
use order::{Bound, key};
pub(crate) use window::{Inside, Place};

/// The most memory of a compiled pattern; a job has a few of them.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// The number of values that a reason shows of a list.
const SHOWN_VALUES: usize = 5;

/// A job that cannot be applied to any row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("the rule {rule} of column {column:?} cannot be used: {problem}; correct the job")]
    Rule {
        column: String,
        rule: &'static str,
        problem: String,
    },
    #[error("the {setting} of column {column:?} cannot be used: {problem}; correct the job")]
    Setting {
        column: String,
        setting: &'static str,
        problem: String,
    },
}

impl PlanError {
    pub(crate) fn setting(column: &str, setting: &'static str, problem: String) -> Self {
        Self::Setting {
            column: column.to_owned(),
            setting,
            problem,
        }
    }
}

fn refused(column: &str, rule: &Rule, problem: String) -> PlanError {
    PlanError::Rule {
        column: column.to_owned(),
        rule: rule.name(),
        problem,
    }
}

/// The rules of one column, in the order of the job.
#[derive(Debug, Clone)]
pub struct Checks {
    pg_type: PgType,
    checks: Vec<Check>,
}

/// A rule that a value breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The rule's name.
    pub rule: &'static str,
    /// A sentence.
    pub reason: String,
}

#[derive(Debug, Clone)]
struct Check {
    rule: &'static str,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Required,
    NotEmpty,
    OneOf(Values),
    NoneOf(Values),
    Min(Bound),
    Max(Bound),
    MaxLength(usize),
    Pattern { regex: Regex, written: String },
}

/// A list of values: their keys, which are equal when the values are, and the list as written.
#[derive(Debug, Clone)]
struct Values {
    keys: HashSet<String>,
    shown: String,
}

impl Checks {
    /// Compiles the rules of a column of the target.
    pub fn compile(column: &str, pg_type: PgType, rules: &[Rule]) -> Result<Self, PlanError> {
        let mut checks = Vec::with_capacity(rules.len());
        for rule in rules {
            let test = compile(pg_type, rule).map_err(|problem| refused(column, rule, problem))?;
            checks.extend(test.map(|test| Check {
                rule: rule.name(),
                test,
            }));
        }
        Ok(Self { pg_type, checks })
    }

    /// The first rule that a value in canonical text breaks. `None` is NULL.
    pub fn first_broken(&self, value: Option<&str>) -> Option<Broken> {
        self.checks.iter().find_map(|Check { rule, test }| {
            let reason = match value {
                None => test.broken_by_null(),
                Some(value) => test.broken_by(self.pg_type, value),
            };
            reason.map(|reason| Broken { rule, reason })
        })
    }
}

impl Test {
    fn broken_by_null(&self) -> Option<String> {
        matches!(self, Self::Required).then(|| "the value is NULL, and one is required".to_owned())
    }

    fn broken_by(&self, pg_type: PgType, value: &str) -> Option<String> {
        // A pattern applies to the text that Postgres shows.
        let value = match pg_type {
            PgType::Time | PgType::Timestamp => without_zeros(value),
            _ => value,
        };
        let is_in = |values: &Values| values.keys.contains(&*key(pg_type, value));
        let because = |problem: String| Some(format!("{} {problem}", shown(value)));
        match self {
            Self::NotEmpty if value.is_empty() => Some("the value is empty".to_owned()),
            Self::OneOf(values) if !is_in(values) => {
                because(format!("is none of the values allowed: {}", values.shown))
            }
            Self::NoneOf(values) if is_in(values) => because(format!(
                "is one of the values not allowed: {}",
                values.shown
            )),
            Self::Required | Self::NotEmpty | Self::OneOf(_) | Self::NoneOf(_) => None,
            Self::Min(bound) => match bound.compared(value) {
                Some(Ordering::Greater | Ordering::Equal) => None,
                Some(Ordering::Less) => because(format!("is less than the minimum {bound}")),
                None => because(format!("cannot be compared with the minimum {bound}")),
            },
            Self::Max(bound) => match bound.compared(value) {
                Some(Ordering::Less | Ordering::Equal) => None,
                Some(Ordering::Greater) => because(format!("is more than the maximum {bound}")),
                None => because(format!("cannot be compared with the maximum {bound}")),
            },
            Self::MaxLength(length) => {
                let characters = value.chars().count();
                if characters <= *length {
                    None
                } else {
                    because(format!(
                        "has {characters} characters, and {length} are allowed"
                    ))
                }
            }
            Self::Pattern { regex, .. } if regex.is_match(value) => None,
            Self::Pattern { written, .. } => {
                because(format!("does not match the pattern {written}"))
            }
        }
    }
}

/// None for a rule that is off, such as `required = false`.
fn compile(pg_type: PgType, rule: &Rule) -> Result<Option<Test>, String> {
    Ok(match rule {
        Rule::Required(true) => Some(Test::Required),
        Rule::NotEmpty(true) | Rule::MaxLength(_) if !is_text(pg_type) => {
            return Err(format!("it is for text, and the column is {pg_type}"));
        }
        Rule::NotEmpty(true) => Some(Test::NotEmpty),
        Rule::Required(false) | Rule::NotEmpty(false) => None,
        Rule::OneOf(values) => Some(Test::OneOf(compile_values(pg_type, values)?)),
        Rule::NoneOf(values) => Some(Test::NoneOf(compile_values(pg_type, values)?)),
        Rule::Min(bound) => Some(Test::Min(compile_bound(pg_type, bound)?)),
        Rule::Max(bound) => Some(Test::Max(compile_bound(pg_type, bound)?)),
        Rule::MaxLength(length) => Some(Test::MaxLength(*length as usize)),
        Rule::Pattern(pattern) => Some(Test::Pattern {
            regex: compile_pattern(pattern)?,
            written: pattern.clone(),
        }),
    })
}

fn is_text(pg_type: PgType) -> bool {
    matches!(pg_type, PgType::Text | PgType::Varchar(_) | PgType::Char(_))
}

/// A value of the job in the column's canonical text.
fn canonical(pg_type: PgType, scalar: &Scalar) -> Result<String, String> {
    match convert(AthenaType::Varchar, pg_type, scalar.as_str()) {
        Ok(text) => Ok(text.into_owned()),
        Err(problem) => Err(format!("its value {problem} (the column is {pg_type})")),
    }
}

fn compile_bound(pg_type: PgType, scalar: &Scalar) -> Result<Bound, String> {
    Bound::parse(pg_type, &canonical(pg_type, scalar)?)
}

fn compile_values(pg_type: PgType, scalars: &[Scalar]) -> Result<Values, String> {
    if matches!(pg_type, PgType::Json | PgType::Jsonb) {
        return Err(format!(
            "equal values of {pg_type} have many spellings and are not compared"
        ));
    }
    if scalars.is_empty() {
        return Err("its list is empty".to_owned());
    }
    let mut keys = HashSet::new();
    for scalar in scalars {
        keys.insert(key(pg_type, &canonical(pg_type, scalar)?).into_owned());
    }
    let mut shown: Vec<String> = scalars
        .iter()
        .take(SHOWN_VALUES)
        .map(|scalar| format!("{:?}", scalar.as_str()))
        .collect();
    if scalars.len() > SHOWN_VALUES {
        shown.push(format!("... ({} values)", scalars.len()));
    }
    Ok(Values {
        keys,
        shown: shown.join(", "),
    })
}

/// The pattern is anchored: it must match the whole value.
fn compile_pattern(pattern: &str) -> Result<Regex, String> {
    let compiled = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_BYTES)
            .build()
    };
    // Without the anchors first: `a)|(b` is a regular expression only between them.
    compiled(pattern)
        .and_then(|_| compiled(&format!(r"\A(?:{pattern})\z")))
        .map_err(|error| format!("{pattern:?} is not a usable regular expression: {error}"))
}

#[cfg(test)]
mod tests;
