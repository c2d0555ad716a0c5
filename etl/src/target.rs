//! The target of a job, as it is and as a run would find it.

use common::job::{JobSpec, Target};
use common::schema::TargetColumn;
use ledger::Store;
use loader::ddl::{self, Change, Refusal};
use loader::target::catalog;
use serde::Serialize;

use crate::Failure;

/// What the first batch of a run would do to its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum TargetPlan {
    /// Nothing.
    Fits,
    Creates {
        /// None where the columns that are known do not make a table.
        statements: Vec<String>,
        /// What the table will have, in words.
        with: String,
    },
    Alters {
        statements: Vec<String>,
    },
    Refused {
        why: String,
    },
}

/// The columns that a job declares with a type; what else the query returns is not known yet.
fn declared(spec: &JobSpec) -> Vec<TargetColumn> {
    let columns = spec.columns.iter().filter_map(|column| {
        Some(TargetColumn {
            name: column.target_name().to_owned(),
            pg_type: column.declared_type()?,
            athena_type: String::new(),
        })
    });
    columns.collect()
}

/// Whether Postgres would take a table of these columns alone: one has a key of columns that it has.
fn is_a_table(target: &Target, columns: &[TargetColumn]) -> bool {
    let is_there = |key: &String| columns.iter().any(|column| column.name == *key);
    !columns.is_empty() && (!target.mode.has_key() || target.key.iter().all(is_there))
}

/// A job or a setting that cannot be right is a usage error; a target that does not fit may be changed until the next run.
fn refused_target(job: &str, refusal: Refusal) -> Failure {
    let is_usage = refusal.is_of_the_job();
    let error = anyhow::Error::from(refusal).context(format!("cannot run the job {job}"));
    if is_usage {
        Failure::Usage(error)
    } else {
        Failure::Failed(error)
    }
}

/// The statements without the comments on each column, which follow them.
fn statements(ddl: &str) -> Vec<String> {
    let end = ddl.find(";\nCOMMENT ON").unwrap_or(ddl.len());
    vec![ddl[..end].trim_end_matches(';').to_owned() + ";"]
}

/// Refuses a job whose rows could not be loaded, as far as that can be known before the query runs.
pub async fn check(store: &Store, spec: &JobSpec, schemas: &[String]) -> Result<(), Failure> {
    let planned = catalog::plan(store, &spec.target, &declared(spec), schemas, &spec.name).await?;
    let refused = planned.map(drop);
    refused.map_err(|refusal| refused_target(&spec.name, refusal))
}

/// What the first batch of a run would do to the target. Changes nothing.
pub async fn plan(
    store: &Store,
    spec: &JobSpec,
    schemas: &[String],
) -> Result<TargetPlan, Failure> {
    let target = &spec.target;
    let columns = declared(spec);
    Ok(
        match catalog::plan(store, target, &columns, schemas, &spec.name).await? {
            Ok(Change::Nothing) => TargetPlan::Fits,
            Ok(Change::Create { ddl, .. }) => TargetPlan::Creates {
                statements: if is_a_table(target, &columns) {
                    statements(&ddl)
                } else {
                    Vec::new()
                },
                with: ddl::columns_of_a_new_table(target, &columns),
            },
            Ok(Change::Add { ddl, .. }) => TargetPlan::Alters {
                statements: statements(&ddl),
            },
            // Then there is nothing to plan.
            Err(refusal) if refusal.is_of_the_job() => {
                return Err(refused_target(&spec.name, refusal));
            }
            Err(refusal) => TargetPlan::Refused {
                why: refusal.to_string(),
            },
        },
    )
}
