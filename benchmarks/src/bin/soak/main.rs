//! `make soak`: the pipeline under kill -9. Two replicas of each service load a million rows again and again, by append and
//! by upsert, from S3 and from pages, while a random service, the broker or Postgres is killed every few seconds and
//! restarted. In the end every run must be complete and balanced, the tables must equal the source row for row, and no
//! message may be left.
//!
//! The exit code is 0 only if all of that holds. `SOAK_MINUTES` (10), `SOAK_ROWS` (1000000), `SOAK_LANES` (2: runs that
//! are under way at once), `SOAK_PAUSE` (3: seconds from one kill to the next, by half more or less), `SOAK_SEED` (random;
//! it is printed) and `SOAK_DIR` (`.local/soak`, for the services' logs and the report) are its settings. Runs below
//! `deploy/local/with-servers`, which ends servers that a killed soak leaves behind.

mod check;
mod kills;
mod metrics;
mod report;
mod runs;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use testkit::cloud::Cloud;
use testkit::pipeline::Pipeline;
use testkit::servers::{private_broker, private_postgres};

/// The settings, from the environment.
struct Settings {
    minutes: f64,
    rows: u64,
    /// How many runs are under way at once.
    lanes: u32,
    /// Seconds from one kill to the next, about.
    pause: f64,
    seed: u64,
    dir: PathBuf,
}

/// What the two halves of a soak share: the one that kills processes and the one that requests runs.
struct Soak {
    settings: Settings,
    pipeline: Pipeline,
    begun: Instant,
    /// When the kills end; no run is requested after it.
    until: Instant,
    /// Whether a run has failed; no run is requested after it.
    failed: AtomicBool,
    /// Whether the last run has ended.
    over: AtomicBool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let soak = Soak::start(Settings::read()).await;
    soak.say(&format!(
        "seed {}, {} rows a run, {} minutes",
        soak.settings.seed, soak.settings.rows, soak.settings.minutes
    ));
    let (runs, killed) = tokio::join!(runs::run(&soak), kills::kill(&soak));
    let killing = soak.begun.elapsed();
    let checks = check::all(&soak, &runs, &killed).await;
    let text = report::write(&soak, &runs, &killed, &checks, killing).await;
    show(&text);
    if checks.iter().all(|check| check.problem.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the report is the output of this program"
)]
fn show(report: &str) {
    println!("{report}");
}

impl Settings {
    fn read() -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let dir: PathBuf = variable("SOAK_DIR")
            .unwrap_or_else(|| ".local/soak".to_owned())
            .into();
        std::fs::create_dir_all(&dir)
            .unwrap_or_else(|e| panic!("cannot make the folder {}: {e}", dir.display()));
        Self {
            minutes: number("SOAK_MINUTES", 10.0),
            rows: number("SOAK_ROWS", 1_000_000),
            lanes: number("SOAK_LANES", 2),
            pause: number("SOAK_PAUSE", 3.0),
            seed: number("SOAK_SEED", u64::from(since.subsec_micros())),
            dir,
        }
    }
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    variable(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number"))
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the settings of this program, which is no service"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

impl Soak {
    async fn start(settings: Settings) -> Self {
        let (cloud, broker, postgres) =
            tokio::join!(Cloud::start(), private_broker(), private_postgres());
        let (vhost, database) = tokio::join!(broker.vhost(), postgres.database());
        let pipeline = Pipeline {
            cloud,
            vhost,
            database,
            jobs: tempfile::tempdir().expect("a temporary folder for jobs"),
            services: Vec::new(),
            archive: None,
        };
        source::write_jobs(&pipeline);
        let begun = Instant::now();
        let until = begun + Duration::from_secs_f64(settings.minutes * 60.0);
        Self {
            settings,
            pipeline,
            begun,
            until,
            failed: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Prints a line of progress on standard error.
    #[expect(
        clippy::print_stderr,
        reason = "a program of many minutes reports its progress"
    )]
    fn say(&self, text: &str) {
        eprintln!("soak {:6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }
}
