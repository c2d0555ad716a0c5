//! Parameters become literals and nothing else, as an independent reader of SQL sees them.

use super::*;
use proptest::prelude::*;

fn spec(parameter_type: ParameterType, default: Option<&str>) -> ParameterSpec {
    ParameterSpec {
        parameter_type,
        default: default.map(Scalar::from),
        watermark: None,
        initial: None,
        lag: None,
        end_of: None,
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
    render(sql, &declared, &set).map(|(sql, _)| sql)
}

#[test]
fn parameters_become_typed_literals() {
    let sql = "SELECT 1 WHERE dt >= :from AND who = :who AND n > :least";
    let wanted = "SELECT 1 WHERE dt >= DATE '2018-04-02' AND who = 'O''Hara' AND n > DECIMAL '1'";
    assert_eq!(rendered(sql, &[("who", "O'Hara")]).unwrap(), wanted);
}

#[test]
fn strings_comments_and_casts_stay_unchanged() {
    let sql =
        "SELECT ':from', \":from\", 'it''s :from', a::date, 1 -- :from\n/* :absent */, '12:30'";
    assert_eq!(rendered(sql, &[]).unwrap(), sql);
}

#[test]
fn value_of_wrong_type_is_refused() {
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
    let timestamp = |value| ParameterType::Timestamp.canonical(value);
    for zoned in [
        "2018-04-02 13:00:00+05:00",
        "2018-04-02T13:00:00-05:00",
        "2018-04-02T13:00:00Z",
        "2018-04-02T13:00:00[Europe/Berlin]",
    ] {
        assert_eq!(timestamp(zoned), None, "{zoned}");
    }
    for leap in [
        "2016-12-31 23:59:60",
        "2016-12-31T23:59:60.5",
        "2016-12-31 235960",
    ] {
        assert_eq!(timestamp(leap), None, "{leap}");
    }
    assert!(timestamp("2016-12-31 23:59:59.60").is_some());
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
fn spellings_of_a_value_are_one_canonical_value() {
    use ParameterType::{Boolean, Date, Decimal, Integer, Text, Timestamp};
    for (parameter_type, spellings, canonical, literal) in [
        (Integer, &["7", "07", "+7", "0007"][..], "7", "7"),
        (Integer, &["-7", "-007"], "-7", "(-7)"),
        (Integer, &["0", "-0", "+0", "00"], "0", "0"),
        (
            Decimal,
            &["1.5", "1.50", "01.5", "0001.500"],
            "1.5",
            "DECIMAL '1.5'",
        ),
        (Decimal, &["-0.5", "-00.50"], "-0.5", "DECIMAL '-0.5'"),
        (Decimal, &["10", "10.0", "0010"], "10", "DECIMAL '10'"),
        (
            Decimal,
            &["0", "-0", "0.000", "-0.0", "000"],
            "0",
            "DECIMAL '0'",
        ),
        // Seventeen digits more than a float keeps.
        (
            Decimal,
            &["123456789012345678901234567890.120"],
            "123456789012345678901234567890.12",
            "DECIMAL '123456789012345678901234567890.12'",
        ),
        (Boolean, &["true"], "true", "true"),
        (Date, &["2018-04-02"], "2018-04-02", "DATE '2018-04-02'"),
        (
            Timestamp,
            &[
                "2018-04-02 00:00:00",
                "2018-04-02T00:00:00",
                "2018-04-02t00:00",
                "2018-04-02",
                "2018-04-02 00:00:00.000",
                "20180402T000000",
            ],
            "2018-04-02 00:00:00",
            "TIMESTAMP '2018-04-02 00:00:00'",
        ),
        (
            Timestamp,
            &[
                "2018-04-02 13:00:00.5",
                "2018-04-02T13:00:00.500000",
                "2018-04-02 13:00:00,50",
            ],
            "2018-04-02 13:00:00.5",
            "TIMESTAMP '2018-04-02 13:00:00.5'",
        ),
        (Text, &[" 07 "], " 07 ", "' 07 '"),
    ] {
        for spelling in spellings {
            let seen = parameter_type.canonical(spelling);
            assert_eq!(seen.as_deref(), Some(canonical), "{spelling}");
        }
        assert_eq!(parameter_type.literal(canonical), literal);
    }
}

#[test]
fn value_without_a_canonical_form_is_refused() {
    use ParameterType::{Boolean, Date, Decimal, Integer, Text, Timestamp};
    for (parameter_type, value) in [
        (Integer, "7.0"),
        (Integer, "9223372036854775808"),
        (Decimal, "1."),
        (Decimal, ".5"),
        (Decimal, "+7"),
        (Boolean, "TRUE"),
        (Date, "0000-01-01"),
        (Timestamp, "0000-01-01 00:00:00"),
        (Timestamp, "2018-04-02 00:00:00.1234567"),
        (Text, "a\0b"),
    ] {
        assert_eq!(parameter_type.canonical(value), None, "{value}");
    }
}

#[test]
fn literal_does_not_merge_with_its_neighbours() {
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

/// An independent reader of SQL. Reads `:name` as a parameter only where parameters are expected.
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
    fn zeros_that_say_nothing_change_no_decimal(
        sign in "-?", integer in "[1-9][0-9]{0,40}", fraction in "([0-9]{0,40}[1-9])?", before in "0{0,3}", after in "0{0,3}",
    ) {
        let point = if fraction.is_empty() { "" } else { "." };
        let wanted = format!("{sign}{integer}{point}{fraction}");
        let point = if fraction.is_empty() && after.is_empty() { "" } else { "." };
        let spelling = format!("{sign}{before}{integer}{point}{fraction}{after}");
        prop_assert_eq!(ParameterType::Decimal.canonical(&spelling), Some(wanted.clone()));
        prop_assert_eq!(ParameterType::Decimal.canonical(&wanted), Some(wanted));
    }

    #[test]
    fn parameters_become_literals_and_nothing_else_changes(
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
    fn text_stays_one_literal(value in "[^\0]{0,30}") {
        let sql = rendered("SELECT :who", &[("who", &value)]).unwrap();
        let body = sql.strip_prefix("SELECT '").unwrap().strip_suffix('\'').unwrap();
        prop_assert_eq!(body.replace("''", "'"), value.clone());
        prop_assert!(!body.replace("''", "").contains('\''));
    }
}
