//! `etl prune`: forgets old rejected values and bodies of dead letters.

use crate::Failure;
use crate::books::{Books, Prune};
use crate::cli::PruneArguments;
use crate::report;

/// `etl prune`.
pub(crate) async fn prune(arguments: &PruneArguments) -> Result<bool, Failure> {
    let books = Books::open().await?;
    let what = Prune {
        older_than: arguments.older_than,
        unresolved: arguments.unresolved,
        dry_run: arguments.dry_run,
    };
    let pruned = books.prune(what).await?;
    report::pruned(pruned, arguments.dry_run, arguments.json)?;
    Ok(true)
}
