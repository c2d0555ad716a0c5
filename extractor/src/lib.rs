//! Athena results to `RawBatch`es on the queue. The only part of the system that knows AWS.
//!
//! A task says which query of which run, and how far it has come; this service goes on from there:
//! it asks Athena, waits, reads the result in either of two ways that give the same rows, and
//! publishes them in batches that come out the same whoever cuts them, however often.

pub mod athena;
pub mod aws;
pub mod batching;
mod cancelled;
pub mod command;
pub mod csv;
pub mod outbox;
mod query;
pub mod read;
pub mod s3;
pub mod session;
pub mod settings;
mod trouble;
mod work;
