//! Target tables: created when missing, checked when they exist. The check runs once per process, target and columns,
//! and again after the table has changed. Safe with concurrent loaders.
//!
//! Each write method is a type with its SQL beside its binds: `append`, `merge`, `staged`, and `commit`, which
//! moves staged rows to the target at the end of a run.

mod analyze;
mod append;
pub mod catalog;
pub(crate) mod commit;
mod copy_into;
mod deletion;
mod indexes;
mod merge;
mod one_by_one;
mod staged;
mod table;
mod window;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use common::job::{Mode, Target};
use common::message::{RejectedRow, RunId, ValidBatch};
use common::schema::TargetColumn;
use ledger::{Store, database};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::ddl::{self, Change, ColumnType, Refusal, TableName};
use crate::errors::{LoadError, Refused};
use append::Append;
use copy_into::{CopyInto, RefusedRow};
use indexes::Indexes;
use merge::Merge;
use table::Checked;
pub(crate) use table::lock_key;

pub use analyze::analyze;
pub(crate) use deletion::{Deletion, Expected};
pub use staged::clean_up;

/// The longest wait for a lock on a target, as a setting of PostgreSQL: somebody may hold it for hours.
pub(crate) const LOCK_TIMEOUT: &str = "3s";

/// The outcome for a batch's rows.
#[derive(Debug, Default)]
pub struct Written {
    /// Rows that PostgreSQL refused.
    pub refused: Vec<RejectedRow>,
    /// Accepted rows that are not in the target because of another row with the same key.
    pub deduplicated: i64,
}

impl Written {
    fn new(refused: Vec<RefusedRow>, deduplicated: i64) -> Self {
        let refused = refused.into_iter().map(|refused| refused.row).collect();
        Self {
            refused,
            deduplicated,
        }
    }
}

/// A target or staging table that accepts batches with these columns.
#[derive(Debug)]
pub struct Prepared {
    checked: Checked,
    writer: Writer,
}

/// The write methods of a batch.
#[derive(Debug)]
enum Writer {
    Append(Append),
    Merge(Merge),
    Staged(CopyInto),
}

impl Prepared {
    /// The writer for a table with this fingerprint, in which the columns have these types.
    pub fn new(
        name: &TableName,
        target: &Target,
        columns: &[TargetColumn],
        types: Vec<ColumnType>,
        fingerprint: String,
    ) -> Self {
        let names = || columns.iter().map(|column| column.name.clone()).collect();
        match target.mode {
            Mode::Append | Mode::Replace => Self {
                writer: Writer::Append(Append::new(name, (names(), types), target.allow_cascades)),
                checked: Checked::shared(name, fingerprint),
            },
            Mode::Upsert | Mode::InsertOnly => Self {
                writer: Writer::Merge(Merge::new(name, target, columns, (&fingerprint, types))),
                checked: Checked::new(&name.sql(), fingerprint),
            },
        }
    }

    /// Whether the table is unchanged since its check. It cannot change until the transaction ends.
    pub(crate) async fn is_unchanged(&self, tx: &mut PgConnection) -> Result<bool, LoadError> {
        self.checked.is_unchanged(tx).await
    }

    /// Writes the rows of a batch. `run_no` is the number of its run.
    pub async fn write(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        run_no: i64,
    ) -> Result<Written, LoadError> {
        let batch_no = ledger::BatchNo::new(run_no, batch.id.first_row).get();
        match &self.writer {
            Writer::Append(append) => append.write(tx, batch, batch_no).await,
            Writer::Merge(merge) => merge.write(tx, batch, run_no).await,
            Writer::Staged(copy) => copy.write(tx, batch, batch_no).await,
        }
    }
}

/// `c0, c1, ...`: the columns of a staging table, which have generated names.
fn staged_columns(count: usize) -> String {
    let all = (0..count).map(|index| format!("c{index}"));
    all.collect::<Vec<_>>().join(", ")
}

/// The checked targets, with their writers.
pub struct Targets {
    allowed_schemas: Vec<String>,
    prepared: Mutex<ByPlace>,
    /// The indexes by which the rows of a batch or of a run are found.
    pub(crate) indexes: Indexes,
}

/// The most checked targets in memory: each run that is committed as a whole has its own.
const KEPT: usize = 256;

type ByPlace = HashMap<Place, Arc<Prepared>>;

/// The destination of a batch's rows: a target with these columns, or the staging table of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    target: Target,
    columns: Vec<TargetColumn>,
    staged: Option<(RunId, u32)>,
}

impl Place {
    fn of(batch: &ValidBatch) -> Self {
        let staged = batch.target.is_staged(batch.id.generation);
        Self {
            target: if staged {
                batch.target.clone()
            } else {
                shape(&batch.target)
            },
            columns: batch.columns.clone(),
            staged: staged.then(|| (batch.id.run.clone(), batch.id.generation)),
        }
    }
}

/// The properties of a target that determine its writer.
fn shape(target: &Target) -> Target {
    Target {
        table: target.table.clone(),
        mode: target.mode,
        key: target.key.clone(),
        schema: target.schema,
        allow_cascades: target.allow_cascades,
        ..Target::default()
    }
}

impl Targets {
    pub fn new(allowed_schemas: Vec<String>) -> Self {
        Self {
            allowed_schemas,
            prepared: Mutex::default(),
            indexes: Indexes::default(),
        }
    }

    /// The writer for a batch. The first batch creates or checks the target. The first one of a run also compares its columns
    /// with those of the run before.
    pub async fn prepare(
        &self,
        store: &Store,
        batch: &ValidBatch,
        is_first: bool,
    ) -> Result<Arc<Prepared>, LoadError> {
        if !is_first && let Some(known) = self.known(batch) {
            return Ok(known);
        }
        let (target, columns) = (&batch.target, &batch.columns);
        let name = TableName::of(target, &self.allowed_schemas).map_err(Refused::from)?;
        ddl::check_columns(&name, target, columns).map_err(Refused::from)?;
        let checked = store.transaction(
            format!("cannot create or check {}", name.sql()),
            async |tx: &mut PgConnection| Ok(create_or_check(tx, &name, batch, is_first).await?),
        );
        let checked = checked.await.map_err(LoadError::of_target)?;
        let (fingerprint, types) = checked.map_err(Refused::from)?;
        let place = Place::of(batch);
        let prepared = if place.staged.is_some() {
            let (checked, copy) = staged::prepare(store, batch).await?;
            let writer = Writer::Staged(copy);
            Prepared { checked, writer }
        } else {
            Prepared::new(&name, target, columns, types, fingerprint)
        };
        if is_first {
            // The table may be another one since the run before, which no transaction notices any more.
            self.indexes.forget(&name);
        }
        let prepared = Arc::new(prepared);
        let mut kept = self.prepared();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(place, Arc::clone(&prepared));
        Ok(prepared)
    }

    /// Creates the index that finds the rows of a batch, before the first batch of a replay that replaces batches one
    /// by one. Not earlier, since the index adds a quarter to the time that Postgres needs for a row. Without the
    /// index, a replay reads the whole table for each batch, with the same result.
    pub async fn index(&self, store: &Store, batch: &ValidBatch) -> Result<(), LoadError> {
        let target = &batch.target;
        if batch.id.generation == 0 || !target.mode.adds() || target.is_staged(batch.id.generation)
        {
            return Ok(());
        }
        // A retry writes its rows for the first time.
        if !store.is_replayed(&batch.id).await? {
            return Ok(());
        }
        let name = TableName::of(target, &self.allowed_schemas).map_err(Refused::from)?;
        let indexed = self.indexes.ensure(store, &name).await;
        indexed.map_err(LoadError::of_target)
    }

    /// The writer for a batch whose target was checked before.
    pub fn known(&self, batch: &ValidBatch) -> Option<Arc<Prepared>> {
        self.prepared().get(&Place::of(batch)).map(Arc::clone)
    }

    /// Repeats the check at the next batch, since the table has changed.
    pub fn forget(&self, target: &Target) {
        if let Ok(name) = TableName::of(target, &self.allowed_schemas) {
            self.indexes.forget(&name);
        }
        self.check_again(target);
    }

    /// Repeats the check of the columns at the next batch, since they may be why the batch failed. Does not repeat the
    /// creation of the index: without the privilege, every batch would wait for it.
    pub fn check_again(&self, target: &Target) {
        let target = shape(target);
        self.prepared()
            .retain(|known, _| shape(&known.target) != target);
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, ByPlace> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fingerprint of the created, changed or checked table, and the types of the columns in it.
async fn create_or_check(
    tx: &mut PgConnection,
    name: &TableName,
    batch: &ValidBatch,
    is_first: bool,
) -> Result<Result<(String, Vec<ColumnType>), Refusal>, sqlx::Error> {
    let (target, columns, job) = (&batch.target, &batch.columns, &batch.job);
    // Another loader may be creating or altering the table. IF NOT EXISTS alone does not prevent the error of the
    // second one.
    database::lock(tx, database::lock_key("create", &name.sql())).await?;
    let former = if is_first {
        catalog::former_run(tx, target, job, Some(&batch.id.run)).await?
    } else {
        None
    };
    let (examined, found) = catalog::examine(tx, name, target, columns, job, former).await?;
    for removed in &examined.removed {
        let (table, column) = (&removed.table, &removed.column);
        tracing::warn!(run.id = %batch.id.run, job.name = job, target.table = table, target.column = column, "the query no longer has a column that the run before loaded");
    }
    let change = match examined.into_change() {
        Ok(change) => change,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let table = name.sql();
    let was = match (&change, found) {
        (Change::Nothing, found) => found,
        _ => None,
    };
    match change {
        Change::Nothing => {}
        Change::Create { ddl, .. } => {
            tx.execute(AssertSqlSafe(ddl)).await?;
            tracing::info!(target.table = table, job.name = job, "target created");
        }
        Change::Add { columns, ddl } => {
            tx.execute(AssertSqlSafe(ddl)).await?;
            let columns = columns.join(", ");
            tracing::info!(
                target.table = table,
                target.columns = columns,
                job.name = job,
                "columns added to the target"
            );
        }
    }
    // The fingerprint describes the table that was checked: an ALTER in between makes it another table.
    let now = if let Some(was) = was {
        was
    } else {
        // What speaks against a table can show only once it is there: a publication of all tables, for example.
        let (examined, made) = catalog::examine(tx, name, target, columns, job, None).await?;
        if let Err(refusal) = examined.into_change() {
            return Ok(Err(refusal));
        }
        made.ok_or(sqlx::Error::RowNotFound)?
    };
    let types = now.types(columns);
    Ok(Ok((now.fingerprint, types)))
}
