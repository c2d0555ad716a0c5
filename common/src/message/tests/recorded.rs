//! Messages as released binaries wrote them: they wait in queues and in the archive while services are upgraded. The files
//! in `recorded/` are bodies, named after the message's version; a new version adds files and changes none.

use std::time::Duration;

use serde_json::from_value;

use super::*;
use crate::message::ContentHash;

/// A spec with every setting that a job had.
fn spec() -> JobSpec {
    from_value(json!({
        "name": "clicks",
        "target": {
            "table": "web.clicks", "mode": "replace", "commit": "run", "schema": "evolve",
            "replace_where": replace_where(), "min_rows": 3, "max_rejected": "2%",
            "allow_all_rejected": true, "allow_cascades": true
        },
        "columns": [
            {"source": "country", "name": "country_code", "type": "char(2)", "trim": true, "case": "upper",
             "null_if": ["", "-"], "rules": [{"required": true}, {"not_empty": true}, {"one_of": ["DE", "FR"]},
             {"none_of": ["A1"]}, {"max_length": 2}, {"pattern": "[A-Z]+"}]},
            {"source": "seen", "type": "timestamptz", "epoch": "ms"},
            {"source": "price", "type": "numeric(10,2)", "round": true, "rules": [{"min": "0"}, {"max": "9.5"}]},
            {"source": "birthday", "type": "date", "format": "%d.%m.%Y"},
            {"source": "mail", "mask": "sha256"},
            {"name": "day", "type": "date", "constant": "2018-04-02", "parameter": "from"},
            {"name": "requested", "constant": "2018-04-09T10:11:12.123456Z", "requested_at": true}
        ]
    }))
    .unwrap()
}

fn replace_where() -> Value {
    let window = crate::job::Window::parse("day between :from and :to").unwrap();
    let parameters = [("from", "2018-04-02"), ("to", "2018-04-08")];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
    json!(window.filled(&parameters.into()))
}

/// The target of a keyed mode, with the settings that only such a target has.
fn keyed() -> Target {
    from_value(json!({
        "table": "clicks", "mode": "insert_only", "key": ["a", "b"], "duplicates": "reject"
    }))
    .unwrap()
}

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

fn recorded_task(state: TaskState) -> ExtractTask {
    ExtractTask {
        run: "clicks-20180409".parse().unwrap(),
        run_no: 7,
        generation: 1,
        first_generation: 0,
        requested_at: at("2018-04-09T10:11:12.123456Z"),
        resumed_at: Some(at("2018-04-09T11:00:00Z")),
        sql: "SELECT * FROM clicks WHERE day >= DATE '2018-04-02'".into(),
        source: Source {
            database: "netflix".into(),
            workgroup: Some("etl".into()),
            catalog: Some("AwsDataCatalog".into()),
            output_location: Some("s3://bucket/results/".into()),
            results: Results::S3,
            max_scanned: Some(10_000_000_000),
            timeout: Duration::from_millis(90_500),
            ..Source::default()
        },
        job: Arc::new(spec()),
        limits: Limits {
            batch_rows: 1_000,
            batch_bytes: 65_536,
        },
        state,
    }
}

fn tasks() -> Vec<ExtractTask> {
    let id = || "11111111-2222-3333-4444-555555555555".to_owned();
    let object = S3Object {
        bucket: "bucket".into(),
        key: "results/a b.csv".into(),
        etag: "\"0cc175b9c0f1b6a831c399e269772661\"".into(),
        size: 1_234_567,
    };
    let reading = |location, page| TaskState::Reading {
        query_execution_id: id(),
        bytes_scanned: 123_456,
        location,
        columns: Arc::new(recorded_columns()),
        cursor: Cursor {
            offset: 70_000,
            row: 2_000,
            batches: 2,
            page,
        },
    };
    let plain = ExtractTask {
        generation: 0,
        first_generation: 0,
        resumed_at: None,
        job: Arc::new(JobSpec {
            target: keyed(),
            columns: vec![],
            ..spec()
        }),
        source: Source {
            workgroup: None,
            catalog: None,
            output_location: None,
            results: Results::Auto,
            max_scanned: None,
            ..recorded_task(TaskState::Start { attempt: 1 }).source
        },
        ..recorded_task(TaskState::Start { attempt: 1 })
    };
    vec![
        plain,
        recorded_task(TaskState::Waiting {
            attempt: 2,
            query_execution_id: id(),
            since: at("2018-04-09T10:12:00.5Z"),
        }),
        recorded_task(TaskState::Reread {
            query_execution_id: id(),
            result_id: format!("{}:0cc175b9c0f1b6a831c399e269772661", id()),
            result_location: None,
            columns: vec![],
        }),
        recorded_task(reading(ResultLocation::S3(object), None)),
        recorded_task(reading(
            ResultLocation::Pages,
            Some(("token".into(), 1_000)),
        )),
    ]
}

fn recorded_columns() -> Vec<ResultColumn> {
    [("country", "varchar"), ("price", "decimal(10,2)")]
        .map(|(name, type_name)| ResultColumn {
            name: name.into(),
            type_name: type_name.into(),
        })
        .into()
}

fn recorded_rows(values: &[[Option<&str>; 2]]) -> Rows {
    let mut rows = Rows::new(2);
    for row in values {
        rows.push(row.iter().copied());
    }
    rows
}

fn raw() -> RawBatch {
    let long = "long ".repeat(300);
    let values = [
        [Some("DE"), Some("1.50")],
        [None, Some("")],
        [Some("\u{fc}\n,\"\u{0}"), None],
        [Some(long.as_str()), Some("-0.01")],
    ];
    RawBatch {
        id: recorded_id(),
        is_bulk: true,
        result_id: "11111111-2222-3333-4444-555555555555:pages".into(),
        job: Arc::new(spec()),
        columns: Arc::new(recorded_columns()),
        rows: recorded_rows(&values),
    }
}

fn recorded_id() -> BatchId {
    BatchId {
        run: "clicks-20180409".parse().unwrap(),
        generation: 1,
        first_row: 2_000,
    }
}

fn valid() -> ValidBatch {
    let raw = raw();
    let types = [PgType::Char(2), PgType::Numeric(Some((10, 2)))];
    let target = |(column, pg_type): (ResultColumn, PgType)| TargetColumn {
        name: column.name,
        pg_type,
        athena_type: column.type_name,
    };
    ValidBatch {
        id: raw.id,
        is_bulk: raw.is_bulk,
        result_id: raw.result_id,
        content_hash: ContentHash::of(&raw.columns, &raw.rows),
        job: "clicks".into(),
        target: spec().target,
        columns: (recorded_columns().into_iter().zip(types))
            .map(target)
            .collect(),
        rows: recorded_rows(&[[Some("DE"), Some("1.50")], [Some("FR"), None]]),
        row_offsets: vec![0, 2],
        rejected: vec![RejectedRow {
            row: 2_001,
            reject: Reject {
                column: Some("country_code".into()),
                rule: "required".into(),
                reason: "it is NULL".into(),
            },
            raw: vec![
                ("country".into(), None),
                ("price".into(), Some(String::new())),
            ],
        }],
        watermark: None,
    }
}

fn events() -> Vec<RunEvent> {
    let event = |kind| RunEvent {
        run: "clicks-20180409".parse().unwrap(),
        generation: 1,
        job: "clicks".into(),
        kind,
    };
    let extracted = |result_location| EventKind::Extracted {
        result_id: "q:e".into(),
        batches: 3,
        rows: 2_500,
        bytes_scanned: 123_456,
        result_location,
        columns: vec![],
    };
    vec![
        event(EventKind::Started {
            query_execution_id: "q".into(),
            attempt: 1,
            principal: None,
            region: None,
        }),
        event(EventKind::Progress {
            batches: 2,
            rows: 2_000,
        }),
        event(extracted(None)),
        event(extracted(Some("s3://bucket/results/q.csv".into()))),
        event(EventKind::Failed {
            reason: "the query failed".into(),
        }),
    ]
}

fn controls() -> Vec<Control> {
    [Command::Cancel, Command::Pause]
        .map(|command| Control {
            run: "clicks-20180409".parse().unwrap(),
            run_no: 7,
            generation: 1,
            at: at("2018-04-09T10:13:00Z"),
            job: "clicks".into(),
            command,
        })
        .into()
}

/// Bodies in JSON, one a line.
fn check_lines<M: Message + PartialEq + std::fmt::Debug>(
    kind: &str,
    recorded: &str,
    messages: Vec<M>,
) {
    assert_eq!(recorded.lines().count(), messages.len());
    for (line, message) in recorded.lines().zip(messages) {
        check(kind, line.as_bytes(), &message);
    }
}

fn check<M: Message + PartialEq + std::fmt::Debug>(kind: &str, body: &[u8], message: &M) {
    assert!(M::reads(kind), "{kind}");
    let read = M::read(kind, body).unwrap();
    read.check().unwrap();
    assert_eq!(read, *message, "{kind}");
}

#[test]
fn recorded_messages_are_read() {
    check_lines(
        "extract-task.v3",
        include_str!("recorded/extract-task.v3.jsonl"),
        tasks(),
    );
    check_lines(
        "run-event.v1",
        include_str!("recorded/run-event.v1.jsonl"),
        events(),
    );
    check_lines(
        "control.v1",
        include_str!("recorded/control.v1.jsonl"),
        controls(),
    );
    check(
        "raw-batch.v3",
        include_bytes!("recorded/raw-batch.v3.bin"),
        &raw(),
    );
    check(
        "valid-batch.v3",
        include_bytes!("recorded/valid-batch.v3.bin"),
        &valid(),
    );
}
