//! The test kit with real servers, and its emulator of AWS with a plain HTTP client.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a panic is the failure, in its helpers too"
)]

mod cloud;
mod documents;
mod process;
mod servers;
