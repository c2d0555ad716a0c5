//! For tests and benchmarks only: what the services' tests need of the world around them, as real as it can be. A broker's
//! virtual host and a database for each test on private servers, instances of their own for tests that break them, a
//! emulator of Athena and S3 over HTTP, a TCP relay that can fail, the services as child processes, and waiting for a
//! condition instead of sleeping.
//!
//! Helpers here panic with a sentence instead of returning errors: in a test that is what the caller would do.

pub mod cloud;
pub mod http;
pub mod line;
pub mod process;
pub mod relay;
pub mod servers;
pub mod values;
mod wait;

pub use wait::{PATIENCE, wait_for, wait_until};
