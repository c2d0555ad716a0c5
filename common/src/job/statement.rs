//! The statement of a job: one query. A statement that changes something is refused before anything is sent, since Athena
//! would execute it, and execute it again at every retry.

use std::sync::LazyLock;

use regex::Regex;

/// Words that begin a query (Athena User Guide, "SELECT"; Trino's grammar, `queryPrimary`).
const QUERIES: [&str; 3] = ["SELECT", "VALUES", "TABLE"];

/// The sub-statement types of Athena that change something, by their first words. Athena names them in no list, and calls the
/// statements themselves DML as it does a SELECT.
const CHANGES: [&str; 13] = [
    "INSERT", "UNLOAD", "MERGE", "UPDATE", "DELETE", "CREATE", "CTAS", "DROP", "ALTER", "MSCK",
    "VACUUM", "OPTIMIZE", "TRUNCATE",
];

/// A piece of SQL. Comments match without a group, so that they are no token. What is not closed extends to the end, and
/// Athena reports it.
static PIECE: LazyLock<Regex> = LazyLock::new(|| {
    let piece = r#"(?s)--[^\r\n]*|/\*.*?(?:\*/|\z)|('[^']*'?|"[^"]*"?|`[^`]*`?|[\p{Alphabetic}_][\p{Alphabetic}\p{N}_$]*|\S)"#;
    Regex::new(piece).expect("a constant")
});

/// The one query of a text, without what ends it. Other statements, and several, are refused with a sentence.
pub(super) fn query(text: &str) -> Result<&str, String> {
    let mut tokens = PIECE
        .captures_iter(text)
        .filter_map(|piece| piece.get(1))
        .skip_while(|token| token.as_str() == ";");
    let Some(first) = tokens.next() else {
        return Err("the SQL has no statement; write a SELECT".to_owned());
    };
    let mut statement = vec![first.as_str()];
    let mut end = text.len();
    for token in tokens.by_ref() {
        if token.as_str() == ";" {
            end = token.start();
            break;
        }
        statement.push(token.as_str());
    }
    if tokens.any(|token| token.as_str() != ";") {
        return Err(
            "the SQL has several statements, and Athena takes one a query; write a job for each, without ; between"
                .to_owned(),
        );
    }
    match leading(&statement) {
        Some(word) if QUERIES.contains(&word.as_str()) => {
            Ok(text[..end].trim_start_matches(blank).trim_end())
        }
        word => Err(refusal(&word.unwrap_or_else(|| first.as_str().to_owned()))),
    }
}

/// A statement without comments, and with one space between its tokens: what Athena reads.
pub(super) fn normalized(statement: &str) -> String {
    let tokens = PIECE.captures_iter(statement);
    let tokens = tokens.filter_map(|piece| Some(piece.get(1)?.as_str()));
    tokens.collect::<Vec<_>>().join(" ")
}

/// Whether two statements are the same but for comments and white space.
pub fn is_same_sql(one: &str, other: &str) -> bool {
    normalized(one) == normalized(other)
}

/// What may precede a statement and is none of it.
fn blank(c: char) -> bool {
    c.is_whitespace() || c == ';'
}

/// The word that decides what a statement is, in upper case: behind brackets, and behind WITH and USING.
fn leading(tokens: &[&str]) -> Option<String> {
    let mut rest = tokens;
    loop {
        let (first, behind) = rest.split_first()?;
        rest = match first.to_uppercase().as_str() {
            "(" => behind,
            "WITH" => behind_with(behind),
            // USING EXTERNAL FUNCTION declares functions for the query that follows.
            "USING" => behind_using(behind),
            word => return Some(word.to_owned()),
        };
    }
}

/// What follows the named queries: `name (columns) AS (query), ...`.
fn behind_with<'a>(tokens: &'a [&'a str]) -> &'a [&'a str] {
    let is = |token: Option<&&str>, word: &str| token.is_some_and(|t| t.eq_ignore_ascii_case(word));
    let mut rest = tokens;
    if is(rest.first(), "RECURSIVE") && !is(rest.get(1), "AS") {
        rest = &rest[1..];
    }
    loop {
        rest = behind_brackets(rest.get(1..).unwrap_or_default());
        if is(rest.first(), "AS") {
            rest = &rest[1..];
        }
        rest = behind_brackets(rest);
        if rest.first() != Some(&",") {
            return rest;
        }
        rest = &rest[1..];
    }
}

/// What follows the brackets that the tokens begin with, if they do.
fn behind_brackets<'a>(tokens: &'a [&'a str]) -> &'a [&'a str] {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match *token {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return &tokens[if *token == ")" { index + 1 } else { index }..];
        }
    }
    &[]
}

fn behind_using<'a>(tokens: &'a [&'a str]) -> &'a [&'a str] {
    let begins = |token: &&str| {
        let word = token.to_uppercase();
        QUERIES.contains(&word.as_str()) || word == "WITH" || CHANGES.contains(&word.as_str())
    };
    let start = tokens.iter().position(begins).unwrap_or(tokens.len());
    &tokens[start..]
}

fn refusal(word: &str) -> String {
    let remedy = match word {
        "SHOW" | "DESCRIBE" | "DESC" => {
            "its result has no column names and no types; select from information_schema.tables or information_schema.columns instead"
        }
        "EXPLAIN" => "it describes a query; write the query itself",
        "UNLOAD" => "the pipeline reads the result itself; write the SELECT in its brackets alone",
        _ => {
            "Athena would execute it, and again at every retry; execute it elsewhere, and select here"
        }
    };
    let shown: String = word.chars().take(30).collect();
    format!(
        "the SQL is a statement that begins with {shown}, and only a query can be loaded: SELECT, WITH, VALUES or TABLE; {remedy}"
    )
}

/// Whether a sub-statement type of Athena, such as `SELECT` or `CREATE_TABLE_AS_SELECT`, changes something.
pub fn changes_something(substatement_type: &str) -> bool {
    let first = substatement_type.split(['_', ' ']).next();
    first.is_some_and(|word| CHANGES.contains(&word.to_uppercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_taken_without_what_ends_them() {
        for sql in [
            "SELECT 1",
            "select 1",
            "VALUES (1), (2)",
            "TABLE clicks",
            "(SELECT 1) UNION (SELECT 2)",
            "((VALUES 1))",
            "-- INSERT\nSELECT 1",
            "/* INSERT ; */ SELECT ';' -- ; INSERT",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "WITH RECURSIVE a (n) AS (SELECT (1)), b AS (VALUES 2) (SELECT * FROM a)",
            "WITH recursive AS (SELECT 1) TABLE recursive",
            "with merge as (select 1) select * from merge",
            "WITH \"insert\" (\"a)\", b) AS (SELECT ')' , 2) SELECT 1",
            "WITH a AS (WITH b AS (SELECT 1) SELECT * FROM b) SELECT * FROM a",
            "USING EXTERNAL FUNCTION f(x VARCHAR) RETURNS VARCHAR LAMBDA 'f' SELECT f('a')",
            "SELECT insert FROM \"delete\" WHERE a = 'x; DROP TABLE y'",
        ] {
            assert_eq!(query(sql), Ok(sql));
            assert_eq!(query(&format!(" \n{sql}\n;;\n")), Ok(sql), "{sql}");
        }
        assert_eq!(query(";SELECT 1; -- done"), Ok("SELECT 1"));
        assert_eq!(query("SELECT 1 /* a */ ; /* b */"), Ok("SELECT 1 /* a */"));
    }

    #[test]
    fn other_statements_are_refused_by_their_name() {
        for (sql, part) in [
            ("INSERT INTO t SELECT 1", "begins with INSERT"),
            ("insert into t select 1", "begins with INSERT"),
            ("/* SELECT */ (DELETE FROM t)", "begins with DELETE"),
            ("CREATE TABLE t AS SELECT 1", "begins with CREATE"),
            ("MERGE INTO t USING s ON a = b", "begins with MERGE"),
            ("UNLOAD (SELECT 1) TO 's3://b/p'", "write the SELECT"),
            ("WITH a AS (SELECT 1) INSERT INTO t SELECT 1", "with INSERT"),
            (
                "WITH a (b) AS (SELECT 1) -- x\n DELETE FROM t",
                "with DELETE",
            ),
            (
                "USING EXTERNAL FUNCTION f() RETURNS INT LAMBDA 'f' INSERT INTO t",
                "with INSERT",
            ),
            ("SHOW TABLES", "information_schema"),
            ("DESCRIBE t", "information_schema"),
            ("EXPLAIN SELECT 1", "the query itself"),
            ("EXECUTE p USING 1", "begins with EXECUTE"),
            ("DROP TABLE t", "begins with DROP"),
            ("SELCT 1", "begins with SELCT"),
            ("'SELECT'", "only a query"),
            ("WITH", "only a query"),
            ("SELECT 1; SELECT 2", "several statements"),
            ("SELECT 1; DROP TABLE t;", "several statements"),
            ("-- SELECT 1", "no statement"),
            (" ; ", "no statement"),
            ("", "no statement"),
        ] {
            let refused = query(sql).unwrap_err();
            assert!(refused.contains(part), "{sql}: {refused}");
        }
    }

    #[test]
    fn sub_statement_types_of_changes_are_known() {
        for changes in [
            "INSERT",
            "unload",
            "CREATE_TABLE_AS_SELECT",
            "MERGE",
            "DROP_TABLE",
        ] {
            assert!(changes_something(changes), "{changes}");
        }
        for reads in ["SELECT", "VALUES", "WITH", "", "SOMETHING_NEW"] {
            assert!(!changes_something(reads), "{reads}");
        }
    }
}
