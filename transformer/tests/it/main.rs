//! The transformer as a process with a real broker; and its canonical text in a real Postgres.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that fails, fails the test"
)]

mod batches;
mod crashes;
mod fixture;
mod postgres;
