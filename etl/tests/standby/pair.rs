//! A primary, its standby, and a pipeline that knows both.

use std::time::Instant;

use testkit::pipeline::Pipeline;
use testkit::process::Process;
use testkit::servers::{Postgres, private_postgres};
use testkit::{TIMEOUT, wait_until};

pub(crate) struct Pair {
    pub(crate) primary: Postgres,
    pub(crate) standby: Postgres,
    /// Its database is that of the primary, and that of the standby after [`Self::promote`]; its URL has both hosts.
    pub(crate) pipeline: Pipeline,
}

impl Pair {
    /// Both servers and a pipeline without services.
    pub(crate) async fn start() -> Self {
        let primary = private_postgres().await;
        let database = primary.database().await;
        let standby = primary.standby().await;
        let mut pipeline = Pipeline::on_database(database).await;
        pipeline.database.url = both(
            &pipeline.database.url,
            &standby.copy_of(&pipeline.database).url,
        );
        Self {
            primary,
            standby,
            pipeline,
        }
    }

    /// Starts a replica of a service.
    pub(crate) async fn service(&mut self, name: &str) {
        let service = self.pipeline.service(name).start().await;
        self.pipeline.services.push(service);
    }

    /// Promotes the standby. The pipeline's own queries go there.
    pub(crate) async fn promote(&mut self) {
        self.standby.promote().await;
        let mut database = self.standby.copy_of(&self.pipeline.database);
        database.url.clone_from(&self.pipeline.database.url);
        self.pipeline.database = database;
    }

    /// Requests a run and does not wait for it.
    pub(crate) async fn request(&self, job: &str, run: &str) {
        let done = self
            .pipeline
            .etl(&["run", job, "--run-id", run, "--again"])
            .await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }

    /// Waits until so many batches of a run are in the ledger.
    pub(crate) async fn until_loaded(&self, run: &str, batches: i64) {
        let sql = format!("SELECT count(*) FROM etl.batches WHERE run_id = '{run}'");
        let what = format!("{batches} batches of {run}");
        wait_until(&what, TIMEOUT, async || {
            self.pipeline.number(&sql).await >= batches
        })
        .await;
    }

    /// Waits until a run is completed, and proves it.
    pub(crate) async fn assert_complete(&self, run: &str) {
        let sql =
            format!("SELECT count(*) FROM etl.runs WHERE run_id = '{run}' AND state = 'completed'");
        let what = format!("{run} to be completed");
        wait_until(&what, TIMEOUT, async || {
            self.pipeline.number(&sql).await == 1
        })
        .await;
        self.pipeline.assert_reconciled(run).await;
    }

    /// The rows of a table, and how many of them differ in their url, which has the row's number.
    pub(crate) async fn assert_rows(&self, table: &str, rows: u64) {
        let count = self
            .pipeline
            .number(&format!("SELECT count(*) FROM {table}"))
            .await;
        let distinct = format!("SELECT count(DISTINCT url) FROM {table}");
        let distinct = self.pipeline.number(&distinct).await;
        let rows = i64::try_from(rows).unwrap();
        assert_eq!((count, distinct), (rows, rows), "{table}");
    }

    pub(crate) async fn assert_no_dead_letters(&self) {
        let reasons = self.pipeline.table("reason", "etl.dead_letters").await;
        assert_eq!(reasons, Vec::<String>::new());
    }
}

/// A URL with the hosts of both.
pub(crate) fn both(one: &str, other: &str) -> String {
    let mut one = url::Url::parse(one).unwrap();
    let other = url::Url::parse(other).unwrap();
    let host = |url: &url::Url| format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let (first, second) = (host(&one), host(&other));
    one.set_port(None).unwrap();
    one.set_host(Some("several")).unwrap();
    one.as_str()
        .replace("several", &format!("{first},{second}"))
}

/// Waits until a service says on `/readyz` that it works.
pub(crate) async fn await_ready(service: &Process) {
    wait_until("the service to be ready", TIMEOUT, async || {
        matches!(service.readiness().await, Some((true, _)))
    })
    .await;
}

/// Prints how long something took.
#[expect(clippy::print_stderr, reason = "the times are for the documentation")]
pub(crate) fn took(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}
