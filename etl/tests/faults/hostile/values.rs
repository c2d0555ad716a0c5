//! Hostile values.

use testkit::cloud::{Column, ResultSet};
use testkit::pipeline::Pipeline;

use super::{assert_unharmed, failure, plain, through};

#[tokio::test(flavor = "multi_thread")]
async fn text_with_copy_or_csv_syntax_stays_text() {
    let mut pipeline = Pipeline::start().await;
    let texts = [
        "\\.",
        "\\N",
        "\\",
        "\\\\.",
        "",
        " ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "a\tb\nc\rd\\",
        "\n\\.\n",
        ",",
        "\"",
        "\"\"",
        "\",\"",
        "'",
        "NULL",
        "null",
        "\u{b}\u{8}\u{c}\u{7f}\u{1b}",
        "ä😀\u{2028}\u{feff}",
        "=cmd()",
        "%s%n",
        "{}",
        "\u{fffd}",
        "e\u{301}",
    ];
    let rows: Vec<Vec<_>> = texts
        .iter()
        .map(|text| vec![Some((*text).to_owned())])
        .chain([vec![None]])
        .collect();
    for results in ["s3", "api"] {
        let name = format!("texts_{results}");
        // One column: a NULL is a blank line of the file.
        pipeline.job(
            &name,
            &through(results, &name),
            ResultSet::new(vec![Column::new("v", "varchar")], rows.clone()),
        );
        let run = pipeline.run(&name, &name).await;
        assert_eq!(run["rows_loaded"], rows.len(), "{run}");
        pipeline.assert_reconciled(&name).await;
        let sql = format!("SELECT v FROM {name} ORDER BY v COLLATE \"C\" NULLS LAST");
        let found: Vec<Option<String>> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&pipeline.database.pool)
            .await
            .unwrap();
        let mut wanted: Vec<Option<String>> = rows.iter().map(|row| row[0].clone()).collect();
        wanted.sort_by_key(|text| (text.is_none(), text.clone()));
        assert_eq!(found, wanted);
    }
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nul_rejects_its_row_and_no_other() {
    let mut pipeline = Pipeline::start().await;
    let nul = ResultSet::table(
        &[("k", "bigint"), ("v", "varchar")],
        &[
            &[Some("1"), Some("a")],
            &[Some("2"), Some("b\0c")],
            &[Some("3"), Some("\0")],
            &[Some("4"), None],
        ],
    );
    for results in ["s3", "api"] {
        let name = format!("nul_{results}");
        pipeline.job(&name, &through(results, &name), nul.clone());
        let run = pipeline.run(&name, &name).await;
        assert_eq!(
            (&run["rows_loaded"], &run["rows_rejected"]),
            (&2.into(), &2.into()),
            "{run}"
        );
        pipeline.assert_reconciled(&name).await;
        assert_eq!(pipeline.table("k", &name).await, ["(1)", "(4)"]);
        let kept = pipeline
            .table(
                "row_number, column_name",
                &format!("etl.rejected_rows WHERE run_id = '{name}'"),
            )
            .await;
        assert_eq!(kept, ["(1,v)", "(2,v)"]);
        let rejects = pipeline.etl(&["rejects", &name, "--json"]).await;
        assert!(rejects.stdout.contains("\\u0000"), "{}", rejects.stdout);
    }
    assert_unharmed(&mut pipeline).await;
}

/// A type, a valid value, and a value out of range.
const RANGES: [(&str, &str, &str); 13] = [
    ("smallint", "1", "32768"),
    ("integer", "1", "-2147483649"),
    ("bigint", "1", "9223372036854775808"),
    ("numeric(5,2)", "1.00", "1000.00"),
    ("real", "1", "1e39"),
    ("double precision", "1", "1e400"),
    ("date", "2018-04-02", "2018-02-30"),
    ("timestamp", "2018-04-02 00:00:00", "2018-04-02 25:00:00"),
    ("char(2)", "ab", "abc"),
    ("boolean", "true", "perhaps"),
    ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
    ("inet", "10.0.0.1", "10.0.0.256"),
    ("json", "{}", "{"),
];

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_dates_out_of_range_reject_their_rows_with_the_reason() {
    let mut pipeline = Pipeline::start().await;
    // The first and the last row are good; the others have one bad value each.
    let good: Vec<_> = RANGES
        .iter()
        .map(|(_, good, _)| Some((*good).to_owned()))
        .collect();
    let mut rows = vec![good.clone()];
    for (at, (_, _, bad)) in RANGES.iter().enumerate() {
        let mut row = good.clone();
        row[at] = Some((*bad).to_owned());
        rows.push(row);
    }
    rows.push(good);
    let columns = (0..RANGES.len())
        .map(|n| Column::new(&format!("c{n}"), "varchar"))
        .collect();
    let declared = RANGES.iter().enumerate().map(|(n, (pg_type, ..))| {
        format!("[[columns]]\nsource = \"c{n}\"\ntype = \"{pg_type}\"\n")
    });
    let toml = plain("ranges") + &declared.collect::<String>();
    pipeline.job("ranges", &toml, ResultSet::new(columns, rows));
    let run = pipeline.run("ranges", "ranges").await;
    assert_eq!(
        (&run["rows_loaded"], &run["rows_rejected"]),
        (&2.into(), &RANGES.len().into()),
        "{run}"
    );
    pipeline.assert_reconciled("ranges").await;
    // The n-th row is rejected for its n-th column, with a reason.
    let right = "SELECT count(*) FROM etl.rejected_rows WHERE column_name = 'c' || (row_number - 1) AND reason <> '' AND rule IN ('type', 'postgres')";
    assert_eq!(
        pipeline.number(right).await,
        i64::try_from(RANGES.len()).unwrap()
    );
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn value_of_twenty_megabytes_fails_its_run_and_no_other() {
    let mut pipeline = Pipeline::start().await;
    let columns = vec![Column::new("n", "bigint"), Column::new("text", "varchar")];
    let result = ResultSet::generated(columns, 3_000, |n| {
        let text = if n == 2_345 {
            "x".repeat(20 << 20)
        } else {
            "y".into()
        };
        vec![Some(n.to_string()), Some(text)]
    });
    for results in ["s3", "api"] {
        let name = format!("large_{results}");
        pipeline.job(&name, &through(results, &name), result.clone());
        let reason = failure(&pipeline, &name, &name).await;
        assert!(
            reason.contains("row 2345 ") && reason.contains("\"text\""),
            "{reason}"
        );
    }
    for service in &pipeline.services {
        assert!(
            !service.log().contains("larger than configured max size"),
            "the broker closed a channel on {service:?}"
        );
    }
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_of_the_largest_size_is_loaded_whatever_its_characters() {
    let mut pipeline = Pipeline::start().await;
    // Each takes six bytes in JSON, and the size of a message is limited too.
    let (wide, most) = ("\u{1}".repeat((2 << 20) - 1), "x".repeat((4 << 20) - 2));
    let result = ResultSet::table(
        &[("n", "bigint"), ("text", "varchar")],
        &[
            &[Some("0"), Some(&wide)],
            &[Some("1"), Some(&most)],
            &[Some("2"), Some("small")],
        ],
    );
    for results in ["s3", "api"] {
        let name = format!("most_{results}");
        pipeline.job(&name, &through(results, &name), result.clone());
        pipeline.run(&name, &name).await;
        pipeline.assert_reconciled(&name).await;
        let lengths = pipeline.table("n, length(text)", &name).await;
        assert_eq!(lengths, ["(0,2097151)", "(1,4194302)", "(2,5)"]);
    }
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_too_large_for_a_message_fails_the_run_and_is_named() {
    let mut pipeline = Pipeline::start().await;
    let worst = "\u{1}".repeat((4 << 20) - 1);
    let result = ResultSet::table(
        &[("n", "bigint"), ("text", "varchar")],
        &[&[Some("7"), Some(&worst)]],
    );
    pipeline.job("worst", &plain("worst"), result);
    let reason = failure(&pipeline, "worst", "worst").await;
    assert!(reason.contains("row 0 "), "{reason}");
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_result_with_only_rejected_rows_is_in_quarantine_completely() {
    let mut pipeline = Pipeline::start().await;
    let column = |n: usize| {
        Column::new(
            &format!("a_name_of_forty_bytes_for_one_column_{n:03}"),
            "varchar",
        )
    };
    let columns: Vec<_> = (0..250).map(column).collect();
    let toml = format!(
        "{}allow_all_rejected = true\n[[columns]]\nsource = \"{}\"\nrules = [{{ required = true }}]\n",
        plain("nothing"),
        columns[0].name
    );
    pipeline.job(
        "nothing",
        &toml,
        ResultSet::generated(columns, 4_000, |_| vec![None; 250]),
    );
    let run = pipeline.run("nothing", "nothing").await;
    assert_eq!(run["rows_rejected"], 4_000, "{run}");
    pipeline.assert_reconciled("nothing").await;
    assert_unharmed(&mut pipeline).await;
}
