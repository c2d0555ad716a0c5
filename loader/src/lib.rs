//! Valid batches into PostgreSQL, with the ledger. One transaction a batch writes its rows, its
//! rejected rows and its ledger row, so that a batch is there once or not at all, however often and
//! in whatever order it is delivered. A run that is published as a whole collects its rows in
//! [`staging`], and they reach the target in the transaction that completes it ([`publish`]).
//!
//! Pure: [`copy`] (rows as COPY text), [`ddl`] (the target's DDL and checks), [`statements`] (the
//! SQL of a load), [`errors`] (whose fault an error is). The rest owns Postgres.

pub mod completion;
pub mod copy;
pub mod database;
pub mod ddl;
pub mod dead_letters;
pub mod errors;
pub mod events;
pub mod ledger;
pub mod load;
pub mod migrate;
pub mod publish;
mod quarantine;
mod rows;
pub mod service;
pub mod staging;
pub mod statements;
pub mod target;
