//! The one owner of schema `etl`: its migrations, every statement on it, the states of a run and the transitions between them.
//! The loader, `etl` and what else reads or changes the ledger do it through here, and begin their transactions here
//! ([`Store`]), those on target tables included.
//!
//! Pure: [`RunState`] and [`Transition`], [`BatchNo`], [`RowRanges`], [`Verdict`], and what an error means ([`classify`]). A
//! [`LockedRun`] is a run whose row is locked: every change of a run's state is a method of it.

mod address;
pub mod batch;
mod batch_no;
pub mod beginning;
pub mod completion;
pub mod conflict;
pub mod database;
mod dead_letter;
mod decision;
pub mod earlier;
mod encryption;
mod error;
pub mod event;
mod freshness;
mod grant;
mod hosts;
mod job;
mod lineage;
mod loaders;
pub mod migrate;
mod moment;
mod notification;
mod origin;
pub mod outbox;
mod parked;
mod password;
mod pool;
mod pooler;
mod prune;
mod quarantine;
mod query;
mod removal;
mod replay;
mod request;
mod results;
mod retry;
mod row_ranges;
mod rows;
mod run;
mod same_rows;
pub mod search_path;
mod server;
mod session_lock;
pub mod staging;
mod state;
mod summary;
mod verdict;
mod watermark;

pub use address::{Address, InvalidAddress};
pub use batch::Counts;
pub use batch_no::BatchNo;
pub use beginning::{FormerRun, former_run};
pub use database::Store;
pub use dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterSummary, Dropped, NewDeadLetter, ReplayDropped,
};
pub use decision::{Ended, Rows};
pub use encryption::Encryption;
pub use error::{Class, Error, Refused, cause, classify, is_denied, remedy, words};
pub use freshness::Freshness;
pub use grant::{Part, grant};
pub use hosts::{Role, unreachable};
pub use job::KnownJob;
pub use lineage::{CHANNEL as LINEAGE_CHANNEL, Lineage, Occurrence, RowCounts};
pub use loaders::{LoaderRoles, loader_roles};
pub use moment::Moment;
pub use origin::Origin;
pub use parked::{Parked, Paused, default_parked_bytes};
pub use prune::{Prune, Pruned};
pub use quarantine::{Generation, QuarantinedRow, RejectCount, RejectFilter, quarantine};
pub use query::Query;
pub use removal::{DroppedBatch, Removal, Removed, ToRemove};
pub use replay::{NewReplay, Replay, Subject};
pub use request::{Requested, Settled, Terms};
pub use results::Results;
pub use retry::Attempt;
pub use row_ranges::{NotARange, RowRanges, Search};
pub use rows::{RefusedRow, write_rows};
pub use run::{LockedRun, Meant, RunRow, Standing, bigint, share};
pub use same_rows::ConflictingRun;
pub use server::Server;
pub use session_lock::SessionLock;
pub use state::{RunState, Transition};
pub use summary::{DroppedRows, Proven, Run, RunFilter};
pub use verdict::{Ranges, Verdict};
pub use watermark::WatermarkChange;
