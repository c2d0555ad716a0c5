//! The operator's command `etl`: requests runs, follows them, repairs them and proves them.
//!
//! A file in [`commands`] is a command: its arguments, `plan` and `act` (plain data in and out, no terminal, for any other
//! front end), and what it prints. References point one way: commands -> loss, channels -> output -> request, follow,
//! jobs, broker, extractor, target -> store.

pub mod broker;
pub mod channels;
pub mod commands;
pub mod complete;
pub mod extractor;
pub mod follow;
pub mod jobs;
pub mod loss;
pub mod management;
pub mod output;
pub mod request;
pub mod select;
pub mod store;
pub mod target;

pub use common::command::Failure;
