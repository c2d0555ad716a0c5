//! The whole line while its parts fail: brokers killed, blocked and cut off, Postgres gone, services killed at the worst
//! moment. After each of them the books balance and the target holds every row once.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod broker;
mod hostile;
mod postgres;
