//! `etl status --watch`: the run again every second, until it is over.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::price::Price;
use super::sheet::lines;
use super::{accounted, plan, rate};
use crate::Failure;
use crate::follow::{self, patiently};
use crate::output::{note, print};
use ledger::Store;

/// The time between two looks at a watched run.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the run until it is over: whether it is complete then.
pub(super) async fn watch(store: &Store, run: &str, price: Option<Price>) -> Result<bool, Failure> {
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
            return Ok(follow::is_complete(&status.run));
        }
        sleep(POLL_INTERVAL).await;
    }
}
