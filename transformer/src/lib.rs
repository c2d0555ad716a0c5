//! RawBatch to ValidBatch. Types ([`convert()`]), rules ([`rules`]), masks, the transformation of a batch
//! ([`transform()`]) and the answer to a delivery are pure; [`session`] is the loop around them.

mod answer;
mod check;
mod column;
mod convert;
#[cfg(test)]
mod documented;
mod mask;
pub mod rules;
pub mod session;
mod transform;
mod treat;
mod watermark;

pub use check::check_job;
pub use convert::{Unconvertible, convert};
pub use rules::PlanError;
pub use transform::{Plan, Plans, transform};
