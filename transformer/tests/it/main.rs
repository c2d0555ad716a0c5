//! The transformer against a real broker, as the process that it is; and what a real Postgres makes
//! of the text that it produces.

#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod batches;
mod deaths;
mod line;
mod postgres;
