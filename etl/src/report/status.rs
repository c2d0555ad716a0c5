//! `etl status RUN`: how far a run is, how fast, what waits, and what it cost.

use std::time::Duration;

use indicatif::HumanBytes;
use serde::Serialize;

use super::run::{by_whom, sums, took};
use super::{counted, number, print, print_json};
use crate::Failure;
use crate::books::{DroppedRows, RejectCount, Run};
use crate::broker::Depth;

/// What a terabyte (10^12 bytes) that Athena scans costs, in whatever money.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Price(f64);

impl Price {
    /// Athena charges a query for this many bytes at least ("Amazon Athena Pricing").
    const LEAST: i64 = 10_000_000;

    pub(crate) fn per_tb(price: f64) -> Option<Self> {
        (price.is_finite() && price >= 0.0).then_some(Self(price))
    }

    fn of(self, bytes: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a price, rounded when shown")]
        let bytes = bytes.max(Self::LEAST) as f64;
        bytes / 1e12 * self.0
    }
}

/// A run with all that is around it.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    run: Run,
    /// Extracted, and neither loaded nor rejected nor dropped yet.
    rows_in_flight: i64,
    /// On the average since the query was started.
    rows_per_second: Option<f64>,
    /// Since the last look, where there was one.
    #[serde(skip)]
    rows_per_second_now: Option<f64>,
    cost: Option<f64>,
    #[serde(skip)]
    price: Option<Price>,
    rejects: Vec<RejectCount>,
    drops: Vec<DroppedRows>,
    /// None when the broker cannot be asked.
    queues: Option<Vec<Depth>>,
    /// Why the broker cannot be asked.
    broker: Option<String>,
}

impl Status {
    pub(crate) fn new(
        run: Run,
        rejects: Vec<RejectCount>,
        drops: Vec<DroppedRows>,
        queues: Result<Vec<Depth>, String>,
        price: Option<Price>,
    ) -> Self {
        let accounted = run.rows_loaded + run.rows_rejected + run.rows_dropped;
        let (queues, broker) = match queues {
            Ok(queues) => (Some(queues), None),
            Err(why) => (None, Some(why)),
        };
        Self {
            rows_in_flight: if run.is_over() {
                0
            } else {
                (run.rows_read - accounted).max(0)
            },
            rows_per_second: rate(accounted, run.working_seconds),
            rows_per_second_now: None,
            cost: price
                .zip(run.bytes_scanned)
                .map(|(price, bytes)| price.of(bytes)),
            price,
            rejects,
            drops,
            queues,
            broker,
            run,
        }
    }

    /// Rows that are loaded, rejected or dropped.
    pub(crate) fn accounted(&self) -> i64 {
        self.run.rows_loaded + self.run.rows_rejected + self.run.rows_dropped
    }

    pub(crate) fn is_over(&self) -> bool {
        self.run.is_over()
    }

    /// So many rows came since the last look.
    pub(crate) fn now_at(&mut self, rows: i64, since: Duration) {
        self.rows_per_second_now = rate(rows, Some(since.as_secs_f64()));
    }
}

fn rate(rows: i64, seconds: Option<f64>) -> Option<f64> {
    let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate, rounded when shown")]
    let rows = rows as f64;
    Some((rows / seconds * 10.0).round() / 10.0)
}

/// `etl status RUN`.
pub(crate) fn status(status: &Status, json: bool) -> Result<(), Failure> {
    if json {
        print_json(status)
    } else {
        print(&lines(status))
    }
}

/// One look of `etl status RUN --watch`: in the place of the last one on a terminal.
pub(crate) fn watched(status: &Status, is_terminal: bool) -> Result<(), Failure> {
    let lines = lines(status);
    if is_terminal {
        // Home, and clear from there to the end: without a flicker.
        print(&format!("\x1b[H\x1b[J{lines}"))
    } else {
        print(&format!("{lines}\n"))
    }
}

fn lines(status: &Status) -> String {
    let run = &status.run;
    let parameters: Vec<_> = run
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let batches = match run.batches_expected {
        Some(expected) => format!("{} of {}", number(run.batches), number(expected.into())),
        None => format!("{}, of how many is not known yet", number(run.batches)),
    };
    let by = run
        .requested_by
        .as_ref()
        .map(|who| format!(" by {who}"))
        .unwrap_or_default();
    let mut lines = vec![
        (
            "run",
            format!(
                "{} (number {}, generation {})",
                run.run_id, run.run_no, run.generation
            ),
        ),
        ("job", format!("{} {}", run.job, parameters.join(" "))),
        ("target", format!("{} ({})", run.target_table, run.mode)),
        ("state", state(run)),
        ("requested", format!("{}{by}", run.requested_at)),
    ];
    lines.extend(replay(run));
    lines.extend([
        (
            "query",
            run.query_execution_id
                .clone()
                .unwrap_or_else(|| "not started".to_owned()),
        ),
        ("batches", batches),
        ("rows", sums(run)),
    ]);
    lines.extend(progress(status));
    lines.extend(remarks(status));
    lines.extend(waiting(status));
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name:>10}  {value}").trim_end().to_owned())
        .collect();
    lines.join("\n")
}

fn state(run: &Run) -> String {
    let what = match run.state.as_str() {
        "cancelled" => by_whom(run),
        "held" => format!(
            ": {}",
            run.held_because.as_deref().unwrap_or("no reason was given")
        ),
        _ => String::new(),
    };
    format!("{}{}{what}", run.state, took(run))
}

/// The replay that made the live generation.
fn replay(run: &Run) -> Vec<(&'static str, String)> {
    let Some(at) = &run.replayed_at else {
        return Vec::new();
    };
    let by = run.replayed_by.as_deref().unwrap_or("somebody");
    let what = match &run.replay_given_up {
        Some(why) => format!("; {why}"),
        None => String::new(),
    };
    vec![("replayed", format!("{at} by {by}{what}"))]
}

/// How much is under way, and how fast it goes.
fn progress(status: &Status) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if status.rows_in_flight > 0 {
        lines.push((
            "in flight",
            format!(
                "{} rows are extracted and not in the books yet",
                number(status.rows_in_flight)
            ),
        ));
    }
    let average = status.rows_per_second.filter(|rate| *rate > 0.0);
    if let Some(rate) = average {
        let now = status
            .rows_per_second_now
            .filter(|_| !status.is_over())
            .map(|rate| format!(", {} now", whole(rate)))
            .unwrap_or_default();
        lines.push(("rate", format!("{} rows a second{now}", whole(rate))));
    }
    lines
}

fn whole(rate: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "for a person")]
    number(rate.round() as i64)
}

/// What is only said of a run when there is something to say.
fn remarks(status: &Status) -> Vec<(&'static str, String)> {
    let run = &status.run;
    let mut lines = Vec::new();
    if let Some(bytes) = run.bytes_scanned {
        let cost = status
            .cost
            .zip(status.price)
            .map(|(cost, price)| format!(", about {} at {} a TB", money(cost), price.0));
        lines.push((
            "scanned",
            format!(
                "{}{}",
                HumanBytes(u64::try_from(bytes).unwrap_or(0)),
                cost.unwrap_or_default()
            ),
        ));
    }
    if let Some(published) = &run.published_at {
        lines.push(("published", published.clone()));
    }
    if let Some(failure) = &run.failure {
        lines.push(("failure", failure.clone()));
    }
    if run.dead_letters > 0 {
        lines.push((
            "stuck",
            format!(
                "{} (`etl dead list`)",
                counted(run.dead_letters, "dead letter")
            ),
        ));
    }
    if run.state == "held" {
        lines.push((
            "decide",
            format!(
                "`etl approve {id}` publishes it all the same, `etl discard {id} --why ...` gives it up",
                id = run.run_id
            ),
        ));
    }
    if run.late_messages > 0 {
        lines.push((
            "late",
            format!(
                "{} messages came after the run was over and changed nothing",
                number(run.late_messages)
            ),
        ));
    }
    for count in &status.rejects {
        let column = count.column_name.as_deref().unwrap_or("the row");
        lines.push((
            "rejected",
            format!("{} by {} of {column}", number(count.rows), count.rule),
        ));
    }
    lines.extend(status.drops.iter().map(|drop| ("dropped", dropped(drop))));
    lines
}

/// Whose decision it was, and why.
fn dropped(drop: &DroppedRows) -> String {
    let batches = match drop.batches {
        1 => "1 batch".to_owned(),
        many => format!("{} batches", number(many)),
    };
    format!(
        "{} of {batches} by {}: {}",
        counted(drop.rows, "row"),
        drop.dropped_by.as_deref().unwrap_or("somebody"),
        drop.reason.as_deref().unwrap_or("no reason was given")
    )
}

/// So that it cannot be read as nothing where it is not.
fn money(amount: f64) -> String {
    if amount < 1.0 {
        format!("{amount:.4}")
    } else {
        format!("{amount:.2}")
    }
}

/// What waits in the queues, of all runs.
fn waiting(status: &Status) -> Vec<(&'static str, String)> {
    if status.is_over() {
        return Vec::new();
    }
    let Some(queues) = &status.queues else {
        let why = status.broker.as_deref().unwrap_or("unknown");
        return vec![("queues", format!("cannot be seen: {why}"))];
    };
    queues
        .iter()
        .map(|depth| {
            let who = match depth.consumers {
                0 => "NOBODY takes them".to_owned(),
                1 => "1 consumer".to_owned(),
                many => format!("{many} consumers"),
            };
            (
                depth.queue,
                format!("{} waiting, {who}", number(depth.messages.into())),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

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
        Status::new(run, rejects, Vec::new(), queues, Price::per_tb(5.0))
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
    fn every_state_tells_what_there_is_to_tell() {
        let all: Vec<_> = samples::runs()
            .into_iter()
            .map(|run| lines(&status_of(run, Ok(queues()))))
            .collect();
        insta::assert_snapshot!(all.join("\n\n"));
    }

    #[test]
    fn without_the_broker_and_while_it_is_watched() {
        let mut status = status_of(
            samples::runs().swap_remove(1),
            Err("connecting to amqp://host/: connection refused".into()),
        );
        status.now_at(1_500, Duration::from_secs(1));
        insta::assert_snapshot!(lines(&status));
    }

    #[test]
    fn of_a_replay_its_own_time_and_what_became_of_it() {
        let given_up = Run {
            replay_given_up: Some("given up by ana: cancelled: the wrong job".into()),
            ..samples::replayed()
        };
        let shown: Vec<_> = [samples::replayed(), given_up]
            .into_iter()
            .map(|run| {
                lines(&Status::new(
                    run,
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
    fn of_dropped_rows_whose_decision_it_was_and_why() {
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
            Ok(queues()),
            None,
        );
        let shown = lines(&status);
        assert!(
            shown.ends_with("   dropped  1 row of 1 batch by ana: a test of Monday\n   dropped  83,760 rows of 39 batches by somebody: no reason was given"),
            "{shown}"
        );
    }

    #[test]
    fn as_json() {
        let status = status_of(samples::completed(), Ok(queues()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
    }

    #[test]
    fn athena_charges_for_ten_megabytes_at_least() {
        let price = Price::per_tb(5.0).unwrap();
        assert!((price.of(1) - 0.00005).abs() < 1e-9);
        assert!((price.of(2_000_000_000_000) - 10.0).abs() < 1e-9);
        assert!(Price::per_tb(-1.0).is_none() && Price::per_tb(f64::NAN).is_none());
    }
}
