//! Loads valid batches into PostgreSQL. One transaction a batch writes its rows, its rejected rows and its ledger row,
//! so that a batch is loaded once or not at all, with any number of deliveries in any order. A batch passes [`service`]
//! -> [`load`] -> [`target`]. A run that is committed as a whole reaches its target in [`completion`].
//!
//! Beside that, [`background`] sends what is in the outbox ([`outbox`], through a [`channel`]) and looks which jobs are late.
//!
//! Pure: [`copy`] (rows as COPY data), [`ddl`] (the target's DDL and checks), [`errors`] (the consequence of a
//! failure). The crate `ledger` owns the ledger's tables.

pub mod background;
pub mod channel;
pub mod completion;
pub mod copy;
pub mod ddl;
pub mod errors;
pub mod lineage;
pub mod load;
pub mod outbox;
mod parking;
pub mod removal;
pub mod service;
pub mod target;
