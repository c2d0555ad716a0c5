//! Times of a run by the ledger's clock. A task carries that of its request and a control message that of its command, so that
//! no command is about a later request of the same name.

use common::message::RunId;
use jiff::Timestamp;
use sqlx::PgConnection;

use crate::database::Store;
use crate::error::Error;

/// A generation of a run at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub run_no: i64,
    /// When the run was requested, or the replay that began the generation. To the microsecond, as the next.
    pub requested_at: Timestamp,
    pub now: Timestamp,
}

const SELECT: &str = r#"
    SELECT run_no, to_char(coalesce(p.requested_at, r.requested_at) AT TIME ZONE 'UTC', format), to_char(now() AT TIME ZONE 'UTC', format)
    FROM etl.runs r LEFT JOIN etl.replays p ON p.run_id = r.run_id AND p.generation = $2,
         (VALUES ('YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) AS f (format)
    WHERE r.run_id = $1"#;

impl Store {
    /// The time, by the ledger's clock.
    pub async fn now(&self) -> Result<Timestamp, Error> {
        let failure = "cannot read the time from the database";
        self.read(failure, async |tx: &mut PgConnection| {
            let select =
                r#"SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
            let now: String = sqlx::query_scalar(select).fetch_one(tx).await?;
            now.parse().map_err(|_| {
                Error::NotAllowed(format!("the database's time cannot be read: {now}"))
            })
        })
        .await
    }

    /// The moment of a generation of a run.
    pub async fn moment(&self, run: &RunId, generation: u32) -> Result<Moment, Error> {
        let failure = format!("cannot read the times of the run {run}");
        self.read(failure, async |tx: &mut PgConnection| {
            moment(tx, run, generation).await
        })
        .await
    }
}

/// The moment of a generation of a run, in a transaction.
pub(crate) async fn moment(
    tx: &mut PgConnection,
    run: &RunId,
    generation: u32,
) -> Result<Moment, Error> {
    let generation = i32::try_from(generation).unwrap_or(i32::MAX);
    let moment = sqlx::query_as(SELECT).bind(run.as_str()).bind(generation);
    let (run_no, requested_at, now): (i64, String, String) = moment.fetch_one(tx).await?;
    let time = |text: String| {
        text.parse().map_err(|_| {
            Error::NotAllowed(format!(
                "the run {run} has a time that cannot be read: {text}"
            ))
        })
    };
    Ok(Moment {
        run_no,
        requested_at: time(requested_at)?,
        now: time(now)?,
    })
}
