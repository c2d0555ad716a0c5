//! `etl doctor`: what has to be right before a run can be, a line each with the remedy.

mod broker;
mod database;
mod jobs;

use crate::Failure;
use crate::report::{Finding, examined};

/// `etl doctor`: true when nothing is wrong. What cannot be known from here is said and is not wrong.
pub(crate) async fn doctor(json: bool) -> Result<bool, Failure> {
    let mut findings = Vec::new();
    let books = database::examine(&mut findings).await;
    broker::examine(&mut findings).await;
    jobs::examine(books.as_ref(), &mut findings).await;
    examined(&findings, json)?;
    Ok(!findings.iter().any(Finding::is_wrong))
}
