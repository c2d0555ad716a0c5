//! Whole batches: every row is either valid or rejected.

use common::job::{ColumnSpec, Mode, Rule, Target};
use common::message::{BatchId, Message};
use proptest::prelude::*;

use super::*;
use crate::column::MAX_REASON_CHARS;

const COLUMNS: &[(&str, &str)] = &[
    ("country", "varchar"),
    ("day", "varchar"),
    ("visits", "bigint"),
];

fn job() -> JobSpec {
    let column = |source: &str, name: Option<&str>, pg_type: &str, rules| ColumnSpec {
        source: Some(source.into()),
        name: name.map(Into::into),
        pg_type: Some(pg_type.parse().unwrap()),
        rules,
        ..ColumnSpec::default()
    };
    JobSpec {
        name: "clicks".into(),
        target: Target {
            table: "clicks".into(),
            mode: Mode::Append,
            ..Target::default()
        },
        columns: vec![
            column(
                "country",
                Some("country_code"),
                "char(2)",
                vec![Rule::NotEmpty(true), Rule::NoneOf(vec!["A1".into()])],
            ),
            column("day", None, "date", vec![Rule::Required(true)]),
        ],
        ..JobSpec::default()
    }
}

fn batch(rows: &[[Option<&str>; 3]]) -> RawBatch {
    let mut all = Rows::new(3);
    for row in rows {
        all.push(*row);
    }
    let columns = COLUMNS.iter().map(|(name, type_name)| ResultColumn {
        name: (*name).into(),
        type_name: (*type_name).into(),
    });
    RawBatch {
        id: BatchId {
            run: "r".parse().unwrap(),
            generation: 0,
            first_row: 300,
        },
        is_bulk: false,
        result_id: "q:pages".into(),
        job: Arc::new(job()),
        columns: Arc::new(columns.collect()),
        rows: all,
    }
}

fn transformed(rows: &[[Option<&str>; 3]]) -> ValidBatch {
    let batch = batch(rows);
    let plan = Plans::default().plan(&batch).unwrap();
    let valid = transform(&plan, batch.clone());
    assert_eq!(valid.check(), Ok(()));
    assert_eq!(valid.rows_extracted(), rows.len());
    valid
}

#[test]
fn bad_rows_are_rejected_and_good_rows_pass() {
    let day = Some("2018-04-02");
    let valid = transformed(&[
        [Some("US"), day, Some("1")],
        [Some("A1"), day, Some("2")],
        [None, day, None],
        [Some(""), day, Some("3")],
        [Some("DE"), Some("2018-02-30"), Some("4")],
        [Some("DE"), None, Some("5")],
        [Some("FR"), day, Some("6")],
    ]);
    let rows: Vec<_> = valid
        .rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|value| value.unwrap_or("-").to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(
        rows,
        ["US 2018-04-02 1", "- 2018-04-02 -", "FR 2018-04-02 6"]
    );
    assert_eq!(valid.row_offsets, [0, 2, 6]);
    let rejected: Vec<_> = valid
        .rejected
        .iter()
        .map(|row| {
            (
                row.row,
                row.reject.column.as_deref(),
                row.reject.rule.as_str(),
            )
        })
        .collect();
    assert_eq!(
        rejected,
        [
            (301, Some("country_code"), "none_of"),
            (303, Some("country_code"), "not_empty"),
            (304, Some("day"), "type"),
            (305, Some("day"), "required"),
        ]
    );
    let raw = [("country", Some("A1")), ("day", day), ("visits", Some("2"))];
    assert_eq!(
        valid.rejected[0].raw,
        raw.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
    );
    assert_eq!(
        valid.rejected[2].reject.reason,
        r#""2018-02-30" names a day that no calendar has; the column is date"#
    );
}

#[test]
fn empty_batch_stays_a_batch() {
    let valid = transformed(&[]);
    assert_eq!((valid.rows.len(), valid.rejected.len()), (0, 0));
    assert_eq!(valid.columns.len(), 3);
}

#[test]
fn content_hash_covers_the_raw_rows() {
    let raw = batch(&[[Some("A1"), None, Some("1")]]);
    let plan = Plan::new(&raw.job, &raw.columns).unwrap();
    let strict = transform(&plan, raw.clone());
    let without_rules = JobSpec {
        columns: vec![],
        ..job()
    };
    let lax = transform(
        &Plan::new(&without_rules, &raw.columns).unwrap(),
        raw.clone(),
    );
    assert_eq!(strict.content_hash, lax.content_hash);
    assert_eq!((strict.rejected.len(), lax.rejected.len()), (1, 0));
}

#[test]
fn job_that_does_not_fit_the_result_has_no_plan() {
    let mut spec = job();
    spec.columns[1].rules.push(Rule::Min("yesterday".into()));
    let columns = batch(&[]).columns;
    assert!(matches!(
        Plan::new(&spec, &columns),
        Err(PlanError::Rule { rule: "min", .. })
    ));
    assert!(matches!(
        Plan::new(&job(), &columns[..1]),
        Err(PlanError::Schema(_))
    ));
}

#[test]
fn equal_jobs_share_one_of_a_bounded_number_of_plans() {
    let mut plans = Plans::default();
    let first = plans.plan(&batch(&[])).unwrap();
    assert!(
        Arc::ptr_eq(&first, &plans.plan(&batch(&[])).unwrap()),
        "an equal job of another message"
    );
    for number in 0..2 * MAX_PLANS {
        let mut other = batch(&[]);
        other.job = Arc::new(JobSpec {
            name: number.to_string(),
            ..job()
        });
        plans.plan(&other).unwrap();
        assert!(plans.0.len() <= MAX_PLANS);
    }
}

#[test]
fn reason_of_a_long_rule_is_truncated() {
    let mut batch = batch(&[[None, Some("2018-04-02"), Some("1")]]);
    let mut long = job();
    long.columns[1].pg_type = None;
    long.columns[1].rules = vec![Rule::Pattern("ä".repeat(5_000))];
    batch.job = Arc::new(long);
    let valid = transform(&Plans::default().plan(&batch).unwrap(), batch.clone());
    let reason = &valid.rejected[0].reject.reason;
    assert!(
        reason.contains("does not match the pattern") && reason.chars().count() == MAX_REASON_CHARS
    );
}

/// The job with more columns, as in a job file.
fn with_columns(toml: &str) -> JobSpec {
    #[derive(serde::Deserialize)]
    struct Columns {
        columns: Vec<ColumnSpec>,
    }
    let columns = toml::from_str::<Columns>(toml).unwrap().columns;
    JobSpec { columns, ..job() }
}

#[test]
fn constants_are_in_every_row_and_masks_also_in_the_quarantine() {
    let spec = with_columns(
        r#"
        [[columns]]
        source = "country"
        mask = "last4"
        rules = [{ none_of = ["0000-1111-2222"] }]
        [[columns]]
        name = "tenant"
        constant = "acme"
        [[columns]]
        name = "asked"
        requested_at = true
        "#,
    );
    let asked = spec.with_requested_at("2018-04-09T10:11:12Z".parse().unwrap());
    let mut batch = batch(&[
        [Some("3333-4444-5555"), Some("a"), Some("1")],
        [Some("0000-1111-2222"), Some("b"), Some("2")],
        [Some("3333-4444-5555"), Some("c"), Some("x")],
        [None, None, None],
    ]);
    batch.job = Arc::new(asked);
    let valid = transform(&Plans::default().plan(&batch).unwrap(), batch.clone());
    assert_eq!(valid.check(), Ok(()));
    let names: Vec<_> = valid
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    assert_eq!(names, ["country", "day", "visits", "tenant", "asked"]);
    let rows: Vec<_> = valid
        .rows
        .iter()
        .map(|row| row.to_vec().join_shown())
        .collect();
    let wanted = [
        "****5555 a 1 acme 2018-04-09 10:11:12+00",
        "- - - acme 2018-04-09 10:11:12+00",
    ];
    assert_eq!(rows, wanted);
    let raw: Vec<_> = valid
        .rejected
        .iter()
        .map(|row| {
            let values: Vec<_> = row.raw.iter().map(|(_, value)| value.clone()).collect();
            values.join_shown()
        })
        .collect();
    assert_eq!(raw, ["****2222 b 2", "****5555 c x"]);
    let sent = serde_json::to_string(&valid).unwrap();
    assert!(
        !sent.contains("0000-1111") && !sent.contains("3333-4444"),
        "{sent}"
    );
    // Without a request time the job has no value to load.
    batch.job = Arc::new(spec);
    let error = Plans::default().plan(&batch).unwrap_err().to_string();
    assert!(error.contains("\"asked\""), "{error}");
}

#[test]
fn row_outside_of_replace_where_is_rejected() {
    let mut spec = with_columns(
        "[[columns]]\nsource = \"day\"\nname = \"date\"\ntype = \"date\"\n[[columns]]\nsource = \"country\"\nmask = \"redact\"",
    );
    spec.target.mode = Mode::Replace;
    let window = |text: &str| Some(common::job::Window::parse(text).unwrap());
    spec.target.replace_where = window("date between '2018-04-02' and '2018-04-08'");
    let mut batch = batch(&[
        [Some("secret"), Some("2018-04-08"), Some("1")],
        [Some("secret"), Some("2018-04-09"), Some("2")],
        [Some("secret"), None, Some("3")],
    ]);
    batch.job = Arc::new(spec.clone());
    let valid = transform(&Plans::default().plan(&batch).unwrap(), batch.clone());
    assert_eq!(valid.row_offsets, [0]);
    for row in &valid.rejected {
        assert_eq!(row.reject.rule, "replace_where");
        assert_eq!(row.reject.column.as_deref(), Some("date"));
        assert_eq!(row.raw[0].1.as_deref(), Some("***"));
    }
    for (condition, part) in [
        ("country = 'x'", "masked"),
        ("nobody = 1", "not among the columns"),
        ("visits = 'x'", "not an integer"),
    ] {
        spec.target.replace_where = window(condition);
        batch.job = Arc::new(spec.clone());
        let error = Plans::default().plan(&batch).unwrap_err().to_string();
        assert!(error.contains(part), "{condition}: {error}");
    }
}

/// The packed rows of a batch that came over a queue, and the batch made of it.
fn over_the_queue(batch: &RawBatch) -> (Vec<u8>, ValidBatch) {
    let came = batch.write().unwrap().bytes;
    let raw = RawBatch::read(RawBatch::KIND, &came).unwrap();
    let valid = transform(&Plans::default().plan(&raw).unwrap(), raw);
    let sent = valid.write().unwrap().bytes;
    assert_eq!(
        ValidBatch::read(ValidBatch::KIND, &sent).as_ref(),
        Ok(&valid)
    );
    assert_eq!(valid.check(), Ok(()));
    (sent, valid)
}

#[test]
fn unchanged_rows_are_published_in_their_packed_form() {
    let texts: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let rows: Vec<_> = texts
        .iter()
        .map(|visits| [Some("US"), Some("2018-04-02"), Some(visits.as_str())])
        .collect();
    let untouched = batch(&rows);
    let (sent, valid) = over_the_queue(&untouched);
    assert_eq!(valid.rows, untouched.rows);
    assert!(valid.row_offsets.is_empty());
    let came = untouched.write().unwrap().bytes;
    assert!(sent.ends_with(&came[came.len() - 300..]));

    // One row changes or is rejected, at any place, and nothing else differs.
    for place in [0, 1, 250, 499] {
        let mut rows = rows.clone();
        rows[place][2] = Some("07");
        let (_, valid) = over_the_queue(&batch(&rows));
        rows[place][2] = Some("7");
        assert_eq!(valid.rows, batch(&rows).rows, "{place}");
        assert!(valid.row_offsets.is_empty());

        rows[place][0] = Some("A1");
        let (_, valid) = over_the_queue(&batch(&rows));
        rows.remove(place);
        assert_eq!(valid.rows, batch(&rows).rows, "{place}");
        assert_eq!(valid.rejected[0].row, valid.id.first_row + place as u64);
        let beside = valid.rows.len() - 1;
        assert_eq!(
            valid.ordinal(beside),
            valid.id.first_row + if place == 499 { 498 } else { 499 }
        );
    }
}

trait Shown {
    fn join_shown(&self) -> String;
}

impl Shown for Vec<Option<String>> {
    fn join_shown(&self) -> String {
        let values: Vec<_> = self
            .iter()
            .map(|value| value.as_deref().unwrap_or("-"))
            .collect();
        values.join(" ")
    }
}

proptest! {
    #[test]
    fn valid_and_rejected_are_all_rows(rows in prop::collection::vec(
        prop::array::uniform3(prop::option::of(prop_oneof!["[A-Z0-9]{0,3}", "2018-0[0-9]-[0-3][0-9]", "-?[0-9]{1,20}", ".{0,8}"])), 0..60,
    )) {
        let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(Option::as_deref)).collect();
        let valid = transformed(&rows);
        for (index, row) in valid.rows.iter().enumerate() {
            let raw = rows[usize::try_from(valid.ordinal(index) - valid.id.first_row).unwrap()];
            prop_assert_eq!(row.get(0), raw[0].map(|text| text.trim_end_matches(' ')));
            prop_assert_eq!(row.get(1), raw[1]);
            prop_assert_eq!(row.get(2).map(str::parse::<i64>), raw[2].map(str::parse::<i64>));
        }
        for rejected in &valid.rejected {
            let raw = rows[usize::try_from(rejected.row - valid.id.first_row).unwrap()];
            let seen: Vec<_> = rejected.raw.iter().map(|(_, value)| value.as_deref()).collect();
            prop_assert_eq!(&seen[..], &raw[..]);
        }
        // The same raw batch gives the same batch.
        prop_assert_eq!(transformed(&rows), valid);
    }
}
