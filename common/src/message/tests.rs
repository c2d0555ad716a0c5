//! A queue may contain any bytes. Reading them gives a consistent message or an error.

mod recorded;

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::*;
use crate::job::{ColumnSpec, JobSpec, Mode, Results, Rule, Source, Target};
use crate::rows::Rows;
use crate::schema::{PgType, ResultColumn, TargetColumn};

/// Reads a body like a service, and checks an accepted message for consistency. True when any version accepted it.
fn read<M: Message + PartialEq + std::fmt::Debug>(body: &[u8], adds_up: impl Fn(&M)) -> bool {
    let kinds = [Some(M::KIND), M::KIND_BEFORE].into_iter().flatten();
    let accepted = kinds.filter(|kind| read_version::<M>(kind, body, &adds_up));
    accepted.count() > 0
}

fn read_version<M: Message + PartialEq + std::fmt::Debug>(
    kind: &str,
    body: &[u8],
    adds_up: &impl Fn(&M),
) -> bool {
    let Ok(message) = M::read(kind, body) else {
        return false;
    };
    if message.check().is_err() {
        return false;
    }
    adds_up(&message);
    assert!(!message.id().is_empty() && !message.run().as_str().is_empty());
    let again = message.write().unwrap().bytes;
    assert_eq!(M::read(M::KIND, &again).unwrap(), message);
    true
}

fn read_as_everything(body: &[u8]) {
    read::<ExtractTask>(body, task_adds_up);
    read::<RawBatch>(body, raw_adds_up);
    read::<ValidBatch>(body, valid_adds_up);
    read::<RunEvent>(body, event_adds_up);
    read::<Control>(body, |_| {});
}

fn task_adds_up(task: &ExtractTask) {
    assert!(!task.sql.is_empty() && task.limits.batch_rows > 0);
    assert!((1..=Limits::ROW_BYTES).contains(&(task.limits.batch_bytes as usize)));
    if let TaskState::Reading { cursor, .. } = &task.state {
        assert!(cursor.row <= BatchId::MAX_ROWS);
    }
}

fn raw_adds_up(batch: &RawBatch) {
    assert!(
        batch
            .rows
            .iter()
            .all(|row| row.iter().count() == batch.columns.len())
    );
    let end = batch.id.first_row.checked_add(batch.rows.len() as u64);
    assert!(end.is_some_and(|end| end <= BatchId::MAX_ROWS));
}

fn valid_adds_up(batch: &ValidBatch) {
    assert!(
        batch
            .rows
            .iter()
            .all(|row| row.iter().count() == batch.columns.len())
    );
    let valid = (0..batch.rows.len()).map(|index| u128::from(batch.ordinal(index)));
    let rejected = batch.rejected.iter().map(|row| u128::from(row.row));
    let seen: BTreeSet<u128> = valid.chain(rejected).collect();
    assert_eq!(seen.len(), batch.rows.len() + batch.rejected.len());
    let first = u128::from(batch.id.first_row);
    assert!(
        seen.into_iter()
            .eq(first..first + batch.rows_extracted() as u128)
    );
    assert!(batch.id.first_row + batch.rows_extracted() as u64 <= BatchId::MAX_ROWS);
}

fn event_adds_up(event: &RunEvent) {
    if let EventKind::Extracted { batches, rows, .. } = event.kind {
        assert!(batches > 0 && rows <= BatchId::MAX_ROWS);
        assert!(
            batches == 1 || u64::from(batches) <= rows,
            "a batch of no row"
        );
    }
}

fn job() -> JobSpec {
    JobSpec {
        name: "clicks".into(),
        target: Target {
            table: "public.clicks".into(),
            mode: Mode::Upsert,
            key: vec!["c0".into()],
            ..Target::default()
        },
        columns: vec![ColumnSpec {
            source: Some("c0".into()),
            name: Some("c0".into()),
            pg_type: Some(PgType::Char(2)),
            rules: vec![Rule::Required(true), Rule::NoneOf(vec!["A1".into()])],
            ..ColumnSpec::default()
        }],
        ..JobSpec::default()
    }
}

fn columns(width: usize) -> Vec<ResultColumn> {
    let column = |n| ResultColumn {
        name: format!("c{n}"),
        type_name: "varchar".into(),
    };
    (0..width).map(column).collect()
}

fn id(first_row: u64) -> BatchId {
    BatchId {
        run: "run-1".parse().unwrap(),
        generation: 0,
        first_row,
    }
}

/// A row, and whether it is valid.
type SomeRow = (Vec<Option<String>>, bool);

/// Rows of one width.
fn some_rows() -> impl Strategy<Value = (usize, Vec<SomeRow>)> {
    (1..4_usize).prop_flat_map(|width| {
        let row = prop::collection::vec(prop::option::of(".{0,5}"), width);
        (
            Just(width),
            prop::collection::vec((row, any::<bool>()), 0..6),
        )
    })
}

fn raw_batch() -> impl Strategy<Value = RawBatch> {
    (some_rows(), 0..1_000_u64, any::<bool>()).prop_map(|((width, values), first_row, is_bulk)| {
        let mut rows = Rows::new(width);
        for (row, _) in &values {
            rows.push(row.iter().map(Option::as_deref));
        }
        RawBatch {
            id: id(first_row),
            is_bulk,
            result_id: "q:pages".into(),
            job: Arc::new(job()),
            columns: Arc::new(columns(width)),
            rows,
        }
    })
}

fn valid_batch() -> impl Strategy<Value = ValidBatch> {
    (some_rows(), 0..1_000_u64, any::<bool>()).prop_map(|((width, values), first_row, is_bulk)| {
        let (mut rows, mut row_offsets, mut rejected) = (Rows::new(width), Vec::new(), Vec::new());
        for (offset, (row, is_valid)) in (0_u32..).zip(values) {
            if is_valid {
                rows.push(row.iter().map(Option::as_deref));
                row_offsets.push(offset);
                continue;
            }
            let (column, rule, reason) = (None, "type".to_owned(), "no".to_owned());
            rejected.push(RejectedRow {
                row: first_row + u64::from(offset),
                reject: Reject {
                    column,
                    rule,
                    reason,
                },
                raw: columns(width)
                    .into_iter()
                    .map(|column| column.name)
                    .zip(row)
                    .collect(),
            });
        }
        let target = |column: ResultColumn| TargetColumn {
            name: column.name,
            pg_type: PgType::Text,
            athena_type: column.type_name,
        };
        ValidBatch {
            id: id(first_row),
            is_bulk,
            result_id: "q:pages".into(),
            content_hash: ContentHash::of(&columns(width), &rows),
            job: "clicks".into(),
            target: job().target,
            columns: columns(width).into_iter().map(target).collect(),
            rows,
            row_offsets,
            rejected,
            watermark: None,
        }
    })
}

fn task() -> impl Strategy<Value = ExtractTask> {
    let location = prop_oneof![
        Just(ResultLocation::Pages),
        Just(ResultLocation::S3(S3Object {
            bucket: "b".into(),
            key: "k".into(),
            etag: "\"e\"".into(),
            size: 10
        }))
    ];
    let reading =
        (location, 0..9_u64, 0..9_u32).prop_map(|(location, row, batches)| TaskState::Reading {
            query_execution_id: "q".into(),
            bytes_scanned: 1,
            location,
            columns: Arc::new(columns(2)),
            cursor: Cursor {
                offset: 7,
                row,
                batches,
                page: Some(("token".into(), 0)),
            },
        });
    let waiting = TaskState::Waiting {
        attempt: 1,
        query_execution_id: "q".into(),
        since: jiff::Timestamp::UNIX_EPOCH,
    };
    let state = prop_oneof![
        Just(TaskState::Start { attempt: 1 }),
        Just(waiting),
        reading
    ];
    state.prop_map(|state| ExtractTask {
        run: "run-1".parse().unwrap(),
        run_no: 1,
        generation: 0,
        first_generation: 0,
        requested_at: jiff::Timestamp::UNIX_EPOCH,
        resumed_at: None,
        sql: "SELECT 1".into(),
        source: Source {
            database: "d".into(),
            workgroup: None,
            catalog: None,
            output_location: None,
            results: Results::Auto,
            max_scanned: Some(1),
            timeout: std::time::Duration::from_secs(1),
            ..Source::default()
        },
        job: Arc::new(job()),
        limits: Limits::default(),
        state,
    })
}

fn event() -> impl Strategy<Value = RunEvent> {
    let kind = prop_oneof![
        (1..3_u32).prop_map(|attempt| EventKind::Started {
            query_execution_id: "q".into(),
            attempt,
            principal: (attempt > 1).then(|| "arn:aws:iam::1:role/r".into()),
            region: None,
        }),
        any::<u64>().prop_map(|bytes_scanned| EventKind::Scanned {
            query_execution_id: "q".into(),
            bytes_scanned,
        }),
        any::<bool>().prop_map(|reused| EventKind::QueryEnded {
            query_execution_id: "q".into(),
            end: QueryEnd::Stopped,
            bytes_scanned: 7,
            reused,
        }),
        (1..9_u32, 9..99_u64).prop_map(|(batches, rows)| EventKind::Extracted {
            result_id: "q:pages".into(),
            batches,
            rows,
            bytes_scanned: 1,
            result_location: (rows % 2 == 0).then(|| "s3://b/k".into()),
            columns: columns(usize::try_from(rows % 3).unwrap()),
        }),
        ".{0,9}".prop_map(|reason| EventKind::Failed { reason }),
    ];
    kind.prop_map(|kind| RunEvent {
        run: "run-1".parse().unwrap(),
        generation: 0,
        job: "clicks".into(),
        kind,
    })
}

/// Any message as JSON; a batch as its head and its rows.
fn message() -> impl Strategy<Value = (Value, Option<Rows>)> {
    let json = prop_oneof![
        task().prop_map(|message| json!(message)),
        event().prop_map(|message| json!(message)),
        (0..9_u32).prop_map(|generation| json!(Control {
            run: "run-1".parse().unwrap(),
            run_no: 1,
            generation,
            at: jiff::Timestamp::UNIX_EPOCH,
            job: "clicks".into(),
            command: Command::Cancel,
        })),
    ];
    prop_oneof![
        json.prop_map(|message| (message, None)),
        raw_batch().prop_map(|batch| (json!(batch.head()), Some(batch.rows))),
        valid_batch().prop_map(|batch| (json!(batch.head()), Some(batch.rows))),
    ]
}

fn written((message, rows): (Value, Option<Rows>)) -> Vec<u8> {
    match rows {
        Some(rows) => Body::batch(&message, &rows).unwrap().bytes,
        None => serde_json::to_vec(&message).unwrap(),
    }
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    message().prop_map(written)
}

/// One change to a piece of JSON.
#[derive(Debug, Clone)]
enum Change {
    /// Another value in its place.
    Replace(Value),
    Remove,
    Double,
}

fn change() -> impl Strategy<Value = Change> {
    let odd = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(u32::MAX),
        json!(1_u64 << 36),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(u64::MAX - 1),
        json!(1.5),
        json!(1e300),
        json!(""),
        json!("\u{0}"),
        json!("x".repeat(300)),
        json!([]),
        json!([[]]),
        json!({}),
        json!([null]),
        json!(["a", "b"]),
        json!("reading"),
        json!("char(99999999999)"),
    ]);
    prop_oneof![
        6 => prop_oneof![odd, any::<u64>().prop_map(|n| json!(n)), (0..9_u64).prop_map(|n| json!(n))].prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => Just(Change::Double),
    ]
}

/// Descends to a place in the JSON and changes it there.
fn apply(value: &mut Value, path: &[Index], change: &Change) {
    let Some((step, rest)) = path.split_first() else {
        if let Change::Replace(new) = change {
            *value = new.clone();
        }
        return;
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            let at = step.index(items.len());
            match (rest, change) {
                ([], Change::Remove) => drop(items.remove(at)),
                ([], Change::Double) => items.insert(at, items[at].clone()),
                _ => apply(&mut items[at], rest, change),
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(step.index(fields.len())).unwrap().clone();
            match (rest, change) {
                ([], Change::Remove) => drop(fields.remove(&name)),
                ([], Change::Double) => {
                    let copy = fields[&name].clone();
                    fields.insert(format!("{name}2"), copy);
                }
                _ => apply(&mut fields[&name], rest, change),
            }
        }
        leaf => apply(leaf, &[], change),
    }
}

#[test]
fn rows_beyond_those_of_a_run_are_refused() {
    let mut rows = Rows::new(1);
    rows.push([Some("x")]);
    let raw = |first_row: u64| RawBatch {
        id: id(first_row),
        is_bulk: false,
        result_id: "q:pages".into(),
        job: Arc::new(job()),
        columns: Arc::new(columns(1)),
        rows: rows.clone(),
    };
    let is_read = |first_row: u64| {
        let body = raw(first_row).write().unwrap().bytes;
        read::<RawBatch>(&body, raw_adds_up)
    };
    assert!(is_read(0) && is_read(BatchId::MAX_ROWS - 1));
    assert!(!is_read(BatchId::MAX_ROWS) && !is_read(u64::MAX) && !is_read(u64::MAX / 2));
}

/// Tasks wait in the queue while services are upgraded.
#[test]
fn location_is_one_flat_object() {
    let object = S3Object {
        bucket: "b".into(),
        key: "k".into(),
        etag: "e".into(),
        size: 10,
    };
    for (location, wanted) in [
        (
            ResultLocation::S3(object),
            json!({ "in": "s3", "bucket": "b", "key": "k", "etag": "e", "size": 10 }),
        ),
        (ResultLocation::Pages, json!({ "in": "pages" })),
    ] {
        assert_eq!(serde_json::to_value(&location).unwrap(), wanted);
        assert_eq!(serde_json::from_value(wanted).ok(), Some(location));
    }
}

#[test]
fn large_batch_is_compressed_and_has_content_encoding() {
    let mut rows = Rows::new(1);
    for n in 0..5_000 {
        rows.push([Some(format!("https://example.com/title/{n}").as_str())]);
    }
    let mut batch = RawBatch {
        id: id(0),
        is_bulk: false,
        result_id: "q:pages".into(),
        job: Arc::new(job()),
        columns: Arc::new(columns(1)),
        rows,
    };
    let body = batch.write().unwrap();
    assert_eq!(body.content_encoding, Some("lz4"));
    assert!(body.bytes.len() < batch.rows.text_bytes() / 2);
    assert_eq!(
        RawBatch::read(RawBatch::KIND, &body.bytes).as_ref(),
        Ok(&batch)
    );
    // A false length, larger than the body or the limit, allocates no memory.
    for claim in [u32::MAX, 1, 60 << 20] {
        let mut lie = body.bytes.clone();
        lie[1..5].copy_from_slice(&claim.to_le_bytes());
        assert!(RawBatch::read(RawBatch::KIND, &lie).is_err(), "{claim}");
    }
    batch.rows = Rows::new(1);
    let body = batch.write().unwrap();
    assert_eq!(body.content_encoding, None);
    assert_eq!(RawBatch::read(RawBatch::KIND, &body.bytes), Ok(batch));
}

proptest! {
    #[test]
    fn written_messages_are_read_back(task in task(), raw in raw_batch(), valid in valid_batch(), event in event()) {
        prop_assert!(read::<ExtractTask>(&serde_json::to_vec(&task).unwrap(), |seen| assert_eq!(seen, &task)));
        prop_assert!(read::<RunEvent>(&serde_json::to_vec(&event).unwrap(), |seen| assert_eq!(seen, &event)));
        prop_assert_eq!(RawBatch::read(RawBatch::KIND, &raw.write().unwrap().bytes), Ok(raw));
        prop_assert_eq!(ValidBatch::read(ValidBatch::KIND, &valid.write().unwrap().bytes), Ok(valid));
    }

    #[test]
    fn changed_message_is_consistent_or_refused(
        mut message in message(), changes in prop::collection::vec((prop::collection::vec(any::<Index>(), 0..6), change()), 1..4),
    ) {
        for (path, change) in &changes {
            apply(&mut message.0, path, change);
        }
        read_as_everything(&written(message));
    }

    #[test]
    fn changed_bytes_are_consistent_or_refused(
        mut body in body(), edits in prop::collection::vec((any::<Index>(), 0..3_u8, any::<u8>(), "[]\\[{}\",:0-9null.e-]"), 1..6),
    ) {
        for (at, kind, byte, token) in edits {
            let at = at.index(body.len().max(1));
            match kind {
                0 if at < body.len() => body[at] = byte,
                1 => body.insert(at.min(body.len()), token.as_bytes()[0]),
                _ => body.truncate(at),
            }
        }
        read_as_everything(&body);
    }

    #[test]
    fn arbitrary_bytes_are_refused(body: Vec<u8>, text in "\\PC{0,60}", nested in 0..300_usize) {
        read_as_everything(&body);
        read_as_everything(text.as_bytes());
        read_as_everything("[".repeat(nested).as_bytes());
    }

    #[test]
    fn run_id_accepts_only_its_characters(name in prop_oneof!["\\PC{0,8}", "[-._a-zA-Z0-9/ \n\u{0}']{0,110}"]) {
        let run = name.parse::<RunId>();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_plain = name.len() <= 100 && name.chars().all(plain) && name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        prop_assert_eq!(run.is_ok(), is_plain);
        prop_assert_eq!(serde_json::from_value::<RunId>(json!(name)).is_ok(), is_plain);
    }
}
