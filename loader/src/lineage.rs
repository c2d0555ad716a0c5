//! OpenLineage: what is told about a run when it begins and when it ends, to a server of that specification.
//!
//! Pure: [`event`] (the JSON of an event), `query` (what the SQL reads).

mod dialect;
pub mod event;
mod query;
