//! Batches to message bodies and back, and the hash of their content.

use std::sync::Arc;

use common::Rows;
use common::job::{JobSpec, Target};
use common::message::{BatchId, ContentHash, Message as _, RawBatch};
use common::schema::ResultColumn;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use testkit::cloud::sample;

fn main() {
    divan::main();
}

/// A batch as the extractor cuts it by default.
fn batch() -> RawBatch {
    let result = sample::clicks(10_000);
    let mut rows = Rows::new(6);
    for row in result.range(0, 10_000) {
        if rows.text_bytes() > 1 << 20 {
            break;
        }
        rows.push(row.iter().map(Option::as_deref));
    }
    let column = |column: &testkit::cloud::Column| ResultColumn {
        name: column.name.clone(),
        type_name: column.type_name.clone(),
    };
    RawBatch {
        id: BatchId {
            run: "bench".parse().expect("a plain name"),
            generation: 0,
            first_row: 0,
        },
        is_bulk: false,
        result_id: "q:pages".into(),
        job: Arc::new(JobSpec {
            name: "bench".into(),
            target: Target {
                table: "bench".into(),
                ..Target::default()
            },
            columns: vec![],
            ..JobSpec::default()
        }),
        columns: Arc::new(sample::columns().iter().map(column).collect()),
        rows,
    }
}

fn counted<'a, 'b>(bencher: Bencher<'a, 'b>, batch: &RawBatch) -> Bencher<'a, 'b> {
    bencher
        .counter(BytesCount::new(batch.rows.text_bytes()))
        .counter(ItemsCount::new(batch.rows.len()))
}

#[divan::bench]
fn write(bencher: Bencher) {
    let batch = batch();
    counted(bencher, &batch).bench_local(|| batch.write());
}

#[divan::bench]
fn read(bencher: Bencher) {
    let batch = batch();
    let body = batch.write().expect("a batch can be written").bytes;
    counted(bencher, &batch).bench_local(|| RawBatch::read(RawBatch::KIND, &body));
}

#[divan::bench]
fn content_hash(bencher: Bencher) {
    let batch = batch();
    counted(bencher, &batch).bench_local(|| ContentHash::of(&batch.columns, &batch.rows));
}
