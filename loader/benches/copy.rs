//! Rows into the two formats of COPY.

use common::Rows;
use common::schema::PgType;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use loader::copy::binary::encode;
use loader::copy::{CopyText, Last};
use testkit::cloud::sample;

const ROWS: u64 = 8_000;

const TYPES: [PgType; 6] = [
    PgType::Date,
    PgType::Text,
    PgType::Text,
    PgType::BigInt,
    PgType::Double,
    PgType::Timestamp,
];

fn main() {
    divan::main();
}

fn rows() -> Rows {
    let mut rows = Rows::new(6);
    for row in sample::clicks(ROWS).range(0, ROWS) {
        rows.push(row.iter().map(Option::as_deref));
    }
    rows
}

fn counted<'a, 'b>(bencher: Bencher<'a, 'b>, rows: &Rows) -> Bencher<'a, 'b> {
    bencher
        .counter(BytesCount::new(rows.text_bytes()))
        .counter(ItemsCount::new(rows.len()))
}

#[divan::bench]
fn binary(bencher: Bencher) {
    let rows = rows();
    assert!(encode(&rows, &TYPES, Last::Batch(1)).is_some());
    counted(bencher, &rows).bench_local(|| encode(&rows, &TYPES, Last::Batch(1)));
}

#[divan::bench]
fn text(bencher: Bencher) {
    let rows = rows();
    counted(bencher, &rows).bench_local(|| CopyText::encode(&rows, Last::Batch(1)));
}
