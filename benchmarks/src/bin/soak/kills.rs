//! Kills one of eight processes at random by SIGKILL every few seconds, and restarts it after a moment.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use testkit::process::Process;
use tokio::time::sleep;

use crate::Soak;
use crate::metrics::{self, Counters};

/// The services, two of each.
const SERVICES: [&str; 6] = [
    "extractor",
    "extractor",
    "transformer",
    "transformer",
    "loader",
    "loader",
];

/// What happened to the processes.
#[derive(Default)]
pub(crate) struct Killed {
    /// Kills by service or server.
    pub(crate) kills: BTreeMap<&'static str, u32>,
    /// Processes that ended without being killed.
    pub(crate) unexpected_exits: Vec<String>,
    pub(crate) counters: Counters,
}

/// One replica, and its process at the moment.
struct Replica {
    service: &'static str,
    label: String,
    process: Process,
    seen: Counters,
}

/// Starts the services and kills until the time is over; then restarts what ends by itself until the last run has ended.
pub(crate) async fn kill(soak: &Soak) -> Killed {
    let mut dice = StdRng::seed_from_u64(soak.settings.seed);
    let mut killed = Killed::default();
    let mut replicas = start(soak).await;
    // A broker that is killed within half a second of a queue's declaration loses the queue: see `Broker::kill9`. So the
    // first kill waits until all queues exist.
    while Instant::now() < soak.until && !soak.over.load(Ordering::Relaxed) {
        watched_pause(
            soak,
            &mut replicas,
            &mut killed,
            Duration::from_secs_f64(soak.settings.pause * dice.random_range(0.5..1.5)),
        )
        .await;
        let away = Duration::from_millis(dice.random_range(100..2_000));
        let kind = match dice.random_range(0..SERVICES.len() + 2) {
            0 => {
                soak.say(&format!("kill broker, away for {away:?}"));
                soak.pipeline.vhost.broker.kill9().await;
                watched_pause(soak, &mut replicas, &mut killed, away).await;
                soak.pipeline.vhost.broker.restart().await;
                "broker"
            }
            1 => {
                soak.say(&format!("kill postgres, away for {away:?}"));
                soak.pipeline.database.server.kill9().await;
                watched_pause(soak, &mut replicas, &mut killed, away).await;
                soak.pipeline.database.server.restart().await;
                "postgres"
            }
            place => {
                let replica = &mut replicas[place - 2];
                soak.say(&format!("kill {}, away for {away:?}", replica.label));
                replica.read_counters().await;
                replica.process.kill9().await;
                replica.keep_records(soak, &mut killed);
                sleep(away).await;
                replica.process = soak.pipeline.service(replica.service).spawn();
                replica.service
            }
        };
        *killed.kills.entry(kind).or_default() += 1;
    }
    soak.say("no more kills");
    while !soak.over.load(Ordering::Relaxed) {
        watched_pause(soak, &mut replicas, &mut killed, Duration::from_secs(1)).await;
    }
    for replica in &mut replicas {
        replica.read_counters().await;
        replica.keep_records(soak, &mut killed);
    }
    killed
}

async fn start(soak: &Soak) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for (place, service) in SERVICES.into_iter().enumerate() {
        replicas.push(Replica {
            service,
            label: format!("{service}-{}", place % 2 + 1),
            process: soak.pipeline.service(service).spawn(),
            seen: Counters::new(),
        });
    }
    for replica in &mut replicas {
        replica.process.await_ready().await;
    }
    replicas
}

/// Waits, reads the counters, and restarts what ended by itself.
async fn watched_pause(
    soak: &Soak,
    replicas: &mut [Replica],
    killed: &mut Killed,
    pause: Duration,
) {
    let end = Instant::now() + pause;
    loop {
        for replica in replicas.iter_mut() {
            replica.read_counters().await;
            if replica.process.is_running() {
                continue;
            }
            let log = replica.process.log();
            let last: Vec<_> = log.lines().rev().take(3).collect();
            let what = format!("{} ended by itself: {}", replica.label, last.join(" / "));
            soak.say(&what);
            killed.unexpected_exits.push(what);
            replica.keep_records(soak, killed);
            replica.process = soak.pipeline.service(replica.service).spawn();
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        sleep(left.min(Duration::from_millis(500))).await;
    }
}

impl Replica {
    /// Reads its counters, if it answers.
    async fn read_counters(&mut self) {
        let reading = tokio::time::timeout(Duration::from_secs(1), metrics::of(&self.process));
        if let Ok(Some(counters)) = reading.await {
            self.seen = counters;
        }
    }

    /// Keeps the counters and the log of a process that has ended, or is about to.
    fn keep_records(&mut self, soak: &Soak, killed: &mut Killed) {
        metrics::add(&mut killed.counters, &std::mem::take(&mut self.seen));
        let path = soak.settings.dir.join(format!("{}.log", self.label));
        let mut file = OpenOptions::new().create(true).append(true).open(&path);
        let kept = file
            .as_mut()
            .map(|file| file.write_all(self.process.log().as_bytes()));
        if !matches!(kept, Ok(Ok(()))) {
            soak.say(&format!("cannot write to {}", path.display()));
        }
    }
}
