//! A run with everything around it, for people.

use common::message::QueryEnd;
use indicatif::HumanBytes;

use super::Status;
use crate::channels;
use crate::output::phase::{self, whole};
use crate::output::run::{NO_REASON, by_whom, choice, removed_columns, sums, took};
use crate::output::{self, Sheet, Terminal, by, counted, number};
use ledger::{Attempt, Parked, Query, Run, RunState};

/// The status of a run, a line a fact.
pub(super) fn lines(status: &Status, terminal: Terminal) -> String {
    let run = &status.run;
    let batches = match run.batches_expected {
        Some(expected) => format!("{} of {}", number(run.batches), number(expected.into())),
        None => format!("{}, the total is not known yet", number(run.batches)),
    };
    let numbers = format!("(number {}, generation {})", run.run_no, run.generation);
    let requested_by = by(run.requested_by.as_ref());
    let query = run.query_execution_id.as_deref().unwrap_or("not started");
    let principal = status
        .queries
        .iter()
        .rev()
        .find_map(|query| query.principal.as_deref());
    let principal = principal.map(|principal| format!(" as {principal}"));
    let queues = if run.state.is_over() {
        None
    } else {
        status.queues.as_ref()
    };
    let longest = queues.into_iter().flatten().map(|depth| depth.queue.len());
    let mut sheet = Sheet::new(longest.max().unwrap_or_default().max(10));
    sheet.add("run", format!("{} {numbers}", run.run_id));
    sheet.add("job", output::job(&run.job, &run.parameters));
    sheet.add("target", format!("{} ({})", run.target_table, run.mode));
    sheet.add("state", state(run, terminal));
    if matches!(run.state, RunState::Requested | RunState::Running) {
        sheet.add("phase", phase::line(run, status.rows_per_second_now));
    }
    sheet.add("requested", format!("{}{requested_by}", run.requested_at));
    for attempt in &status.attempts {
        sheet.add("before", former(attempt));
    }
    sheet.add_if("replayed", replay(run));
    sheet.add_if("watermark", watermark(run));
    sheet.add("query", format!("{query}{}", principal.unwrap_or_default()));
    sheet.add("batches", batches);
    sheet.add("rows", sums(run));
    add_progress(&mut sheet, status);
    add_remarks(&mut sheet, run);
    add_rejects_and_drops(&mut sheet, status);
    for parked in &status.parked {
        sheet.add("parked", waiting(parked));
    }
    for unsent in &status.unsent {
        sheet.add("notify", channels::waiting(unsent));
    }
    if !run.state.is_over() {
        sheet.add_if("blocked", status.lost.as_ref());
        add_queues(&mut sheet, status);
    }
    sheet.text()
}

fn state(run: &Run, terminal: Terminal) -> String {
    let what = match run.state {
        RunState::Cancelled => by_whom(run),
        RunState::Held => format!(": {}", run.held_because.as_deref().unwrap_or(NO_REASON)),
        _ => String::new(),
    };
    let name = terminal.state(run.state.name());
    format!("{name}{}{what}", took(run))
}

/// What a run reads on from, and up to where.
fn watermark(run: &Run) -> Option<String> {
    let from = run.watermark_from.as_ref()?;
    let to = run
        .watermark_to
        .as_ref()
        .filter(|_| !run.has_failed())
        .map(|to| format!(", the next run from {to}"));
    Some(format!("from {from}{}", to.unwrap_or_default()))
}

/// A former attempt, and why it ended.
fn former(attempt: &Attempt) -> String {
    let Attempt {
        run_no,
        state,
        requested_at,
        ..
    } = attempt;
    let why = match (&attempt.failure, &attempt.decided_by) {
        (Some(failure), _) => format!(": {failure}"),
        (None, Some(by)) => format!(" by {by}"),
        (None, None) => String::new(),
    };
    format!("{requested_at} (number {run_no}) {state}{why}")
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
        sheet.add("rate", format!("{} rows a second", whole(rate)));
    }
    if let Some(bytes) = status.run.bytes_scanned {
        let cost = status.cost.zip(status.price);
        let cost = cost.map(|(cost, price)| format!(", about {} at {} a TB", money(cost), price.0));
        let bytes = HumanBytes(u64::try_from(bytes).unwrap_or(0));
        let queries = queries(&status.queries);
        sheet.add(
            "scanned",
            format!("{bytes}{queries}{}", cost.unwrap_or_default()),
        );
    }
}

/// What became of the queries, unless there was one that succeeded.
fn queries(queries: &[Query]) -> String {
    let ended = |state: QueryEnd| {
        let count = queries.iter().filter(|query| query.state == state.name());
        let count = count.count();
        (count > 0).then(|| format!("{count} {}", state.name()))
    };
    let ends: Vec<_> = [QueryEnd::Failed, QueryEnd::Stopped]
        .into_iter()
        .filter_map(ended)
        .collect();
    let reused = queries.iter().any(|query| query.reused);
    let reused = reused.then_some(" (an earlier result was reused)");
    let many = (queries.len() > 1).then(|| format!(" by {} queries", queries.len()));
    let ends = match ends.as_slice() {
        [] => String::new(),
        ends => format!(" ({})", ends.join(", ")),
    };
    format!(
        "{}{ends}{}",
        many.unwrap_or_default(),
        reused.unwrap_or_default()
    )
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
    sheet.add_if("columns", removed_columns(run));
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
pub fn waiting(parked: &Parked) -> String {
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
    use super::super::{Price, rate};
    use super::*;
    use crate::broker::Depth;
    use crate::output::samples;
    use ledger::{DroppedRows, RejectCount};

    const PLAIN: Terminal = Terminal {
        width: None,
        has_colours: false,
    };

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
        let asked = Vec::from_iter(run.bytes_scanned.map(|_| samples::query()));
        Status::new(
            run,
            asked,
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
            .map(|run| lines(&status_of(run, Ok(queues())), PLAIN))
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
        insta::assert_snapshot!(lines(&status, PLAIN));
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
                let none = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
                let status = Status::new(run, none.0, none.1, none.2, none.3, Ok(queues()), None);
                lines(&status, PLAIN)
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
            vec![],
            drops.into(),
            vec![],
            Ok(queues()),
            None,
        );
        let shown = lines(&status, PLAIN);
        assert!(
            shown.ends_with("   dropped  1 row of 1 batch by ana: a test of Monday\n   dropped  83,760 rows of 39 batches by unknown user: no reason is recorded"),
            "{shown}"
        );
    }

    #[test]
    fn queries_are_counted_by_their_ends() {
        let query = |state: &str| Query {
            state: state.into(),
            ..samples::query()
        };
        assert_eq!(queries(&[]), "");
        assert_eq!(queries(&[query("succeeded")]), "");
        assert_eq!(queries(&[query("stopped")]), " (1 stopped)");
        let all = ["failed", "failed", "succeeded"].map(query);
        assert_eq!(queries(&all), " by 3 queries (2 failed)");
        let reused = Query {
            reused: true,
            ..query("succeeded")
        };
        assert_eq!(queries(&[reused]), " (an earlier result was reused)");
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
}
