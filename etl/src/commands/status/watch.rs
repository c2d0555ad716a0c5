//! `etl status --watch`: one run, or a table of several, again every second until all of them are over.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::plan;
use super::price::Price;
use super::several::Several;
use super::sheet::lines;
use crate::Failure;
use crate::broker;
use crate::follow::{self, patiently};
use crate::output::phase::{Pace, Phase, accounted};
use crate::output::progress::Lines;
use crate::output::{Terminal, note, print};
use crate::select::{self, Which};
use ledger::{RunFilter, Store};

/// The time between two looks.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Shows runs until they are over: whether all of them are complete then.
pub(super) async fn watch(
    store: &Store,
    which: &Which,
    price: Option<Price>,
) -> Result<bool, Failure> {
    if !which.is_one() {
        return several(store, which).await;
    }
    let among = RunFilter::default();
    let found = which.found(store, among).await?.pop();
    one(store, &found.ok_or_else(select::none)?.run_id, price).await
}

async fn one(store: &Store, run: &str, price: Option<Price>) -> Result<bool, Failure> {
    let (mut screen, mut pace) = (Screen::default(), Pace::default());
    let meanwhile = format!("the run {run} goes on");
    loop {
        let read = async || plan(store, run, price, broker::depths().await).await;
        let mut status = patiently(&meanwhile, None, |said| note(&said), read).await?;
        status.rows_per_second_now = pace.seen(Instant::now(), accounted(&status.run));
        let phase = Phase::of(&status.run).name();
        screen.show(phase, &lines(&status, Terminal::of_stdout()))?;
        if status.run.state.is_over() {
            return Ok(follow::is_complete(&status.run));
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn several(store: &Store, which: &Which) -> Result<bool, Failure> {
    let (mut screen, mut several) = (Screen::default(), Several::default());
    loop {
        let mut names = several.names();
        let read = async || {
            if which.runs.is_empty() || names.is_empty() {
                let found = which.found(store, select::open()).await?;
                names.extend(found.into_iter().map(|run| run.run_id));
            }
            Ok(store.named(&names).await?)
        };
        let runs = patiently("the runs go on", None, |said| note(&said), read).await?;
        several.look(runs.into_values(), Instant::now());
        screen.show(&several.phases(), &several.text(Terminal::of_stdout()))?;
        if several.are_over() {
            return Ok(several.are_complete());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Where the same text is shown again: in its place on a terminal, and less and less often elsewhere.
#[derive(Default)]
struct Screen(Lines);

impl Screen {
    fn show(&mut self, phase: &str, text: &str) -> Result<(), Failure> {
        if stdout().is_terminal() {
            // Home, and clear from there to the end: without a flicker.
            return print(&format!("\x1b[H\x1b[J{text}"));
        }
        if self.0.is_due(phase, text, Instant::now()) {
            print(&format!("{text}\n"))?;
        }
        Ok(())
    }
}
