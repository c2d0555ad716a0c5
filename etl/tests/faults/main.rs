//! The whole pipeline during faults: brokers killed, blocked or disconnected, Postgres unavailable, services killed at
//! critical points, hostile input. After each fault the ledger balances and the target holds every row once.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod broker;
mod hostile;
mod postgres;
mod targets;
