//! `replace_where`: the part of a table that a run replaces.
//!
//! A condition is comparisons of a column with a `:parameter` or a literal, joined by `and`. So it can be
//! checked before anything is sent, travels as data, and means the same in the transformer, which checks
//! rows, and in the loader, which deletes the replaced ones. A row whose column is NULL is outside.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::{fmt, slice};

use regex::{Captures, Regex};
use serde::de::{IntoDeserializer as _, value};
use serde::{Deserialize, Serialize};

use crate::schema::PgType;

/// The syntax of a condition, for errors.
const SUPPORTED: &str = "supported are comparisons of a column with a :parameter, a number or a 'text' by =, <, <=, > or >=, `column between a and b`, and `and` between them";

/// A conjunction of bounds; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Bound>", into = "Vec<Bound>")]
pub struct Window(Vec<Bound>);

/// One bound: `column op value`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bound {
    /// The target column.
    pub column: String,
    pub op: Comparison,
    #[serde(flatten)]
    pub operand: Operand,
}

/// A comparison of a column's value with a bound's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Comparison {
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = "<=")]
    AtMost,
    #[serde(rename = ">")]
    Greater,
    #[serde(rename = ">=")]
    AtLeast,
}

impl Comparison {
    /// The operator in SQL.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }

    /// Whether a value with this ordering relative to the bound is inside.
    pub fn holds(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Less => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::AtLeast => ordering.is_ge(),
        }
    }
}

/// The right side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operand {
    /// A value, in text of the column's type.
    Value(String),
    /// A parameter of the job. A request fills it in before the window travels.
    Parameter(String),
}

impl Bound {
    /// The value; empty for a parameter, which a window that travels does not have.
    pub fn value(&self) -> &str {
        match &self.operand {
            Operand::Value(value) => value,
            Operand::Parameter(_) => "",
        }
    }
}

impl TryFrom<Vec<Bound>> for Window {
    type Error = String;

    fn try_from(bounds: Vec<Bound>) -> Result<Self, String> {
        if bounds.is_empty() {
            return Err("a window without a bound would be the whole table".to_owned());
        }
        Ok(Self(bounds))
    }
}

impl From<Window> for Vec<Bound> {
    fn from(window: Window) -> Self {
        window.0
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bound) in self.0.iter().enumerate() {
            let and = if index == 0 { "" } else { " and " };
            write!(f, "{and}{} {} ", bound.column, bound.op.sign())?;
            match &bound.operand {
                Operand::Value(value) => write!(f, "'{}'", value.replace('\'', "''"))?,
                Operand::Parameter(name) => write!(f, ":{name}")?,
            }
        }
        Ok(())
    }
}

impl Window {
    /// Parses a condition.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let mut reader = Reader(tokens.iter());
        let mut bounds = Vec::new();
        loop {
            reader.comparison(&mut bounds)?;
            match reader.0.next() {
                None => return Ok(Self(bounds)),
                Some(token) if token.is_word("and") => {}
                Some(token) => return Err(unsupported(&token.shown())),
            }
        }
    }

    pub fn bounds(&self) -> &[Bound] {
        &self.0
    }

    /// Whether every bound has its value.
    pub fn is_filled(&self) -> bool {
        let is_value = |bound: &Bound| matches!(bound.operand, Operand::Value(_));
        self.0.iter().all(is_value)
    }

    /// Fills in the parameters, whose values were checked against their types.
    #[must_use]
    pub fn filled(&self, values: &BTreeMap<String, String>) -> Self {
        let bounds = self.0.iter().cloned().map(|mut bound| {
            if let Operand::Parameter(name) = &bound.operand
                && let Some(value) = values.get(name)
            {
                bound.operand = Operand::Value(value.clone());
            }
            bound
        });
        Self(bounds.collect())
    }

    /// The parameters that it uses.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|bound| match &bound.operand {
            Operand::Parameter(name) => Some(name.as_str()),
            Operand::Value(_) => None,
        })
    }

    /// Refuses a column whose type it does not declare,
    /// and a type that the transformer and Postgres might compare in different ways.
    pub(super) fn check(
        &self,
        declared_type: impl Fn(&str) -> Option<PgType>,
    ) -> Result<(), String> {
        for bound in &self.0 {
            let column = &bound.column;
            let Some(pg_type) = declared_type(column) else {
                return Err(format!(
                    "replace_where compares the column {column:?}, for which no [[columns]] entry says a type; add one with this name and its type, so that the bounds are compared as that type"
                ));
            };
            if !is_comparable(pg_type) {
                return Err(format!(
                    "replace_where compares the column {column:?}, which is {pg_type}; it can compare integers, numeric, text, date and timestamp columns"
                ));
            }
        }
        Ok(())
    }
}

/// Whether the transformer and Postgres compare this type in the same way. (`real` has NaN, `char` is padded.)
fn is_comparable(pg_type: PgType) -> bool {
    matches!(
        pg_type,
        PgType::SmallInt
            | PgType::Integer
            | PgType::BigInt
            | PgType::Numeric(_)
            | PgType::Text
            | PgType::Varchar(_)
            | PgType::Date
            | PgType::Timestamp
            | PgType::TimestampTz
    )
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Parameter(String),
    Text(String),
    Number(String),
    Sign(String),
}

impl Token {
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn shown(&self) -> String {
        match self {
            Self::Word(text) | Self::Number(text) | Self::Sign(text) => text.clone(),
            Self::Quoted(text) => format!("\"{text}\""),
            Self::Parameter(name) => format!(":{name}"),
            Self::Text(text) => format!("'{text}'"),
        }
    }
}

fn unsupported(what: &str) -> String {
    format!("replace_where has {what} where it cannot be; {SUPPORTED}")
}

/// SQL keywords that would otherwise parse as a column.
const RESERVED: [&str; 9] = [
    "or", "not", "in", "is", "like", "null", "true", "false", "exists",
];

struct Reader<'a>(slice::Iter<'a, Token>);

impl<'a> Reader<'a> {
    fn expected(&mut self, what: &str) -> Result<&'a Token, String> {
        let missing = || format!("replace_where ends where {what} should follow; {SUPPORTED}");
        self.0.next().ok_or_else(missing)
    }

    /// `column op operand`, or `column between operand and operand`.
    fn comparison(&mut self, bounds: &mut Vec<Bound>) -> Result<(), String> {
        let column = match self.expected("a column")? {
            Token::Quoted(name) => name.clone(),
            Token::Word(word)
                if !RESERVED
                    .iter()
                    .any(|reserved| word.eq_ignore_ascii_case(reserved)) =>
            {
                word.clone()
            }
            other => return Err(unsupported(&other.shown())),
        };
        let mut bound = |op, operand| {
            let column = column.clone();
            bounds.push(Bound {
                column,
                op,
                operand,
            });
        };
        match self.expected("a comparison")? {
            Token::Sign(sign) => {
                let op = Comparison::deserialize(sign.as_str().into_deserializer());
                let op = op.map_err(|_: value::Error| match sign.as_str() {
                    "==" => "replace_where has ==, and SQL compares with one =; write =".to_owned(),
                    _ => unsupported(sign),
                })?;
                bound(op, self.operand()?);
            }
            word if word.is_word("between") => {
                bound(Comparison::AtLeast, self.operand()?);
                let and = self.expected("`and`")?;
                if !and.is_word("and") {
                    return Err(unsupported(&and.shown()));
                }
                bound(Comparison::AtMost, self.operand()?);
            }
            other => return Err(unsupported(&other.shown())),
        }
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand, String> {
        match self.expected("a :parameter or a literal")? {
            Token::Parameter(name) => Ok(Operand::Parameter(name.clone())),
            Token::Text(value) | Token::Number(value) => Ok(Operand::Value(value.clone())),
            other => Err(unsupported(&other.shown())),
        }
    }
}

/// A token, in the group of its name. Any other character is an error; of a quote, that it is not closed.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    let token = r#"(?x) "(?<quoted>(?:[^"]|"")*)" | '(?<text>(?:[^']|'')*)' | :(?<parameter>[\p{Alphabetic}\p{N}_]+)
        | (?<sign><=|>=|<>|!=|==|[<>=!]) | (?<number>[0-9][0-9.]*|-[0-9.]+) | (?<word>[\p{Alphabetic}\p{N}_]+) | \S"#;
    Regex::new(token).expect("a constant")
});

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let token = |found: Captures<'_>| {
        let group = |name| Some(found.name(name)?.as_str().to_owned());
        let quoted = |name, quote: &str| Some(group(name)?.replace(&quote.repeat(2), quote));
        let known = quoted("quoted", "\"").map(Token::Quoted);
        known
            .or_else(|| quoted("text", "'").map(Token::Text))
            .or_else(|| group("parameter").map(Token::Parameter))
            .or_else(|| group("sign").map(Token::Sign))
            .or_else(|| group("number").map(Token::Number))
            .or_else(|| group("word").map(Token::Word))
            .ok_or_else(|| match &found[0] {
                quote @ ("\"" | "'") => format!("replace_where has a {quote} that is not closed"),
                other => unsupported(other),
            })
    };
    TOKEN.captures_iter(text).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Window::parse(text).unwrap().to_string()
    }

    #[test]
    fn conditions_parse_into_bounds() {
        for (text, wanted) in [
            (
                "date between :from and :to",
                "date >= :from and date <= :to",
            ),
            (
                "  \"Day \"\"x\"\"\" >= '2018-04-02' AND n<10",
                "Day \"x\" >= '2018-04-02' and n < '10'",
            ),
            (
                "site = 'it''s' and n > -1.5",
                "site = 'it''s' and n > '-1.5'",
            ),
            (
                "d BETWEEN '2018-01-01' and :to and n <= :n",
                "d >= '2018-01-01' and d <= :to and n <= :n",
            ),
        ] {
            assert_eq!(shown(text), wanted);
        }
    }

    #[test]
    fn unsupported_condition_is_refused_with_the_supported_syntax() {
        for (text, part) in [
            ("", "a column should follow"),
            ("date", "a comparison should follow"),
            ("date >", "a literal should follow"),
            ("date between :from", "`and` should follow"),
            ("date between :from or :to", "has or"),
            ("date = :from or date = :to", "has or"),
            ("not date = :from", "has not"),
            ("date in (:from)", "has ("),
            ("date <> :from", "has <>"),
            ("date != :from", "has !="),
            ("date = other", "has other"),
            ("date = date '2018-04-02'", "has date"),
            (":from <= date", "has :from"),
            ("lower(a) = 'x'", "has ("),
            ("date = 'x", "not closed"),
            ("a = 1; DROP TABLE t", "has ;"),
            ("a = 1 -- x", "has -"),
            ("a = :", "has :"),
        ] {
            let refused = Window::parse(text).unwrap_err();
            assert!(refused.contains(part), "{text}: {refused}");
            assert!(
                refused.contains("supported") || refused.contains("closed"),
                "{refused}"
            );
        }
    }

    #[test]
    fn filled_window_survives_json() {
        let window = Window::parse("date between :from and '2018-04-08'").unwrap();
        assert!(!window.is_filled());
        let values = BTreeMap::from([("from".to_owned(), "2018-04-02".to_owned())]);
        let filled = window.filled(&values);
        assert!(filled.is_filled());
        let json = serde_json::to_string(&filled).unwrap();
        assert_eq!(
            json,
            r#"[{"column":"date","op":">=","value":"2018-04-02"},{"column":"date","op":"<=","value":"2018-04-08"}]"#
        );
        assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), filled);
        assert!(serde_json::from_str::<Window>("[]").is_err());
    }
}
