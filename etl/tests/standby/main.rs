//! PostgreSQL as a primary with a standby that takes its place: synchronous, where nothing is lost; asynchronous, where table
//! and ledger go back together; and by a switchover. The services and commands have the hosts of both in `ETL_DATABASE_URL`.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod asynchronous;
mod pair;
mod switchover;
mod synchronous;
