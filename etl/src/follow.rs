//! Follows a run until nothing more happens by itself, however long PostgreSQL is away meanwhile.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::Failure;
use ledger::{Class, Run, Store, classify};

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The pause before another try while PostgreSQL is away.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);

/// How following ended.
pub struct End {
    /// As it was seen last: over or waiting for a person (held or blocked), unless the time was over first.
    pub run: Run,
    /// The time after which following ended, although the run goes on.
    pub timed_out: Option<Duration>,
}

impl End {
    /// Whether the run ended and is complete.
    pub fn is_complete(&self) -> bool {
        self.timed_out.is_none() && is_complete(&self.run)
    }
}

/// Whether every row of the run is accounted for, and not all of them were rejected unless the job allows it.
pub fn is_complete(run: &Run) -> bool {
    run.is_complete() && !run.loaded_nothing()
}

/// What is seen while a run is followed.
pub enum Seen<'a> {
    Run(&'a Run),
    /// A note for the user.
    Note(String),
}

/// Follows a run until it is over or waits for a person, for at most `limit`. Each state of it goes to `look`.
pub async fn to_the_end(
    store: &Store,
    name: &str,
    limit: Option<Duration>,
    mut look: impl FnMut(Seen<'_>),
) -> Result<End, Failure> {
    let started = Instant::now();
    let until = limit.and_then(|limit| started.checked_add(limit));
    loop {
        let read = async || Ok(store.exactly(name).await?);
        let note = |note| look(Seen::Note(note));
        let run = patiently(&format!("the run {name} goes on"), until, note, read).await?;
        look(Seen::Run(&run));
        let is_still = run.state.is_over() || run.waits_for_a_person();
        let timed_out = limit.filter(|limit| !is_still && started.elapsed() >= *limit);
        if is_still || timed_out.is_some() {
            return Ok(End { run, timed_out });
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns when the process is asked to end: by Ctrl-C, or by SIGTERM as from a scheduler.
pub async fn interrupted() -> Result<(), Failure> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        pressed = ctrl_c() => Ok(pressed.context("cannot listen for an interrupt")?),
        _ = terminated.recv() => Ok(()),
    }
}

/// Reads the ledger for a command that only waits: while PostgreSQL is away it tries again, up to a moment, and says so once.
/// `meanwhile` says what goes on.
pub async fn patiently<T>(
    meanwhile: &str,
    until: Option<Instant>,
    mut note: impl FnMut(String),
    mut read: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut is_told = false;
    loop {
        match read().await {
            Err(failure)
                if is_away(&failure) && until.is_none_or(|until| Instant::now() < until) =>
            {
                if !is_told {
                    let why = failure.paragraph();
                    note(format!("{why}; {meanwhile}, and this command tries again"));
                }
                is_told = true;
                sleep(AWAY_INTERVAL).await;
            }
            answer => {
                if is_told && answer.is_ok() {
                    note("PostgreSQL answers again".to_owned());
                }
                return answer;
            }
        }
    }
}

/// Whether PostgreSQL is at fault, and not what it was asked.
fn is_away(failure: &Failure) -> bool {
    let (Failure::Usage(error) | Failure::Failed(error)) = failure;
    let Some(ledger::Error::Postgres { source, .. }) = error.downcast_ref() else {
        return false;
    };
    matches!(classify(source), Class::World | Class::Conflict)
}
