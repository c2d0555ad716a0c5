//! What a job demands of a column's values. A row that breaks a rule is rejected, with the rule's
//! name; how rules are checked is the transformer's.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One rule, written in a job as a table with one key: `{ not_empty = true }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Not NULL.
    Required(bool),
    /// Not the empty string. NULL passes: `required` is what refuses it.
    NotEmpty(bool),
    /// One of these, compared as values of the column's type.
    OneOf(Vec<Scalar>),
    /// None of these.
    NoneOf(Vec<Scalar>),
    /// At least this, compared as values of the column's type.
    Min(Scalar),
    /// At most this.
    Max(Scalar),
    /// At most this many characters.
    MaxLength(u32),
    /// The whole value matches this regular expression.
    Pattern(String),
}

impl Rule {
    /// The rule's name as a job writes it, and as a rejected row carries it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Required(_) => "required",
            Self::NotEmpty(_) => "not_empty",
            Self::OneOf(_) => "one_of",
            Self::NoneOf(_) => "none_of",
            Self::Min(_) => "min",
            Self::Max(_) => "max",
            Self::MaxLength(_) => "max_length",
            Self::Pattern(_) => "pattern",
        }
    }
}

/// A value in a job, as text. TOML's numbers, booleans and dates may be written without quotes; a
/// decimal that a float cannot hold is written as a string.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Scalar(String);

impl Scalar {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Scalar> for String {
    fn from(scalar: Scalar) -> Self {
        scalar.0
    }
}

impl From<String> for Scalar {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Date(toml::value::Datetime),
}

/// The significant digits that a float keeps of every decimal (`f64::DIGITS`). One with more was
/// perhaps not written as it was read.
const FLOAT_DIGITS: usize = f64::DIGITS as usize;

impl TryFrom<Written> for Scalar {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        Ok(Self(match written {
            Written::Text(text) => text,
            Written::Integer(number) => number.to_string(),
            Written::Float(number) => exactly(number)?,
            Written::Boolean(value) => value.to_string(),
            Written::Date(date) => date.to_string(),
        }))
    }
}

fn exactly(number: f64) -> Result<String, String> {
    let text = number.to_string();
    let digits = text.trim_start_matches(['-', '0', '.']).bytes();
    if digits.filter(u8::is_ascii_digit).count() <= FLOAT_DIGITS {
        return Ok(text);
    }
    Err(format!(
        "a number of more than {FLOAT_DIGITS} digits is not kept exactly unless it stands in quotes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Rules {
        rules: Vec<Rule>,
    }

    #[test]
    fn rules_are_read_as_a_job_writes_them_and_travel_as_json() {
        let toml = r#"rules = [{ not_empty = true }, { none_of = ["A1", "A2"] }, { min = 3 }, { max = "12.50" }, { min = 2018-04-02 }]"#;
        let rules = toml::from_str::<Rules>(toml).unwrap().rules;
        let wanted = vec![
            Rule::NotEmpty(true),
            Rule::NoneOf(vec!["A1".into(), "A2".into()]),
            Rule::Min("3".into()),
            Rule::Max("12.50".into()),
            Rule::Min("2018-04-02".into()),
        ];
        assert_eq!(rules, wanted);
        let json = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Rule>>(&json).unwrap(), wanted);
        assert!(toml::from_str::<Rules>("rules = [{ not_emty = true }]").is_err());
        let bound =
            |number: &str| toml::from_str::<Rules>(&format!("rules = [{{ max = {number} }}]"));
        assert_eq!(bound("-0.05").unwrap().rules, [Rule::Max("-0.05".into())]);
        let error = bound("1234567890123456.75").err().unwrap().to_string();
        assert!(error.contains("quotes"), "{error}");
        assert!(bound("\"1234567890123456.75\"").is_ok());
    }
}
