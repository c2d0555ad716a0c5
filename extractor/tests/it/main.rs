//! The extractor as a process: the real AWS SDK against an emulator of Athena and S3, and a real
//! broker.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that fails, fails the test"
)]

mod accounts;
mod aws;
mod cancel;
mod checkpoint;
mod commands;
mod cost;
mod credentials;
mod fixture;
mod network;
mod query;
mod refused;
mod replicas;
mod reread;
mod result_source;
mod signin;
