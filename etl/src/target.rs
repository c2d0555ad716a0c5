//! The target of a job, as it is and as a run would find it.

use anyhow::anyhow;
use common::job::{JobSpec, Target};
use common::message::RunId;
use common::schema::TargetColumn;
use ledger::Store;
use loader::ddl::{self, Change, Fault, Known, Refusal};
use loader::target::catalog::{self, Planned};
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
        /// A sentence for each thing that is wrong, with the remedy.
        why: Vec<String>,
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

/// Why a run is refused. A job or a setting that cannot be right is a usage error; a target that does not fit may be changed
/// until the next run.
fn refused_target(job: &str, refusals: &[Refusal]) -> Failure {
    let is_usage = refusals.iter().any(|one| one.fault() == Fault::Job);
    let sentences: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    let error = anyhow!(sentences.join("\n  and: ")).context(format!("cannot run the job {job}"));
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

/// Refuses a job whose rows could not be loaded, as far as that can be known before the query runs. Returns what else a person
/// has to know. `asked`: all columns of the query, where they are known. `run`: the run that
/// is replayed, which is compared with itself.
pub async fn check(
    store: &Store,
    spec: &JobSpec,
    asked: Option<&[TargetColumn]>,
    run: Option<&RunId>,
    schemas: &[String],
) -> Result<Vec<String>, Failure> {
    let declared = declared(spec);
    let (columns, known) = match asked {
        Some(all) => (all, Known::All),
        None => (&*declared, Known::Declared),
    };
    let target = &spec.target;
    let planned = catalog::plan(store, target, columns, known, schemas, (&spec.name, run)).await?;
    let notes = planned.roles.note().into_iter().chain(warnings(&planned));
    let notes = notes.collect();
    match planned.change {
        Ok(_) => Ok(notes),
        Err(refusals) => Err(refused_target(&spec.name, &refusals)),
    }
}

/// What is no reason to refuse a run: what will be refused later, and columns that are loaded no longer.
fn warnings(planned: &Planned) -> Vec<String> {
    let later = planned.later.iter();
    let later = later.map(|one| format!("a replay or an undo of its runs will not work: {one}"));
    let removed = planned.removed.iter().map(ToString::to_string);
    later.chain(removed).collect()
}

/// A target, examined.
#[derive(Debug)]
pub struct Examined {
    pub plan: TargetPlan,
    /// The roles whose privileges were looked at.
    pub roles: Vec<String>,
    /// What a person has to know about these roles.
    pub role_note: Option<String>,
    pub warnings: Vec<String>,
}

/// What the first batch of a run would do to the target. Changes nothing.
pub async fn plan(store: &Store, spec: &JobSpec, schemas: &[String]) -> Result<Examined, Failure> {
    examine(store, spec, &declared(spec), Known::Declared, schemas).await
}

/// The same, where all columns of the query are known.
pub async fn plan_all(
    store: &Store,
    spec: &JobSpec,
    columns: &[TargetColumn],
    schemas: &[String],
) -> Result<Examined, Failure> {
    examine(store, spec, columns, Known::All, schemas).await
}

async fn examine(
    store: &Store,
    spec: &JobSpec,
    columns: &[TargetColumn],
    known: Known,
    schemas: &[String],
) -> Result<Examined, Failure> {
    let target = &spec.target;
    let planned = catalog::plan(store, target, columns, known, schemas, (&spec.name, None)).await?;
    let (warnings, roles) = (warnings(&planned), planned.roles);
    let plan = match planned.change {
        Ok(Change::Nothing) => TargetPlan::Fits,
        Ok(Change::Create { ddl, .. }) => TargetPlan::Creates {
            statements: if is_a_table(target, columns) {
                statements(&ddl)
            } else {
                Vec::new()
            },
            with: ddl::columns_of_a_new_table(target, columns),
        },
        Ok(Change::Add { ddl, .. }) => TargetPlan::Alters {
            statements: statements(&ddl),
        },
        // Then there is nothing to plan.
        Err(refusals) if refusals.iter().any(|one| one.fault() == Fault::Job) => {
            return Err(refused_target(&spec.name, &refusals));
        }
        Err(refusals) => TargetPlan::Refused {
            why: refusals.iter().map(ToString::to_string).collect(),
        },
    };
    Ok(Examined {
        plan,
        roles: roles.checked().to_vec(),
        role_note: roles.note(),
        warnings,
    })
}
