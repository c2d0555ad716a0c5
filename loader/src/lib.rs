//! Valid batches into PostgreSQL. One transaction a batch writes its rows, its rejected rows and its ledger row, so that a batch is
//! there once or not at all, however often and in whatever order it is delivered. The way of a batch is [`service`] -> [`load`]
//! -> [`target`]; a run that is committed as a whole reaches its target in [`completion`].
//!
//! Pure: [`copy`] (rows as COPY data), [`ddl`] (the target's DDL and checks), [`errors`] (what a failure means). The ledger's tables
//! are the crate `ledger`'s.

pub mod completion;
pub mod copy;
pub mod ddl;
pub mod errors;
pub mod load;
pub mod removal;
pub mod service;
pub mod target;
