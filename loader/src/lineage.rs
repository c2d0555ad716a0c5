//! OpenLineage: what is told about a run when it begins and when it ends, to a server of that specification.
//!
//! The ledger writes what it knows into the outbox, in the transaction that makes it true ([`ledger::Lineage`]); the loader makes the
//! event of it when it sends it. Pure: [`event`] (the JSON of an event), `query` (what the SQL reads).

mod dialect;
pub mod event;
mod query;
mod server;

pub use server::Server;
