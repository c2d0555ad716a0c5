//! The effect of the number of rows, of replicas and of rules: a run of a hundred rows, one and two replicas of each service in
//! turns, a job with expensive rules, and runs of growing size.

use serde_json::{Value, json};

use crate::environment::Environment;
use crate::meter::{median, rounded};
use crate::say;
use crate::settings::Settings;

/// Rows of the small run.
const SMALL: u64 = 100;

/// Rules for each column, and patterns that match to the end.
const RULES: &str = r#"
[[columns]]
source = "dt"
rules = [{ required = true }, { min = "2018-04-01" }, { max = "2018-04-30" }]
[[columns]]
source = "country"
rules = [{ pattern = "([A-Z]{2})?" }, { none_of = ["A1", "A2"] }]
[[columns]]
source = "url"
rules = [{ required = true }, { not_empty = true }, { max_length = 200 },
         { pattern = "https?://([a-z0-9-]+[.])+[a-z]+(/[^/?]*)*([?]([^=&]+=[^&]*&?)*)?" }]
[[columns]]
source = "visits"
rules = [{ required = true }, { min = 1 }, { max = 9999 }]
[[columns]]
source = "seconds"
rules = [{ min = 0 }, { max = 999.9 }]
[[columns]]
source = "seen_at"
rules = [{ required = true }, { min = "2018-04-01 00:00:00" }]
"#;

pub(crate) async fn small(environment: &mut Environment, settings: &Settings) -> Value {
    environment.replicas(1).await;
    environment.job("small", SMALL, "");
    environment.run("small").await;
    let (mut committed, mut followed) = (Vec::new(), Vec::new());
    for _ in 0..settings.repeats * 2 {
        let ran = environment.run("small").await;
        committed.push(ran.committed);
        followed.push(ran.followed);
    }
    let (commit, done) = (median(&committed), median(&followed));
    say(&format!(
        "{SMALL} rows: committed after {commit} s, done after {done} s"
    ));
    json!({ "rows": SMALL, "committed": commit, "done": done, "seconds": followed })
}

/// Median seconds of a job, its table empty each time.
async fn timed(environment: &mut Environment, job: &str, rows: u64, repeats: usize) -> f64 {
    let mut seconds = Vec::new();
    for _ in 0..repeats {
        environment.afresh(job).await;
        seconds.push(environment.run(job).await.committed);
        environment.holds(job, rows).await;
    }
    median(&seconds)
}

/// Writes the job's result in advance, and creates its table.
async fn prepare(environment: &mut Environment, job: &str, rows: u64, more: &str) {
    let result = environment.job(job, rows, more);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().display().to_string();
    let object = format!("results/{job}.csv");
    environment.write_csv(&result, &object, &path).await;
    let first = format!("first_{job}");
    let into = format!("table = \"{job}\"\n{more}");
    environment.job_into(&first, SMALL, &into);
    environment.run(&first).await;
}

/// A job by one replica of each service and by two, in turns.
async fn one_and_two(
    environment: &mut Environment,
    job: &str,
    settings: &Settings,
    more: &str,
) -> Value {
    let rows = settings.stage_rows;
    environment.replicas(1).await;
    prepare(environment, job, rows, more).await;
    let mut ratios = Vec::new();
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..settings.repeats {
        environment.replicas(1).await;
        one.push(timed(environment, job, rows, 1).await);
        environment.replicas(2).await;
        two.push(timed(environment, job, rows, 1).await);
        ratios.push(rounded(one[one.len() - 1] / two[two.len() - 1]));
    }
    let speed = median(&ratios);
    say(&format!(
        "{job}: two replicas of each have {speed} of the speed of one"
    ));
    json!({
        "rows": rows, "one": median(&one), "two": median(&two), "speed_of_two": speed, "ratios": ratios,
    })
}

pub(crate) async fn replicas(environment: &mut Environment, settings: &Settings) -> Value {
    one_and_two(environment, "replicated", settings, "").await
}

pub(crate) async fn rules(environment: &mut Environment, settings: &Settings) -> Value {
    one_and_two(environment, "ruled", settings, RULES).await
}

/// Microseconds per row, minus the time of a run of a hundred rows, which is paid once.
pub(crate) async fn run(environment: &mut Environment, settings: &Settings) -> Value {
    environment.replicas(1).await;
    prepare(environment, "base", SMALL, "").await;
    let base = timed(environment, "base", SMALL, settings.repeats).await;
    let mut measured = Vec::new();
    for rows in &settings.growth {
        let job = format!("grown_{rows}");
        prepare(environment, &job, *rows, "").await;
        let repeats = if *rows > 2_000_000 {
            settings.repeats.min(3)
        } else {
            settings.repeats
        };
        let seconds = timed(environment, &job, *rows, repeats).await;
        environment.execute(&format!("DROP TABLE {job}")).await;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let micros = rounded((seconds - base) * 1e6 / *rows as f64);
        say(&format!("{rows} rows: {seconds} s, {micros} us a row"));
        measured.push(json!({ "rows": rows, "seconds": seconds, "micros_a_row": micros }));
    }
    json!({ "base": base, "measured": measured, "peak_mib": environment.peaks() })
}
