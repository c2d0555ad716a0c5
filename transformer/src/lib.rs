//! RawBatch to ValidBatch. Types ([`convert()`]), rules ([`rules`]), masks, the transformation of a batch
//! ([`transform()`]) and the answer to a delivery are pure; [`session`] is the loop around them.

mod answer;
mod column;
mod convert;
#[cfg(test)]
mod documented;
mod mask;
pub mod rules;
pub mod session;
mod transform;
mod treat;

pub use convert::{Unconvertible, convert};
pub use rules::{PlanError, check_job};
pub use transform::{Plan, Plans, transform};
