//! The target of a job, as it is and as a run would find it.

use anyhow::Context;
use common::job::{JobSpec, Target};
use common::schema::TargetColumn;
use loader::ddl::{self, Change, Refusal};
use serde::Serialize;

use super::Books;
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

/// A job or a setting that cannot be right is misuse; a target that does not fit may be another one tomorrow.
fn refused_target(job: &str, refusal: Refusal) -> Failure {
    let is_misuse = refusal.is_of_the_job();
    let error = anyhow::Error::from(refusal).context(format!("cannot run the job {job}"));
    if is_misuse {
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

impl Books {
    /// Refuses a job whose rows could not be loaded, as far as that can be known before the query ran.
    pub async fn check_target(&self, spec: &JobSpec, schemas: &[String]) -> Result<(), Failure> {
        let target = &spec.target;
        let columns = declared(spec);
        let refused = loader::target::inspect(&self.pool, target, &columns, schemas, &spec.name)
            .await
            .with_context(|| format!("cannot look at the target {}", target.table))?;
        refused.map_err(|refusal| refused_target(&spec.name, refusal))
    }

    /// What would become of the target. Changes nothing.
    pub async fn plan_target(
        &self,
        spec: &JobSpec,
        schemas: &[String],
    ) -> Result<TargetPlan, Failure> {
        let target = &spec.target;
        let columns = declared(spec);
        let doing = || format!("cannot look at the target {}", target.table);
        let planned = loader::target::plan(&self.pool, target, &columns, schemas, &spec.name)
            .await
            .with_context(doing)?;
        Ok(match planned {
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
        })
    }
}
