//! The checks at the end. Each is a sentence, with the problem where it does not hold.

use std::collections::BTreeMap;
use std::time::Duration;

use common::message::QueueName;
use tokio::time::{Instant, sleep};

use crate::Soak;
use crate::kills::Killed;
use crate::runs::Run;
use crate::source::{self, Mode, Sum};

/// One sentence that has to be true.
pub(crate) struct Check {
    pub(crate) sentence: &'static str,
    pub(crate) problem: Option<String>,
}

/// Makes all checks.
pub(crate) async fn all(soak: &Soak, runs: &[Run], killed: &Killed) -> Vec<Check> {
    let check = |sentence, problems: Vec<String>| Check {
        sentence,
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    };
    let ended = runs
        .iter()
        .filter_map(|run| Some(format!("{}: {}", run.id, run.problem.as_ref()?)))
        .collect();
    vec![
        check("every run completed", ended),
        check(
            "`etl reconcile` exits with 0 for every run",
            reconciled(soak, runs).await,
        ),
        check(
            "the tables equal the source, row for row",
            tables(soak, runs).await,
        ),
        check("each run started one query", one_query_each(soak, runs)),
        check("`etl.dead_letters` is empty", dead_letters(soak).await),
        check("the queues are empty", left_in_queues(soak).await),
        check(
            "no process ended by itself",
            killed.unexpected_exits.clone(),
        ),
    ]
}

async fn reconciled(soak: &Soak, runs: &[Run]) -> Vec<String> {
    let mut problems = Vec::new();
    for run in runs {
        let done = soak.pipeline.etl(&["reconcile", &run.id]).await;
        if done.code != Some(0) {
            problems.push(format!("{}: {}{}", run.id, done.stdout, done.stderr));
        }
    }
    problems
}

/// Appended rows are those of each run; upserted ones those of the last run alone.
async fn tables(soak: &Soak, runs: &[Run]) -> Vec<String> {
    let mut problems = Vec::new();
    for mode in [Mode::Append, Mode::Upsert] {
        let of_mode = runs.iter().filter(|run| run.mode == mode);
        let wanted: BTreeMap<i64, Sum> = of_mode
            .map(|run| (run.status["run_no"].as_i64().unwrap_or(-1), run.source))
            .collect();
        let wanted = match mode {
            Mode::Append => wanted,
            Mode::Upsert => wanted.into_iter().next_back().into_iter().collect(),
        };
        if wanted.is_empty() {
            continue;
        }
        match source::loaded(&soak.pipeline, mode).await {
            Ok(found) => {
                let found: BTreeMap<i64, Sum> = found.into_iter().collect();
                if found != wanted {
                    problems.push(format!(
                        "{}: {found:?} where the source has {wanted:?}",
                        source::table(mode)
                    ));
                }
            }
            Err(error) => problems.push(format!("{}: {error}", source::table(mode))),
        }
    }
    problems
}

fn one_query_each(soak: &Soak, runs: &[Run]) -> Vec<String> {
    let started = soak.pipeline.cloud.started().len();
    if started == runs.len() {
        Vec::new()
    } else {
        vec![format!("{started} queries for {} runs", runs.len())]
    }
}

async fn dead_letters(soak: &Soak) -> Vec<String> {
    let sql = "SELECT stage || ': ' || coalesce(message_id, '?') || ': ' || reason FROM etl.dead_letters ORDER BY id LIMIT 10";
    let found: sqlx::Result<Vec<String>> = sqlx::query_scalar(sql)
        .fetch_all(&soak.pipeline.database.pool)
        .await;
    found.unwrap_or_else(|error| vec![error.to_string()])
}

/// Waits for the last acks and for events that change nothing.
async fn left_in_queues(soak: &Soak) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut left = Vec::new();
        let all = QueueName::WORK.into_iter().chain([QueueName::Dead]);
        for queue in all.map(QueueName::name) {
            let depth = soak.pipeline.vhost.depth(queue).await;
            if depth.ready + depth.unacked > 0 {
                left.push(format!("{queue}: {depth:?}"));
            }
        }
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        sleep(Duration::from_millis(500)).await;
    }
}
