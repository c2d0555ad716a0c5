//! The whole pipeline: `etl run` sends a request, and three services process it with a real RabbitMQ, a real Postgres,
//! and the real AWS SDK over HTTP to an emulator of Athena and S3.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod archive_off;
mod backfill;
mod cancel;
mod columns;
mod connecting;
mod cost;
mod dead;
mod doctor;
mod first_job;
mod follow;
mod held;
mod jobs;
mod lineage;
mod looking;
mod many;
mod modes;
mod notify;
mod operators;
mod outputs;
mod permissions;
mod plan;
mod quoted;
mod redelivery;
mod refusals;
mod rejects;
mod relative;
mod replay;
mod requests;
mod retry;
mod roles;
mod scripts;
mod selection;
mod sizes;
mod targets;
mod telemetry;
mod terminal;
mod trace;
mod types;
mod validate;
mod watch;
mod watermark;
