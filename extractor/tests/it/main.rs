//! The extractor as a process, with the real AWS SDK against the stand-in for Athena and S3, and a
//! real broker.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that fails, fails the test"
)]

mod aws;
mod cancel;
mod commands;
mod hand_off;
mod line;
mod paths;
mod query;
mod refused;
mod reread;
