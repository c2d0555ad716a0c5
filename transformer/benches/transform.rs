//! Rows into the canonical text of their types, without rules and with a rule on every column.

use std::sync::Arc;

use common::Rows;
use common::job::JobSpec;
use common::message::{BatchId, RawBatch};
use common::schema::ResultColumn;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use testkit::cloud::sample;
use transformer::{Plan, transform};

const ROWS: u64 = 8_000;

fn main() {
    divan::main();
}

fn batch(columns: &str) -> RawBatch {
    let mut rows = Rows::new(6);
    for row in sample::clicks(ROWS).range(0, ROWS) {
        rows.push(row.iter().map(Option::as_deref));
    }
    let job = format!(r#"{{"name":"bench","target":{{"table":"bench"}},"columns":{columns}}}"#);
    let job: JobSpec = serde_json::from_str(&job).expect("a job");
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
        job: Arc::new(job),
        columns: Arc::new(sample::columns().iter().map(column).collect()),
        rows,
    }
}

fn run(bencher: Bencher, columns: &str) {
    let batch = batch(columns);
    let plan = Plan::new(&batch.job, &batch.columns).expect("the job fits");
    bencher
        .counter(BytesCount::new(batch.rows.text_bytes()))
        .counter(ItemsCount::new(ROWS))
        .with_inputs(|| batch.clone())
        .bench_local_values(|batch| transform(&plan, batch));
}

#[divan::bench]
fn types(bencher: Bencher) {
    run(bencher, "[]");
}

#[divan::bench]
fn types_and_rules(bencher: Bencher) {
    run(
        bencher,
        r#"[{"source":"dt","rules":[{"required":true},{"min":"2018-04-01"}]},
            {"source":"country","rules":[{"none_of":["A1","A2"]}]},
            {"source":"url","rules":[{"required":true},{"max_length":200},{"pattern":"https?://[^/]+/.*"}]},
            {"source":"visits","rules":[{"required":true},{"min":1},{"max":9999}]},
            {"source":"seconds","rules":[{"min":0}]},
            {"source":"seen_at","rules":[{"required":true}]}]"#,
    );
}
