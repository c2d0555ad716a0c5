//! The whole line: `etl run` asks, three services work, real RabbitMQ and Postgres between them, the real AWS SDK over HTTP
//! against a stand-in for Athena and S3.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod backfill;
mod cancel;
mod columns;
mod dead;
mod doctor;
mod held;
mod many;
mod modes;
mod outputs;
mod plan;
mod redelivery;
mod refusals;
mod rejects;
mod replay;
mod requests;
mod sizes;
mod telemetry;
mod trace;
mod types;
mod watch;
