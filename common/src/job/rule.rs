//! The rules of a column. The transformer checks them and rejects a row that breaks one, with the name of
//! the rule.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rule, in a job a table with one key: `{ not_empty = true }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Not NULL.
    Required(bool),
    /// Not the empty string. NULL passes; `required` refuses it.
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
    /// The rule's name in a job and in a rejected row.
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

/// A value in a job, as text. TOML numbers, booleans and dates need no quotes; a decimal that a float
/// cannot hold does.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "Written", into = "String")]
pub struct Scalar(String);

impl Scalar {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
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

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Date(#[schemars(with = "String")] toml::value::Datetime),
}

/// The significant digits that a float keeps of every decimal (`f64::DIGITS`). A decimal with more digits
/// may have changed.
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
    fn rules_parse_from_toml_and_survive_json() {
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
