//! RawBatch to ValidBatch. Types ([`convert()`]), rules ([`rules`]), the transformation of a batch
//! ([`transform()`]) and the answer to a delivery are pure; [`session`] is the loop around them.

mod answer;
mod convert;
pub mod rules;
pub mod session;
mod transform;

pub use convert::{Unconvertible, convert};
pub use rules::{PlanError, check_rules};
pub use transform::{Plan, Plans, transform};
