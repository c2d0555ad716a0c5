//! `etl status`: a run with its rate, its cost and the queues, once or every second.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use anyhow::anyhow;
use common::settings;
use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Command, runs};
use crate::Failure;
use crate::broker::{self, Depth};
use crate::follow::patiently;
use crate::output::run::{NO_REASON, by_whom, choice, sums, took};
use crate::output::{self, Sheet, by, counted, note, number, print, show};
use crate::store;
use ledger::{
    DroppedRows, Generation, Parked, RejectCount, RejectFilter, Run, RunFilter, RunState, Store,
};

/// Show a run: its progress and rate, the depths of the queues, its cost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl status most_visited_url-20180409 --watch")]
pub struct Arguments {
    /// The run, or the beginning of its name where only one run begins so; without one, the latest runs.
    pub run: Option<String>,
    /// Show the run every second until it is over.
    #[arg(long, requires = "run", conflicts_with = "json")]
    pub watch: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The time between two looks at a watched run.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The price of a terabyte (10^12 bytes) that Athena scans, in any currency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price(f64);

impl Price {
    /// Athena charges a query for at least this many bytes ("Amazon Athena Pricing").
    const MIN_BYTES: i64 = 10_000_000;

    /// None for a number that is not a price.
    pub fn per_tb(price: f64) -> Option<Self> {
        (price.is_finite() && price >= 0.0).then_some(Self(price))
    }

    /// The price that `ETL_PRICE_PER_TB` sets, if any.
    pub fn configured() -> Result<Option<Self>, Failure> {
        #[derive(Deserialize)]
        struct Settings {
            price_per_tb: Option<f64>,
        }
        let settings: Settings = settings::load().map_err(Failure::usage)?;
        let Some(price) = settings.price_per_tb else {
            return Ok(None);
        };
        Self::per_tb(price).map(Some).ok_or_else(|| {
            Failure::usage(anyhow!(
                "ETL_PRICE_PER_TB is {price}, which is not a price; set it to the price of a terabyte, such as 5"
            ))
        })
    }

    fn of(self, bytes: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a price, rounded when shown")]
        let bytes = bytes.max(Self::MIN_BYTES) as f64;
        bytes / 1e12 * self.0
    }
}

/// A run with everything around it.
#[derive(Debug, Serialize)]
pub struct Status {
    #[serde(flatten)]
    pub run: Run,
    /// Extracted rows that are neither loaded nor rejected nor dropped yet.
    pub rows_in_flight: i64,
    /// The average since the query was started.
    pub rows_per_second: Option<f64>,
    /// Since the look before, where there is one.
    #[serde(skip)]
    pub rows_per_second_now: Option<f64>,
    pub cost: Option<f64>,
    #[serde(skip)]
    pub price: Option<Price>,
    pub rejects: Vec<RejectCount>,
    pub drops: Vec<DroppedRows>,
    /// What waits for the target.
    pub parked: Vec<Parked>,
    /// None when the broker cannot be asked.
    pub queues: Option<Vec<Depth>>,
    /// Why the broker cannot be asked.
    pub broker: Option<String>,
    /// Why nothing of the run moves although no queue has anything of it, and the command that repairs it.
    pub lost: Option<String>,
}

impl Status {
    fn new(
        run: Run,
        rejects: Vec<RejectCount>,
        drops: Vec<DroppedRows>,
        parked: Vec<Parked>,
        queues: Result<Vec<Depth>, String>,
        price: Option<Price>,
    ) -> Self {
        let accounted = accounted(&run);
        let in_flight = (run.rows_read - accounted).max(0);
        let cost = price.zip(run.bytes_scanned);
        Self {
            rows_in_flight: if run.state.is_over() { 0 } else { in_flight },
            rows_per_second: rate(accounted, run.working_seconds),
            rows_per_second_now: None,
            cost: cost.map(|(price, bytes)| price.of(bytes)),
            price,
            rejects,
            drops,
            parked,
            broker: queues.as_ref().err().cloned(),
            queues: queues.ok(),
            lost: None,
            run,
        }
    }

    /// Says what repairs a run whose messages were lost, with a queue that was purged or deleted. `idle`: the seconds since
    /// anything of it was noted.
    fn look_for_loss(&mut self, idle: f64) {
        let run = &self.run;
        let is_empty = |queues: &Vec<Depth>| queues.iter().all(|queue| queue.messages == 0);
        if !run.state.takes_batches()
            || run.dead_letters > 0
            || !self.parked.is_empty()
            || !self.queues.as_ref().is_some_and(is_empty)
        {
            return;
        }
        let (id, job) = (&run.run_id, &run.job);
        let remedy = if run.batches_expected.is_some() {
            format!("`etl replay {id} --missing` sends what the ledger lacks")
        } else if run.state == RunState::Requested {
            format!(
                "`etl run {job} --run-id {id}`, with the same parameters, sends its task again unless an extractor has it in hand"
            )
        } else if run.batches > 0 {
            format!(
                "`etl replay {id} --missing` sends what the ledger lacks, unless the extractor has not read the result to its end"
            )
        } else {
            format!("`etl cancel {id}`, and request it again, unless its query still works")
        };
        // The task of a query that works is in hand for most of the time, and nothing is noted meanwhile.
        let is_reading =
            run.batches_expected.is_some() || run.batches > 0 || run.state == RunState::Requested;
        let most = if is_reading {
            IDLE_SECONDS
        } else {
            IDLE_QUERY_SECONDS
        };
        if idle > most {
            self.lost = Some(format!(
                "nothing of it is in any queue, and nothing was noted for {} seconds: {remedy}",
                whole(idle)
            ));
        }
    }
}

/// After so many seconds a run of which no queue has anything counts as lost: longer than a message is in hand.
const IDLE_SECONDS: f64 = 60.0;

/// The same for a run whose query may work: the default timeout of a query.
const IDLE_QUERY_SECONDS: f64 = 1_800.0;

/// Rows that are loaded, rejected or dropped.
fn accounted(run: &Run) -> i64 {
    run.rows_loaded + run.rows_rejected + run.rows_dropped
}

fn rate(rows: i64, seconds: Option<f64>) -> Option<f64> {
    let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate, rounded when shown")]
    let rows = rows as f64;
    Some((rows / seconds * 10.0).round() / 10.0)
}

/// The status of a run. A broker that is down does not keep the ledger from being shown.
pub async fn plan(store: &Store, run: &str, price: Option<Price>) -> Result<Status, Failure> {
    let run = store.exactly(run).await?;
    let filter = RejectFilter::default();
    let rejects = store
        .reject_counts(&[Generation::from(&run)], filter)
        .await?;
    let drops = store.dropped_rows(&run).await?;
    let parked = store.parked(Some(&run.run_id)).await?;
    let idle = store.idle_seconds(&run).await?;
    let queues = broker::depths().await;
    let mut status = Status::new(run, rejects, drops, parked, queues, price);
    status.look_for_loss(idle);
    Ok(status)
}

/// The latest open runs of which nothing is in any queue, with what repairs each.
pub(super) async fn lost(store: &Store) -> Result<Vec<(String, String)>, Failure> {
    let filter = RunFilter {
        states: &[RunState::Requested, RunState::Running],
        limit: MAX_LOST,
        ..RunFilter::default()
    };
    let runs = store.latest(&filter).await?;
    let queues = broker::depths().await;
    let mut lost = Vec::new();
    for run in runs {
        let id = run.run_id.clone();
        let parked = store.parked(Some(&id)).await?;
        let idle = store.idle_seconds(&run).await?;
        let mut status = Status::new(run, vec![], vec![], parked, queues.clone(), None);
        status.look_for_loss(idle);
        lost.extend(status.lost.map(|why| (id, why)));
    }
    Ok(lost)
}

/// The most open runs that [`lost`] looks at.
const MAX_LOST: u32 = 100;

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let Some(name) = &self.run else {
            let latest = runs::Arguments {
                job: None,
                state: None,
                limit: 20,
                json: self.json,
            };
            return latest.run().await;
        };
        let price = Price::configured()?;
        let store = store::open().await?;
        let run = store.find(name).await?.run_id;
        if self.watch {
            watch(&store, &run, price).await?;
        } else {
            show(self.json, &plan(&store, &run, price).await?, lines)?;
        }
        Ok(true)
    }
}

async fn watch(store: &Store, run: &str, price: Option<Price>) -> Result<(), Failure> {
    let is_terminal = stdout().is_terminal();
    let mut last: Option<(i64, Instant)> = None;
    loop {
        let read = async || plan(store, run, price).await;
        let meanwhile = format!("the run {run} goes on");
        let mut status = patiently(&meanwhile, None, |said| note(&said), read).await?;
        let (rows, now) = (accounted(&status.run), Instant::now());
        if let Some((before, at)) = last.replace((rows, now)) {
            let seconds = now.duration_since(at).as_secs_f64();
            status.rows_per_second_now = rate(rows - before, Some(seconds));
        }
        let lines = lines(&status);
        if is_terminal {
            // Home, and clear from there to the end: without a flicker.
            print(&format!("\x1b[H\x1b[J{lines}"))?;
        } else {
            print(&format!("{lines}\n"))?;
        }
        if status.run.state.is_over() {
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn lines(status: &Status) -> String {
    let run = &status.run;
    let batches = match run.batches_expected {
        Some(expected) => format!("{} of {}", number(run.batches), number(expected.into())),
        None => format!("{}, the total is not known yet", number(run.batches)),
    };
    let numbers = format!("(number {}, generation {})", run.run_no, run.generation);
    let requested_by = by(run.requested_by.as_ref());
    let query = run.query_execution_id.as_deref();
    let mut sheet = Sheet::new(10);
    sheet.add("run", format!("{} {numbers}", run.run_id));
    sheet.add("job", output::job(&run.job, &run.parameters));
    sheet.add("target", format!("{} ({})", run.target_table, run.mode));
    sheet.add("state", state(run));
    sheet.add("requested", format!("{}{requested_by}", run.requested_at));
    sheet.add_if("replayed", replay(run));
    sheet.add("query", query.unwrap_or("not started"));
    sheet.add("batches", batches);
    sheet.add("rows", sums(run));
    add_progress(&mut sheet, status);
    add_remarks(&mut sheet, run);
    add_rejects_and_drops(&mut sheet, status);
    for parked in &status.parked {
        sheet.add("parked", waiting(parked));
    }
    if !run.state.is_over() {
        sheet.add_if("blocked", status.lost.as_ref());
        add_queues(&mut sheet, status);
    }
    sheet.text()
}

fn state(run: &Run) -> String {
    let what = match run.state {
        RunState::Cancelled => by_whom(run),
        RunState::Held => format!(": {}", run.held_because.as_deref().unwrap_or(NO_REASON)),
        _ => String::new(),
    };
    format!("{}{}{what}", run.state, took(run))
}

/// The replay that made the live generation.
fn replay(run: &Run) -> Option<String> {
    let at = run.replayed_at.as_ref()?;
    let by = run.replayed_by.as_deref().unwrap_or("unknown user");
    let end = run.replay_abandoned.as_ref().map(|why| format!("; {why}"));
    Some(format!("{at} by {by}{}", end.unwrap_or_default()))
}

/// The rows in flight, the rate, and the bytes scanned.
fn add_progress(sheet: &mut Sheet, status: &Status) {
    if status.rows_in_flight > 0 {
        let rows = number(status.rows_in_flight);
        sheet.add(
            "in flight",
            format!("{rows} rows are extracted and not in the ledger yet"),
        );
    }
    if let Some(rate) = status.rows_per_second.filter(|rate| *rate > 0.0) {
        let now = status
            .rows_per_second_now
            .filter(|_| !status.run.state.is_over());
        let now = now.map(|rate| format!(", {} now", whole(rate)));
        sheet.add(
            "rate",
            format!("{} rows a second{}", whole(rate), now.unwrap_or_default()),
        );
    }
    if let Some(bytes) = status.run.bytes_scanned {
        let cost = status.cost.zip(status.price);
        let cost = cost.map(|(cost, price)| format!(", about {} at {} a TB", money(cost), price.0));
        let bytes = HumanBytes(u64::try_from(bytes).unwrap_or(0));
        sheet.add("scanned", format!("{bytes}{}", cost.unwrap_or_default()));
    }
}

fn whole(rate: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "for a person")]
    number(rate.round() as i64)
}

/// With four digits below 1, so that a small amount does not read as nothing.
fn money(amount: f64) -> String {
    let digits = if amount < 1.0 { 4 } else { 2 };
    format!("{amount:.digits$}")
}

/// What a run has only in some states.
fn add_remarks(sheet: &mut Sheet, run: &Run) {
    sheet.add_if("committed", run.committed_at.as_ref());
    sheet.add_if("failure", run.failure.as_ref());
    if run.dead_letters > 0 {
        let dead = counted(run.dead_letters, "dead letter");
        sheet.add("blocked", format!("by {dead} (`etl dead list`)"));
    }
    if run.state == RunState::Held {
        sheet.add("decide", choice(run));
    }
    if run.removal_pending {
        let failure = run.removal_failure.as_ref();
        let failure = failure.map(|why| format!("; the last attempt failed: {why}"));
        let text = format!(
            "rows of it are still in {}, and a loader is to remove them{}",
            run.target_table,
            failure.unwrap_or_default()
        );
        sheet.add("removal", text);
    }
    if run.ignored_messages > 0 {
        let messages = counted(run.ignored_messages, "message");
        let text = format!("{messages} arrived after the run ended and changed nothing");
        sheet.add("ignored", text);
    }
}

fn add_rejects_and_drops(sheet: &mut Sheet, status: &Status) {
    for count in &status.rejects {
        let column = count.column_name.as_deref().unwrap_or("the row");
        let rows = number(count.rows);
        sheet.add("rejected", format!("{rows} by {} of {column}", count.rule));
    }
    for drop in &status.drops {
        let rows = counted(drop.rows, "row");
        let batches = counted(drop.batches, "batch");
        let by = drop.dropped_by.as_deref().unwrap_or("unknown user");
        let why = drop.reason.as_deref().unwrap_or(NO_REASON);
        sheet.add("dropped", format!("{rows} of {batches} by {by}: {why}"));
    }
}

/// What waits for a target, since when and why.
pub(super) fn waiting(parked: &Parked) -> String {
    let Parked {
        batches, commits, ..
    } = *parked;
    let what = match (batches, commits) {
        (0, 0) => counted(parked.paused, "extraction"),
        (0, commits) => counted(commits, "commit"),
        (batches, 0) => counted(batches, "batch"),
        _ => format!(
            "{} and {}",
            counted(batches, "batch"),
            counted(commits, "commit")
        ),
    };
    let verb = if batches + commits <= 1 {
        "waits"
    } else {
        "wait"
    };
    let paused = match parked.paused {
        0 => String::new(),
        _ => format!(
            " ({} MiB, so that the extraction is paused until they are loaded)",
            parked.bytes.unsigned_abs() >> 20
        ),
    };
    format!(
        "{what} {verb} for {} since {}{paused}: {}; the loaders try again by themselves",
        parked.target_table, parked.since, parked.reason
    )
}

/// The depths of the queues, which all runs share.
fn add_queues(sheet: &mut Sheet, status: &Status) {
    let Some(queues) = &status.queues else {
        let why = status.broker.as_deref().unwrap_or_default();
        return sheet.add("queues", format!("unknown: {why}"));
    };
    for depth in queues {
        let consumers = match depth.consumers {
            0 => "NO consumer".to_owned(),
            count => counted(count.into(), "consumer"),
        };
        let messages = number(depth.messages.into());
        sheet.add(depth.queue, format!("{messages} waiting, {consumers}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    fn status_of(run: Run, queues: Result<Vec<Depth>, String>) -> Status {
        let rejects = vec![
            RejectCount {
                column_name: Some("country_code".into()),
                rule: "none_of".into(),
                rows: run.rows_rejected,
                runs: 1,
            },
            RejectCount {
                column_name: None,
                rule: "postgres".into(),
                rows: 3,
                runs: 1,
            },
        ];
        Status::new(
            run,
            rejects,
            Vec::new(),
            Vec::new(),
            queues,
            Price::per_tb(5.0),
        )
    }

    fn queues() -> Vec<Depth> {
        let depth = |queue, messages, consumers| Depth {
            queue,
            messages,
            consumers,
        };
        vec![
            depth("etl.extract", 0, 2),
            depth("etl.raw", 1_200, 1),
            depth("etl.valid", 17, 0),
        ]
    }

    #[test]
    fn every_state_shows_its_own_lines() {
        let all: Vec<_> = samples::runs()
            .into_iter()
            .map(|run| lines(&status_of(run, Ok(queues()))))
            .collect();
        insta::assert_snapshot!(all.join("\n\n"));
    }

    #[test]
    fn watched_run_is_shown_without_the_broker() {
        let mut status = status_of(
            samples::runs().swap_remove(1),
            Err("connecting to amqp://host/: connection refused".into()),
        );
        status.rows_per_second_now = rate(1_500, Some(1.0));
        insta::assert_snapshot!(lines(&status));
    }

    #[test]
    fn replay_shows_its_own_time_and_its_end() {
        let cancelled = Run {
            replay_abandoned: Some("abandoned by ana: cancelled: the wrong job".into()),
            ..samples::replayed()
        };
        let shown: Vec<_> = [samples::replayed(), cancelled]
            .into_iter()
            .map(|run| {
                lines(&Status::new(
                    run,
                    Vec::new(),
                    Vec::new(),
                    Vec::new(),
                    Ok(queues()),
                    None,
                ))
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n\n"));
    }

    #[test]
    fn dropped_rows_show_the_user_and_the_reason() {
        let drops =
            [(1, 1, Some("ana")), (39, 83_760, None)].map(|(batches, rows, who)| DroppedRows {
                dropped_by: who.map(Into::into),
                reason: who.map(|_| "a test of Monday".into()),
                batches,
                rows,
            });
        let status = Status::new(
            samples::completed(),
            vec![],
            drops.into(),
            vec![],
            Ok(queues()),
            None,
        );
        let shown = lines(&status);
        assert!(
            shown.ends_with("   dropped  1 row of 1 batch by ana: a test of Monday\n   dropped  83,760 rows of 39 batches by unknown user: no reason is recorded"),
            "{shown}"
        );
    }

    #[test]
    fn what_waits_for_a_target_is_counted_with_the_reason() {
        let parked = |batches, commits, paused| {
            waiting(&Parked {
                target_table: "public.clicks".into(),
                batches,
                bytes: 300 << 20,
                commits,
                paused,
                runs: 1,
                since: "2018-04-03 02:00:00+00".into(),
                attempts: 3,
                reason: "cannot lock it".into(),
            })
        };
        let end = "for public.clicks since 2018-04-03 02:00:00+00: cannot lock it; the loaders try again by themselves";
        assert_eq!(parked(1, 0, 0), format!("1 batch waits {end}"));
        assert_eq!(parked(0, 1, 0), format!("1 commit waits {end}"));
        assert_eq!(
            parked(12, 1, 0),
            format!("12 batches and 1 commit wait {end}")
        );
        let paused = parked(300, 0, 1);
        assert!(
            paused.contains("00 (300 MiB, so that the extraction is paused"),
            "{paused}"
        );
    }

    #[test]
    fn status_as_json() {
        let status = status_of(samples::completed(), Ok(queues()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
    }

    #[test]
    fn cost_is_at_least_that_of_ten_megabytes() {
        let price = Price::per_tb(5.0).unwrap();
        assert!((price.of(1) - 0.00005).abs() < 1e-9);
        assert!((price.of(2_000_000_000_000) - 10.0).abs() < 1e-9);
        assert!(Price::per_tb(-1.0).is_none() && Price::per_tb(f64::NAN).is_none());
    }
}
