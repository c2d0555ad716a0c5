//! Postgres answers and cannot write, to anything (it has no free connection) or to one target. The loader or `etl status`
//! says why, nothing is dead-lettered, and the run completes by itself.

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::{Process, Signal};
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"clicks\"\n";

/// A pipeline, its loader, and the loader's role: many restrictions do not apply to a superuser.
pub(crate) async fn pipeline() -> (Pipeline, Process, String) {
    let mut pipeline = Pipeline::without_services().await;
    let role = format!("{}_loader", pipeline.database.name);
    execute(
        &pipeline,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret'; ALTER DATABASE {} OWNER TO {role}",
            pipeline.database.name
        ),
    )
    .await;
    let mut url = url::Url::parse(&pipeline.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("secret")).unwrap();
    let loader = pipeline
        .service("loader")
        .env("ETL_DATABASE_URL", url.as_str())
        .start()
        .await;
    for name in ["transformer", "extractor"] {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    pipeline.run("clicks", "before").await;
    (pipeline, loader, role)
}

pub(crate) async fn execute(pipeline: &Pipeline, sql: &str) {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&pipeline.database.pool)
        .await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Takes the privileges on a job's target from the loader's role once a run is requested: a request is refused without them.
pub(crate) async fn lose_privilege(pipeline: &Pipeline, role: &str, job: &str, run: &str) {
    // No batch reaches the loader before.
    let transformer = &pipeline.services[0];
    transformer.signal(Signal::STOP);
    let asked = pipeline
        .etl(&["run", job, "--run-id", run, "--again"])
        .await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    execute(
        pipeline,
        &format!(
            "ALTER TABLE public.{job} OWNER TO CURRENT_USER; REVOKE ALL ON public.{job} FROM {role}"
        ),
    )
    .await;
    transformer.signal(Signal::CONT);
}

/// Who says why a run waits.
enum Says {
    /// `/readyz`: the loader can do nothing.
    Loader,
    /// `etl status`: the batches of the run are parked, and the loader is ready.
    Status,
}

/// Requests a run that is blocked, checks who says why, executes `fix`, and checks that the run completes.
async fn assert_waits(pipeline: &Pipeline, loader: &Process, says: Says, why: &[&str], fix: &str) {
    let asked = pipeline
        .etl(&["run", "clicks", "--run-id", "meanwhile", "--again"])
        .await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until(
        &format!("somebody to speak of {why:?}"),
        TIMEOUT,
        async || {
            let says_it = |text: &str| why.iter().all(|word| text.contains(word));
            match (&says, loader.readiness().await) {
                (Says::Loader, Some((false, text))) => says_it(&text),
                (Says::Status, Some((true, _))) => {
                    says_it(&pipeline.etl(&["status", "meanwhile"]).await.stdout)
                }
                _ => false,
            }
        },
    )
    .await;
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.batches WHERE run_id = 'meanwhile'")
            .await,
        0
    );
    execute(pipeline, fix).await;
    let run = pipeline.run("clicks", "meanwhile").await;
    assert_eq!(run["rows_loaded"], 20_000, "{run}");
    pipeline.assert_reconciled("meanwhile").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 40_000);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
    wait_until("the loader to be ready", TIMEOUT, async || {
        matches!(loader.readiness().await, Some((true, _)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_waits_while_its_target_has_no_space() {
    let (pipeline, loader, _) = pipeline().await;
    // The error of Postgres when it cannot write. Filling a real disk would need a privileged machine.
    execute(
        &pipeline,
        "CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
         CREATE TRIGGER full_disk BEFORE INSERT ON public.clicks EXECUTE FUNCTION public.full_disk()",
    )
    .await;
    assert_waits(
        &pipeline,
        &loader,
        Says::Status,
        &["No space left", "free disk space"],
        "DROP TRIGGER full_disk ON public.clicks",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loader_waits_for_a_free_connection() {
    let (pipeline, loader, role) = pipeline().await;
    // Effective before the first connection is ended: a connection in between would stay.
    execute(&pipeline, &format!("ALTER ROLE {role} CONNECTION LIMIT 0")).await;
    execute(
        &pipeline,
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"),
    )
    .await;
    assert_waits(
        &pipeline,
        &loader,
        Says::Loader,
        &["connection"],
        &format!("ALTER ROLE {role} CONNECTION LIMIT -1"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_waits_for_a_lost_privilege() {
    let (pipeline, loader, role) = pipeline().await;
    lose_privilege(&pipeline, &role, "clicks", "meanwhile").await;
    assert_waits(
        &pipeline,
        &loader,
        Says::Status,
        &["lacks privileges on", "GRANT"],
        &format!("GRANT SELECT, INSERT, UPDATE ON public.clicks TO {role}"),
    )
    .await;
}
