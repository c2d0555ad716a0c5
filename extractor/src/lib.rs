//! Athena results to `RawBatch`es on the queue. The only part of the system that knows AWS.
//!
//! A task names the query of a run and the position in its result. The extractor continues from
//! there: it starts the query, waits for it, reads the result from S3 or from the pages of
//! `GetQueryResults`, and publishes batches. Every extractor cuts the same batches, however often a
//! task is delivered.

pub mod athena;
pub mod aws;
pub mod batching;
pub mod clients;
pub mod command;
mod controls;
pub mod csv;
mod error_policy;
pub mod outbox;
pub mod principal;
mod query;
pub mod read;
mod replica;
mod results;
pub mod s3;
pub mod session;
mod setbacks;
pub mod settings;
mod work;
