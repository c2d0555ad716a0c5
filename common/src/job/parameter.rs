//! Parameters of a job: `:name` in its SQL, filled with typed SQL literals.
//!
//! A value that does not parse as its type is refused before anything is sent, and a text is quoted
//! as SQL wants it, so that no value can become a part of the statement.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{JobSpec, Scalar};
use crate::schema::PgType;

/// A parameter as a job declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterSpec {
    #[serde(rename = "type")]
    pub parameter_type: ParameterType,
    /// What it is when a run does not set it; without one, a run must.
    pub default: Option<Scalar>,
}

/// The type of a parameter, which decides how its literal is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterType {
    Text,
    Integer,
    Decimal,
    Boolean,
    Date,
    Timestamp,
}

/// What a run asks for: the SQL with its parameters filled in, their values by name, and the part of
/// the job that travels, with the values that it takes from the parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub sql: String,
    pub parameters: BTreeMap<String, String>,
    pub spec: JobSpec,
}

/// The SQL and the values that are in it.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) sql: String,
    pub(super) parameters: BTreeMap<String, String>,
}

/// Why a request cannot be made of a job and the values given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("the job has no parameter {name:?}; it has {known}")]
    Unknown { name: String, known: String },
    #[error("the parameter {0:?} has no default; give it a value with --set {0}=...")]
    Missing(String),
    #[error("{value:?} is not a value of the parameter {name:?}, which is {article} {parameter_type} such as {example}", article = parameter_type.article(), example = parameter_type.example())]
    Invalid {
        name: String,
        parameter_type: ParameterType,
        value: String,
    },
    #[error("the job uses :{0}, which it does not declare; add it under [parameters]")]
    Undeclared(String),
}

impl ParameterSpec {
    /// What a run sets, else the default.
    fn value<'a>(
        &'a self,
        name: &str,
        set: &'a BTreeMap<String, String>,
    ) -> Result<&'a str, ParameterError> {
        let given = set.get(name).map(String::as_str);
        given
            .or(self.default.as_ref().map(Scalar::as_str))
            .ok_or_else(|| ParameterError::Missing(name.to_owned()))
    }

    fn invalid(&self, name: &str, value: &str) -> ParameterError {
        ParameterError::Invalid {
            name: name.to_owned(),
            parameter_type: self.parameter_type,
            value: value.to_owned(),
        }
    }
}

impl ParameterType {
    fn article(self) -> &'static str {
        if self == Self::Integer { "an" } else { "a" }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Text => "some text",
            Self::Integer => "42",
            Self::Decimal => "12.50",
            Self::Boolean => "true",
            Self::Date => "2018-04-02",
            Self::Timestamp => "2018-04-02 13:00:00",
        }
    }

    /// The SQL literal of a value of this type; none when the text is not one.
    fn literal(self, value: &str) -> Option<String> {
        match self {
            Self::Text => {
                (!value.contains('\0')).then(|| format!("'{}'", value.replace('\'', "''")))
            }
            // In brackets, since `-` before it would make a comment of what follows.
            Self::Integer => value.parse::<i64>().ok().map(|number| match number {
                ..0 => format!("({number})"),
                0.. => number.to_string(),
            }),
            Self::Decimal => is_decimal(value).then(|| format!("DECIMAL '{value}'")),
            Self::Boolean => value.parse::<bool>().ok().map(|truth| truth.to_string()),
            Self::Date => {
                let date = value.parse::<jiff::civil::Date>().ok()?;
                (date.to_string() == value).then(|| format!("DATE '{value}'"))
            }
            Self::Timestamp => Some(format!("TIMESTAMP '{}'", read_timestamp(value)?)),
        }
    }

    /// The value as Postgres reads it; none when the text is not one.
    fn plain(self, value: &str) -> Option<String> {
        self.literal(value)?;
        match self {
            Self::Timestamp => read_timestamp(value),
            Self::Integer => value.parse::<i64>().ok().map(|number| number.to_string()),
            _ => Some(value.to_owned()),
        }
    }

    /// The type of a column that holds the value.
    pub(super) fn pg_type(self) -> PgType {
        match self {
            Self::Text => PgType::Text,
            Self::Integer => PgType::BigInt,
            Self::Decimal => PgType::Numeric(None),
            Self::Boolean => PgType::Boolean,
            Self::Date => PgType::Date,
            Self::Timestamp => PgType::Timestamp,
        }
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Decimal => "decimal",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
        })
    }
}

/// `2018-04-02 13:00:00`. The parser would read over a zone or an offset, and the literal has none.
fn read_timestamp(value: &str) -> Option<String> {
    let has_zone = value.get(10..)?.contains(['+', '-', 'Z', 'z', '[']);
    let stamp = value.parse::<jiff::civil::DateTime>().ok();
    stamp
        .filter(|_| !has_zone)
        .map(|stamp| stamp.to_string().replace('T', " "))
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    all_digits(whole) && all_digits(fraction)
}

/// One parameter's value as Postgres reads it, and its type.
pub(super) fn plain(
    name: &str,
    declared: &BTreeMap<String, ParameterSpec>,
    set: &BTreeMap<String, String>,
) -> Result<(String, ParameterType), ParameterError> {
    let spec = declared
        .get(name)
        .ok_or_else(|| ParameterError::Undeclared(name.to_owned()))?;
    let value = spec.value(name, set)?;
    let plain = spec.parameter_type.plain(value);
    let plain = plain.ok_or_else(|| spec.invalid(name, value))?;
    Ok((plain, spec.parameter_type))
}

/// Fills a job's SQL with the values that a run sets and the defaults of the others.
pub(super) fn render(
    sql: &str,
    declared: &BTreeMap<String, ParameterSpec>,
    set: &BTreeMap<String, String>,
) -> Result<Rendered, ParameterError> {
    if let Some(name) = set.keys().find(|name| !declared.contains_key(*name)) {
        let known = declared
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known
        };
        return Err(ParameterError::Unknown {
            name: name.clone(),
            known,
        });
    }
    let mut values = BTreeMap::new();
    let mut literals = BTreeMap::new();
    for (name, spec) in declared {
        let value = spec.value(name, set)?;
        let literal = spec.parameter_type.literal(value);
        let literal = literal.ok_or_else(|| spec.invalid(name, value))?;
        values.insert(name.clone(), value.to_owned());
        literals.insert(name.as_str(), literal);
    }
    Ok(Rendered {
        sql: substitute(sql, &literals)?,
        parameters: values,
    })
}

/// Replaces `:name` outside of strings, quoted identifiers and comments.
fn substitute(sql: &str, literals: &BTreeMap<&str, String>) -> Result<String, ParameterError> {
    let mut out = String::with_capacity(sql.len() + 64);
    let mut rest = sql;
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        let skip = opaque_length(rest);
        if skip > 0 {
            out.push_str(&rest[..skip]);
            rest = &rest[skip..];
            before = out.chars().next_back().unwrap_or(' ');
            continue;
        }
        let name = rest
            .strip_prefix(':')
            .filter(|_| before != ':')
            .map_or("", identifier);
        if name.is_empty() {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            let literal = literals.get(name);
            let literal = literal.ok_or_else(|| ParameterError::Undeclared(name.to_owned()))?;
            rest = &rest[1 + name.len()..];
            // Two literals that touch would be one: 'a''b'.
            if is_literals(before) {
                out.push(' ');
            }
            out.push_str(literal);
            if rest.starts_with(is_literals) {
                out.push(' ');
            }
        }
        before = out.chars().next_back().unwrap_or(' ');
    }
    Ok(out)
}

/// Whether a character beside a literal would become a part of it.
fn is_literals(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '\'' | '"' | '.' | '@')
}

/// The identifier that a text starts with, perhaps none.
fn identifier(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        ""
    } else {
        &text[..end]
    }
}

/// The length of the string, quoted identifier or comment that a text starts with, else 0. One that
/// is not closed reaches to the end: Athena will say so.
fn opaque_length(text: &str) -> usize {
    let (open, close): (_, &[&str]) = match text.as_bytes() {
        [b'\'', ..] => (1, &["'"]),
        [b'"', ..] => (1, &["\""]),
        // A carriage return by itself ends a comment too (Trino's grammar, SIMPLE_COMMENT).
        [b'-', b'-', ..] => (2, &["\n", "\r"]),
        [b'/', b'*', ..] => (2, &["*/"]),
        _ => return 0,
    };
    let ends = close
        .iter()
        .filter_map(|close| Some(open + text[open..].find(close)? + close.len()));
    ends.min().unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(parameter_type: ParameterType, default: Option<&str>) -> ParameterSpec {
        ParameterSpec {
            parameter_type,
            default: default.map(Scalar::from),
        }
    }

    fn rendered(sql: &str, set: &[(&str, &str)]) -> Result<String, ParameterError> {
        let declared = BTreeMap::from([
            (
                "from".to_owned(),
                spec(ParameterType::Date, Some("2018-04-02")),
            ),
            ("who".to_owned(), spec(ParameterType::Text, Some("x"))),
            ("least".to_owned(), spec(ParameterType::Decimal, Some("1"))),
            ("n".to_owned(), spec(ParameterType::Integer, Some("5"))),
        ]);
        let set = set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        render(sql, &declared, &set).map(|request| request.sql)
    }

    #[test]
    fn parameters_become_typed_literals() {
        let sql = "SELECT 1 WHERE dt >= :from AND who = :who AND n > :least";
        let wanted =
            "SELECT 1 WHERE dt >= DATE '2018-04-02' AND who = 'O''Hara' AND n > DECIMAL '1'";
        assert_eq!(rendered(sql, &[("who", "O'Hara")]).unwrap(), wanted);
    }

    #[test]
    fn strings_comments_and_casts_are_left_alone() {
        let sql =
            "SELECT ':from', \":from\", 'it''s :from', a::date, 1 -- :from\n/* :nobody */, '12:30'";
        assert_eq!(rendered(sql, &[]).unwrap(), sql);
    }

    #[test]
    fn what_does_not_parse_is_refused_before_anything_is_sent() {
        for value in [
            "2018-13-01",
            "yesterday",
            "2018-04-02' OR 1=1",
            "2018-4-2",
            "",
        ] {
            let error = rendered("SELECT :from", &[("from", value)]).unwrap_err();
            assert!(
                matches!(error, ParameterError::Invalid { .. }),
                "{value}: {error}"
            );
        }
        let timestamp = |value| ParameterType::Timestamp.literal(value);
        assert_eq!(
            timestamp("2018-04-02 13:00:00").as_deref(),
            Some("TIMESTAMP '2018-04-02 13:00:00'")
        );
        for zoned in [
            "2018-04-02 13:00:00+05:00",
            "2018-04-02T13:00:00-05:00",
            "2018-04-02T13:00:00Z",
            "2018-04-02T13:00:00[Europe/Berlin]",
        ] {
            assert_eq!(timestamp(zoned), None, "{zoned}");
        }
        for value in ["1e5", "NaN", "", "-", "1.", "--1"] {
            assert!(
                rendered("SELECT :least", &[("least", value)]).is_err(),
                "{value}"
            );
        }
        assert!(
            rendered("SELECT 1", &[("form", "x")])
                .unwrap_err()
                .to_string()
                .contains("from, least, n, who")
        );
        assert!(
            matches!(rendered("SELECT :until", &[]), Err(ParameterError::Undeclared(name)) if name == "until")
        );
    }

    #[test]
    fn a_literal_does_not_merge_with_what_stands_beside_it() {
        for (sql, wanted) in [
            ("1 -:n AND x", "1 -(-5) AND x"),
            ("'a':who'b'", "'a' 'it''s' 'b'"),
            (":who:who", "'it''s' 'it''s'"),
            ("LIMIT:n", "LIMIT (-5)"),
            ("-- it's\r:who '\n:who'", "-- it's\r'it''s' '\n:who'"),
        ] {
            let seen = rendered(sql, &[("n", "-5"), ("who", "it's")]).unwrap();
            assert_eq!(seen, wanted);
        }
    }

    /// A piece of SQL, as Athena's grammar cuts it.
    #[derive(Debug, PartialEq)]
    enum Token {
        Text(String),
        Name(String),
        Comment(String),
        Word(String),
        Symbol(char),
        Parameter(String),
    }

    /// An independent reader of SQL. `:name` is a parameter where those are wanted.
    fn tokens(sql: &str, parameters: bool) -> Vec<Token> {
        let chars: Vec<char> = sql.chars().collect();
        let (mut at, mut all) = (0, Vec::new());
        let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
        while let Some(&c) = chars.get(at) {
            let start = at;
            at += 1;
            let next = chars.get(at).copied().unwrap_or(' ');
            match c {
                '\'' | '"' => {
                    let mut value = String::new();
                    while let Some(&inner) = chars.get(at) {
                        at += 1;
                        if inner != c {
                            value.push(inner);
                        } else if chars.get(at) == Some(&c) {
                            value.push(c);
                            at += 1;
                        } else {
                            break;
                        }
                    }
                    all.push(if c == '"' {
                        Token::Name(value)
                    } else {
                        Token::Text(value)
                    });
                }
                '-' if next == '-' => {
                    while at < chars.len() && !matches!(chars[at], '\r' | '\n') {
                        at += 1;
                    }
                    all.push(Token::Comment(chars[start..at].iter().collect()));
                }
                '/' if next == '*' => {
                    at += 1;
                    while at < chars.len() && !chars[start + 2..at].ends_with(&['*', '/']) {
                        at += 1;
                    }
                    all.push(Token::Comment(chars[start..at].iter().collect()));
                }
                ':' if parameters
                    && is_word(&next)
                    && !next.is_numeric()
                    && (start == 0 || chars[start - 1] != ':') =>
                {
                    let name: String = chars[at..].iter().take_while(|c| is_word(c)).collect();
                    at += name.chars().count();
                    all.push(Token::Parameter(name));
                }
                _ if is_word(&c) => {
                    let word: String = chars[start..].iter().take_while(|c| is_word(c)).collect();
                    at = start + word.chars().count();
                    all.push(Token::Word(word));
                }
                _ if c.is_whitespace() => {}
                _ => all.push(Token::Symbol(c)),
            }
        }
        all
    }

    proptest! {
        #[test]
        fn a_parameter_is_a_literal_and_everything_else_stays(
            sql in "([':\"*/ \n\r;a1.-]|:who|:n|:from|''|--|/\\*|\\*/|SELECT ){0,30}", who in "([':\"*/ \n;a-]|:n){0,6}", n: i64,
        ) {
            let Ok(seen) = rendered(&sql, &[("who", &who), ("n", &n.to_string())]) else {
                // `:a` and the like.
                return Ok(());
            };
            let mut wanted = Vec::new();
            for token in tokens(&sql, true) {
                match token {
                    Token::Parameter(name) if name == "who" => wanted.push(Token::Text(who.clone())),
                    Token::Parameter(name) if name == "from" => wanted.extend(tokens("DATE '2018-04-02'", false)),
                    Token::Parameter(_) if n < 0 => wanted.extend(tokens(&format!("({n})"), false)),
                    Token::Parameter(_) => wanted.extend(tokens(&n.to_string(), false)),
                    other => wanted.push(other),
                }
            }
            prop_assert_eq!(tokens(&seen, false), wanted, "{:?} became {:?}", sql, seen);
        }

        #[test]
        fn a_text_stays_one_literal(value in "[^\0]{0,30}") {
            let sql = rendered("SELECT :who", &[("who", &value)]).unwrap();
            let body = sql.strip_prefix("SELECT '").unwrap().strip_suffix('\'').unwrap();
            prop_assert_eq!(body.replace("''", "'"), value.clone());
            prop_assert!(!body.replace("''", "").contains('\''));
        }
    }
}
