//! The loader with a real Postgres and a real RabbitMQ. Each test has its own database, and its own virtual host where
//! it needs one.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helper fails the test by panicking"
)]

mod binary;
mod column_types;
mod completion;
mod connecting;

mod contracts;
mod deletions;
mod existing;
mod failures;
mod hostile;
mod indexed;
mod killed;
mod loading;
mod model;
mod modes;
mod neighbours;
mod outbox;
mod refused;
mod removal;
mod run_commit;
mod service;
mod support;
mod targets;
mod triggers;
mod undo;
mod upsert;
