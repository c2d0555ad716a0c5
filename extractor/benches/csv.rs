//! The result file to records, and to batches.

use common::message::Limits;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use extractor::batching::Batcher;
use extractor::csv::{Place, Tokenizer};
use testkit::cloud::sample;

const ROWS: u64 = 20_000;

fn main() {
    divan::main();
}

fn counted<'a, 'b>(bencher: Bencher<'a, 'b>, csv: &[u8]) -> Bencher<'a, 'b> {
    bencher
        .counter(BytesCount::new(csv.len()))
        .counter(ItemsCount::new(ROWS))
}

#[divan::bench]
fn tokenizer(bencher: Bencher) {
    let csv = sample::clicks(ROWS).csv();
    counted(bencher, &csv).bench_local(|| {
        let mut tokenizer = Tokenizer::new(6, Place::Header, 0);
        let (mut rest, mut values) = (&csv[..], 0);
        while let Ok(Some(record)) = tokenizer.read(&mut rest) {
            values += record.values().count();
        }
        values
    });
}

#[divan::bench]
fn batches(bencher: Bencher) {
    let csv = sample::clicks(ROWS).csv();
    counted(bencher, &csv).bench_local(|| {
        let mut tokenizer = Tokenizer::new(6, Place::Header, 0);
        let mut batcher = Batcher::new(Limits::default(), 6, 0, 0);
        let (mut rest, mut count) = (&csv[..], 0);
        while let Ok(Some(record)) = tokenizer.read(&mut rest) {
            count += usize::from(matches!(batcher.push(record.values()), Ok(Some(_))));
        }
        count
    });
}
