//! Queries as people write them for Athena.

use super::*;

const PLACE: Place<'_> = Place {
    catalog: None,
    database: "netflix",
};

#[track_caller]
fn tables(sql: &str) -> Vec<String> {
    let reads = read(sql, PLACE).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let tables = reads.tables.into_iter();
    let mut tables: Vec<_> = tables
        .map(|table| table.replace("AwsDataCatalog.netflix.", ""))
        .collect();
    tables.sort();
    tables
}

#[test]
fn shipped_queries_read_their_tables() {
    for sql in [
        include_str!("../../../../jobs/clicks.sql"),
        include_str!("../../../../jobs/most_visited_url.sql"),
        include_str!("../../../../examples/jobs/visits.sql"),
    ] {
        let sql = sql
            .replace(":from", "DATE '2018-04-02'")
            .replace(":to", "DATE '2018-04-03'");
        assert!(!tables(&sql).is_empty(), "{sql}");
    }
}

#[test]
fn tables_are_found_wherever_a_query_may_have_them() {
    for (sql, expected) in [
        ("SELECT * FROM clicks", &["clicks"][..]),
        ("SELECT 1", &[]),
        (
            "SELECT c.url FROM Clicks c JOIN users AS u ON c.user_id = u.id LEFT JOIN \"Countries\" USING (code)",
            &["clicks", "countries", "users"],
        ),
        (
            "SELECT a FROM x, y WHERE a IN (SELECT b FROM z) AND EXISTS (SELECT 1 FROM w WHERE w.i = x.i)",
            &["w", "x", "y", "z"],
        ),
        (
            "SELECT (SELECT max(d) FROM days) AS latest FROM clicks",
            &["clicks", "days"],
        ),
        (
            "SELECT * FROM (SELECT a FROM x UNION ALL SELECT a FROM y EXCEPT SELECT a FROM z)",
            &["x", "y", "z"],
        ),
        (
            "SELECT u.value FROM clicks CROSS JOIN UNNEST(tags) WITH ORDINALITY AS u (value, n)",
            &["clicks"],
        ),
        ("SELECT * FROM UNNEST(sequence(1, 3)) AS t (n)", &[]),
        ("SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS t (n, s)", &[]),
        ("SELECT * FROM TABLE(sequence(start => 1, stop => 3))", &[]),
        (
            "SELECT * FROM sales.orders",
            &["AwsDataCatalog.sales.orders"],
        ),
        (
            "SELECT * FROM awsdatacatalog.sales.orders",
            &["AwsDataCatalog.sales.orders"],
        ),
        (
            "SELECT * FROM \"My-Lambda\".\"Sales\".\"Orders\"",
            &["My-Lambda.sales.orders"],
        ),
        ("SELECT * FROM \"clicks$partitions\"", &["clicks"]),
        (
            "SELECT * FROM clicks FOR TIMESTAMP AS OF TIMESTAMP '2026-01-01 00:00:00 UTC'",
            &["clicks"],
        ),
        (
            "SELECT * FROM clicks FOR VERSION AS OF 949530903748831860",
            &["clicks"],
        ),
        (
            "SELECT * FROM clicks TABLESAMPLE BERNOULLI (10)",
            &["clicks"],
        ),
    ] {
        assert_eq!(tables(sql), expected, "{sql}");
    }
}

#[test]
fn names_of_a_with_are_no_tables_where_they_are_defined() {
    for (sql, expected) in [
        (
            "WITH days AS (SELECT day FROM clicks), top AS (SELECT * FROM days) SELECT * FROM top JOIN Days USING (day)",
            &["clicks"][..],
        ),
        // In its own definition the name is the table.
        (
            "WITH clicks AS (SELECT * FROM clicks) SELECT * FROM clicks",
            &["clicks"],
        ),
        // A later definition is not in scope of an earlier one.
        (
            "WITH a AS (SELECT * FROM b), b AS (SELECT * FROM c) SELECT * FROM a, b",
            &["b", "c"],
        ),
        (
            "WITH RECURSIVE t (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT * FROM t",
            &[],
        ),
        // Outside of the subquery it is the table.
        (
            "SELECT * FROM a JOIN (WITH a AS (SELECT * FROM x) SELECT * FROM a) s ON true",
            &["a", "x"],
        ),
        (
            "WITH a AS (SELECT 1 AS n) SELECT * FROM x WHERE n IN (SELECT n FROM a WHERE n IN (SELECT n FROM other.a))",
            &["AwsDataCatalog.other.a", "x"],
        ),
    ] {
        assert_eq!(tables(sql), expected, "{sql}");
    }
}

#[test]
fn what_athena_writes_is_parsed() {
    for expression in [
        "date_trunc('day', from_iso8601_timestamp(ts)) AT TIME ZONE 'UTC'",
        "CAST(a AS ROW(x bigint, y varchar)).x",
        "CAST(json_parse(j) AS ARRAY(MAP(varchar, double)))",
        "TRY_CAST(a AS decimal(10,2))",
        "transform(tags, t -> lower(t))",
        "reduce(a, 0, (s, x) -> s + x, s -> s)",
        "filter(map_values(m), v -> v IS NOT NULL)",
        "m['key']",
        "a[1]",
        "ARRAY[1, 2, 3]",
        "MAP(ARRAY['a'], ARRAY[1])",
        "count(*) FILTER (WHERE a > 0)",
        "approx_percentile(a, 0.99)",
        "array_agg(DISTINCT a ORDER BY b DESC)",
        "listagg(a, ',') WITHIN GROUP (ORDER BY a)",
        "row_number() OVER (PARTITION BY a ORDER BY b DESC NULLS LAST)",
        "lag(a, 1) IGNORE NULLS OVER (ORDER BY b)",
        "sum(a) OVER (ORDER BY b RANGE BETWEEN INTERVAL '1' DAY PRECEDING AND CURRENT ROW)",
        "extract(day FROM d) - day_of_week(d)",
        "current_date - INTERVAL '7' DAY",
        "date '2018-04-02'",
        "TIMESTAMP '2018-04-02 00:00:00.000 Europe/Berlin'",
        "decimal '1.10'",
        "X'65683F'",
        "U&'\\0041'",
        "a IS DISTINCT FROM b",
        "a BETWEEN 1 AND 2 AND b LIKE 'x%' ESCAPE '\\'",
        "CASE WHEN a THEN 1 ELSE 2 END",
        "if(a, b, c)",
        "coalesce(nullif(a, ''), b)",
        "substring(a FROM 2 FOR 3)",
        "position('a' IN b)",
        "trim(BOTH ' ' FROM a)",
        "a || '-' || b",
        "1e5 * 2 % 3",
        "json_extract_scalar(j, '$.a.b')",
        "regexp_extract(a, '^(\\d+)', 1)",
        "\"Quoted Column\"",
        "ROW(1, 'a')",
        "a = ANY (SELECT b FROM clicks)",
        "grouping(a)",
    ] {
        let sql = format!("SELECT {expression} AS v FROM clicks");
        assert_eq!(tables(&sql), ["clicks"], "{sql}");
    }
    for end in [
        "WHERE year = '2018' AND day IN ('01', '02') -- a comment; with a semicolon",
        "/* a comment */ GROUP BY GROUPING SETS ((a, b), (a), ())",
        "GROUP BY ROLLUP (a, b)",
        "GROUP BY CUBE (a, b) HAVING count(*) > 1",
        "GROUP BY 1, 2 ORDER BY 2 DESC NULLS FIRST OFFSET 2 LIMIT 10",
        "ORDER BY a FETCH FIRST 10 ROWS WITH TIES",
        "WINDOW w AS (PARTITION BY a)",
        ";",
    ] {
        let sql = format!("SELECT a, b FROM clicks {end}");
        assert_eq!(tables(&sql), ["clicks"], "{sql}");
    }
}

#[test]
fn what_is_no_query_or_cannot_be_parsed_reads_nothing() {
    for sql in [
        "",
        "SELECT FROM WHERE",
        "UNLOAD (SELECT * FROM clicks) TO 's3://b/' WITH (format = 'PARQUET')",
        "EXECUTE statement USING 1",
        "DELETE FROM clicks",
        "INSERT INTO a SELECT * FROM clicks",
        "SELECT * FROM a; SELECT * FROM b",
        "SHOW TABLES",
    ] {
        assert_eq!(Reads::of(sql, PLACE), Reads::default(), "{sql}");
    }
}

#[test]
fn statement_as_long_as_athena_takes_ends_no_process() {
    let long = |middle: &str, count: usize| format!("SELECT 1{} FROM clicks", middle.repeat(count));
    assert_eq!(Reads::of(&long("+1", 9_000), PLACE).tables.len(), 1);
    assert_eq!(Reads::of(&long("+1", 120_000), PLACE), Reads::default());
    let nested = format!(
        "SELECT {}1{} FROM clicks",
        "(".repeat(5_000),
        ")".repeat(5_000)
    );
    assert_eq!(Reads::of(&nested, PLACE), Reads::default());
    let union = format!(
        "SELECT a FROM clicks{}",
        " UNION ALL SELECT a FROM clicks".repeat(3_000)
    );
    assert_eq!(Reads::of(&union, PLACE).tables.len(), 1);
}

#[test]
fn column_is_followed_only_where_it_is_certain() {
    let origins = |sql: &str, columns: &[&str]| {
        let reads = read(sql, PLACE).unwrap();
        let origin = |column: &&str| {
            let (table, field) = reads.origin(column)?;
            Some(format!("{table}.{field}").replace("AwsDataCatalog.netflix.", ""))
        };
        columns.iter().map(origin).collect::<Vec<_>>()
    };
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(
        origins(
            "SELECT URL, country AS c, upper(a) AS a, clicks.day, x.y FROM clicks GROUP BY 1",
            &["url", "C", "a", "day", "y"]
        ),
        [
            some("clicks.url"),
            some("clicks.country"),
            None,
            some("clicks.day"),
            None
        ]
    );
    assert_eq!(
        origins("SELECT * FROM clicks WHERE a", &["Url"]),
        [some("clicks.url")]
    );
    assert_eq!(
        origins("SELECT *, 1 AS one FROM clicks", &["url", "one"]),
        [None, None]
    );
    assert_eq!(
        origins(
            "SELECT a, c.b, u.d FROM clicks c JOIN users u ON true, UNNEST(c.l) AS t (e)",
            &["a", "b", "d"]
        ),
        [None, some("clicks.b"), some("users.d")]
    );
    for sql in [
        "WITH clicks AS (SELECT 1 AS a) SELECT a FROM clicks",
        "SELECT a FROM clicks UNION SELECT a FROM x",
        "SELECT a FROM (SELECT b AS a FROM clicks)",
        "SELECT * FROM clicks, users",
    ] {
        assert_eq!(origins(sql, &["a"]), [None], "{sql}");
    }
}
