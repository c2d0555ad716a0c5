//! What the programs share. Nothing here knows AWS or SQL.
//!
//! Four layers, the lowest first. A module uses the modules before it and none after it
//! (the test in `layers.rs` fails otherwise):
//!
//! 1. The job and its types: [`schema`], [`canonical`], [`rows`], [`job`]; below them [`secret`], [`http`],
//!    [`reason`], [`mod@nearest`], [`shell`] and [`mod@backoff`].
//! 2. The messages: [`message`], each bound to its queue.
//! 3. RabbitMQ: [`queue`].
//! 4. A program's runtime: [`settings`], [`stack`], [`telemetry`], [`lifecycle`], [`failpoint`], [`service`], [`command`],
//!    [`findings`].

pub mod backoff;
pub mod canonical;
pub mod command;
pub mod failpoint;
pub mod findings;
pub mod http;
pub mod job;
#[cfg(test)]
mod layers;
pub mod lifecycle;
pub mod message;
pub mod nearest;
pub mod queue;
pub mod reason;
pub mod rows;
pub mod schema;
pub mod secret;
pub mod service;
pub mod settings;
pub mod shell;
pub mod stack;
pub mod telemetry;

pub use rows::{Row, Rows};
