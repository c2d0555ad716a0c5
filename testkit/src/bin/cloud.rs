//! The emulator of Athena and S3 as a program, for experiments with single services: every query succeeds with the same
//! click-stream.
//!
//! `cloud [ROWS] [ADDRESS]`: a million rows on a free port of 127.0.0.1 by default. Prints its URL and serves until it is
//! interrupted.

use anyhow::{Context as _, Result};
use testkit::cloud::{Answer, Cloud, sample};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rows = arguments.next().map_or(Ok(1_000_000), |rows| rows.parse());
    let rows = rows.context("the first argument must be the number of rows, such as 1000000")?;
    let cloud =
        Cloud::start_at(&arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned())).await;
    cloud.otherwise(Answer::rows(sample::clicks(rows)));
    #[expect(clippy::print_stdout, reason = "the URL is the output of this program")]
    {
        println!("{}", cloud.url());
    }
    tokio::signal::ctrl_c()
        .await
        .context("waiting for the end")?;
    Ok(())
}
