//! The ledger against a real PostgreSQL. Each test has a database of its own.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helper fails the test by panicking"
)]

mod lineage;
mod outbox;
mod poolers;
mod queries;
mod removals;
mod requests;
mod schema;
mod settings;
mod support;
mod tls;
mod transitions;
mod watermarks;
