//! What depends on the number of rows, on replicas and on rules: a run of a hundred rows, one and two replicas of each
//! service in turns, a job whose rules are the work, and runs of growing size.

use serde_json::{Value, json};

use crate::meter::{median, rounded};
use crate::say;
use crate::settings::Settings;
use crate::world::World;

/// Rows of the small run.
const SMALL: u64 = 100;

/// A rule for each column, and patterns that have to be gone through to the end.
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

pub(crate) async fn small(world: &mut World, settings: &Settings) -> Value {
    world.replicas(1).await;
    world.job("small", SMALL, "");
    world.run("small").await;
    let (mut committed, mut followed) = (Vec::new(), Vec::new());
    for _ in 0..settings.repeats * 2 {
        let ran = world.run("small").await;
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
async fn timed(world: &mut World, job: &str, rows: u64, repeats: usize) -> f64 {
    let mut seconds = Vec::new();
    for _ in 0..repeats {
        world.afresh(job).await;
        seconds.push(world.run(job).await.committed);
        world.holds(job, rows).await;
    }
    median(&seconds)
}

/// Writes the job's result ahead, and makes its table.
async fn prepare(world: &mut World, job: &str, rows: u64, more: &str) {
    let result = world.job(job, rows, more);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().display().to_string();
    let object = format!("results/{job}.csv");
    world.write_csv(&result, &object, &path).await;
    let first = format!("first_{job}");
    let into = format!("table = \"{job}\"\n{more}");
    world.job_into(&first, SMALL, &into);
    world.run(&first).await;
}

/// A job by one replica of each service and by two, in turns.
async fn one_and_two(world: &mut World, job: &str, settings: &Settings, more: &str) -> Value {
    let rows = settings.stage_rows;
    world.replicas(1).await;
    prepare(world, job, rows, more).await;
    let mut ratios = Vec::new();
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..settings.repeats {
        world.replicas(1).await;
        one.push(timed(world, job, rows, 1).await);
        world.replicas(2).await;
        two.push(timed(world, job, rows, 1).await);
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

pub(crate) async fn replicas(world: &mut World, settings: &Settings) -> Value {
    one_and_two(world, "replicated", settings, "").await
}

pub(crate) async fn rules(world: &mut World, settings: &Settings) -> Value {
    one_and_two(world, "ruled", settings, RULES).await
}

/// Microseconds a row, with what a run of a hundred rows takes subtracted: that is paid once.
pub(crate) async fn run(world: &mut World, settings: &Settings) -> Value {
    world.replicas(1).await;
    prepare(world, "base", SMALL, "").await;
    let base = timed(world, "base", SMALL, settings.repeats).await;
    let mut measured = Vec::new();
    for rows in &settings.growth {
        let job = format!("grown_{rows}");
        prepare(world, &job, *rows, "").await;
        let repeats = if *rows > 2_000_000 {
            settings.repeats.min(3)
        } else {
            settings.repeats
        };
        let seconds = timed(world, &job, *rows, repeats).await;
        world.execute(&format!("DROP TABLE {job}")).await;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let micros = rounded((seconds - base) * 1e6 / *rows as f64);
        say(&format!("{rows} rows: {seconds} s, {micros} us a row"));
        measured.push(json!({ "rows": rows, "seconds": seconds, "micros_a_row": micros }));
    }
    json!({ "base": base, "measured": measured, "peak_mib": world.peaks() })
}
