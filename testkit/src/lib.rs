//! The environment of the services' tests and benchmarks, as real as possible: a virtual host and a database for each test
//! on private servers, private instances for tests that break them, an emulator of Athena and S3 over HTTP, a TCP relay that
//! fails on demand, the services as child processes, and waiting for a condition instead of sleeping.
//!
//! Helpers panic with a sentence instead of returning errors, since their callers are tests.

pub mod certificates;
pub mod cloud;
pub mod endpoint;
pub mod http;
mod listener;
pub mod pipeline;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod servers;
pub mod tls;
pub mod values;
mod wait;

pub use wait::{TIMEOUT, wait_for, wait_until};
