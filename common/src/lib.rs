//! What the services share, and nothing else: the job as it travels, the message types, the typed
//! queue, and how a service starts, reports and stops. Nothing here knows AWS or SQL.

pub mod canonical;
pub mod failpoint;
pub mod job;
pub mod lifecycle;
pub mod message;
pub mod queue;
pub mod rows;
pub mod schema;
pub mod service;
pub mod settings;
pub mod telemetry;

pub use rows::{Row, Rows};
