//! `extractor check --query`: a query that scans nothing, from its start to its result, the way that a run takes.

use common::command::Failure;
use common::findings::Level;
use common::job::Source;

use super::super::fresh_name;
use super::Check;
use crate::athena::{Execution, Query};
use crate::aws::denial;
use crate::query::{Started, wait_to_the_end};
use crate::results::{Choice, choose};
use crate::s3::S3Error;
use crate::session::Clients;

pub(super) const ACTION: &str = "athena:StartQueryExecution";

/// Runs `sql` in the source's workgroup and database.
pub(super) async fn run(
    check: &mut Check,
    clients: &Clients,
    source: &Source,
    sql: &str,
) -> Result<(), Failure> {
    if check.may_try(ACTION) {
        let run = fresh_name("check")?;
        let query = Query::once(&run, sql, source);
        match clients.athena.start(query).await {
            Ok(id) => {
                check.findings.fine(ACTION, format!("query {id}"));
                if let Some(execution) = ended(check, clients, source, &id).await {
                    result(check, clients, source, &id, &execution).await;
                }
            }
            Err(error) => check.failed(ACTION, &error),
        }
    }
    Ok(())
}

async fn ended(
    check: &mut Check,
    clients: &Clients,
    source: &Source,
    id: &str,
) -> Option<Execution> {
    let started = Started::now(id, source);
    match wait_to_the_end(&clients.athena, started).await {
        Ok(Ok(execution)) => Some(execution),
        Ok(Err(reason)) => {
            // The reason has the remedy behind it.
            let denial = denial::of_message(&reason);
            let what = denial.as_ref().map_or("a query", |denial| denial.by);
            let finding = check.findings.add(Level::Wrong, what, reason);
            finding.action = denial.and_then(|denial| denial.action);
            None
        }
        Err(error) => {
            check.failed("athena:GetQueryExecution", &error);
            None
        }
    }
}

/// The result as a run reads it.
async fn result(
    check: &mut Check,
    clients: &Clients,
    source: &Source,
    id: &str,
    execution: &Execution,
) {
    let what = "the result as pages";
    // A run takes the columns from there, also where it reads the object.
    match clients.athena.columns(id).await {
        Ok(_) => check.findings.fine(what, "permitted"),
        Err(error) => return check.failed(what, &error),
    }
    let what = "the result in S3";
    let (at, or_pages) = match choose(
        source.results,
        execution.output_location.as_deref(),
        execution.is_client_encrypted,
    ) {
        Ok(Choice::Pages(_)) => return,
        Ok(Choice::Object { at, or_pages }) => (at, or_pages),
        Err(problem) => return check.findings.wrong(what, problem),
    };
    match clients.s3.find(at).await {
        Ok(object) => (check.findings).fine(what, format!("{} bytes", object.size)),
        Err(error) if or_pages && error.is_refusal() => {
            let text = format!("{error}; a run reads the pages instead, which takes longer");
            check.findings.warning(what, text);
        }
        Err(S3Error::Aws(error)) => check.failed(what, &error),
        Err(error) => check.findings.wrong(what, error.to_string()),
    }
}
