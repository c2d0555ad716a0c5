//! Reads a target from the catalog and examines it, for the roles that loaders work as or for this connection's. Reads only;
//! `etl plan` uses it too.

mod access;
mod relation;

use common::job::Target;
use common::message::RunId;
use common::schema::TargetColumn;
use ledger::{FormerRun, LoaderRoles, Store};
use sqlx::PgConnection;

use crate::ddl::{
    self, Catalog, Change, ColumnType, Examined, Known, Refusal, RemovedColumn, TableName,
};
use access::{AccessRow, access};
use relation::look_up;
pub(super) use relation::{Found, cascade_of_deletes};

/// What a run would find at its target.
#[derive(Debug)]
pub struct Planned {
    /// Those whose privileges were looked at.
    pub roles: LoaderRoles,
    /// The change that the first batch would make, or why there would be none.
    pub change: Result<Change, Vec<Refusal>>,
    /// What a replay or an undo of a run would be refused for.
    pub later: Vec<Refusal>,
    /// The columns that the job no longer loads, where its contract allows that.
    pub removed: Vec<RemovedColumn>,
}

/// Examines a target for the roles that loaders work as. Changes nothing. `columns` are all of the query, or those that the
/// job declares with a type, as `known` says. `run`: the run that is replayed, which is compared with itself.
pub async fn plan(
    store: &Store,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    allowed_schemas: &[String],
    (job, run): (&str, Option<&RunId>),
) -> Result<Planned, ledger::Error> {
    let failure = format!("cannot look at the target {}", target.table);
    let work = async |tx: &mut PgConnection| {
        let roles = ledger::loader_roles(tx).await?;
        let name = match TableName::of(target, allowed_schemas) {
            Ok(name) => name,
            Err(refusal) => {
                return Ok(Planned {
                    roles,
                    change: Err(vec![refusal]),
                    later: Vec::new(),
                    removed: Vec::new(),
                });
            }
        };
        let found = look_up(tx, &name).await?;
        let former = former_run(tx, target, job, run).await?;
        let (mut change, mut refusals, mut later) = (Change::Nothing, Vec::new(), Vec::new());
        let mut removed = Vec::new();
        for access in access(tx, &name, target, found.as_ref(), roles.names()).await? {
            let catalog = catalog(found.as_ref(), former.clone(), access);
            let one = ddl::examine(&name, target, columns, known, job, &catalog);
            (change, removed) = (one.change, one.removed);
            add_new(&mut refusals, one.refusals);
            add_new(&mut later, one.later);
        }
        let change = if refusals.is_empty() {
            Ok(change)
        } else {
            Err(refusals)
        };
        Ok(Planned {
            roles,
            change,
            later,
            removed,
        })
    };
    store.read(failure, work).await
}

/// What is wrong with the table itself is the same for every role.
fn add_new(all: &mut Vec<Refusal>, more: Vec<Refusal>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}

/// The run of the job that loaded the target last; not after `run`, if there is one.
pub(super) async fn former_run(
    tx: &mut PgConnection,
    target: &Target,
    job: &str,
    run: Option<&RunId>,
) -> Result<Option<FormerRun>, sqlx::Error> {
    let (schema, table) = target.schema_and_table();
    ledger::former_run(tx, job, &format!("{schema}.{table}"), run).await
}

/// Examines a target for this connection's role.
pub(super) async fn examine(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    job: &str,
    former: Option<FormerRun>,
) -> Result<(Examined, Option<Found>), sqlx::Error> {
    let found = look_up(tx, name).await?;
    let access = access(tx, name, target, found.as_ref(), None).await?.pop();
    let access = access.ok_or(sqlx::Error::RowNotFound)?;
    let catalog = catalog(found.as_ref(), former, access);
    let examined = ddl::examine(name, target, columns, Known::All, job, &catalog);
    Ok((examined, found))
}

/// Checks a table against the columns again, in the transaction that will write to it.
pub(crate) async fn check_again(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
) -> Result<Result<Vec<ColumnType>, Refusal>, sqlx::Error> {
    let found = look_up(tx, name).await?.ok_or(sqlx::Error::RowNotFound)?;
    let refusals = ddl::check_table(name, target, columns, Known::All, &found.table);
    Ok(match refusals.into_iter().next() {
        None => Ok(found.types(columns)),
        Some(refusal) => Err(refusal),
    })
}

fn catalog(found: Option<&Found>, former: Option<FormerRun>, access: AccessRow) -> Catalog {
    Catalog {
        has_schema: access.has_schema,
        table: found.map(|found| found.table.clone()),
        former,
        access: access.into(),
    }
}
