//! Postgres is there and cannot take anything: its disk is full, it has no connection left, a privilege is gone. The loader
//! says so, gives nothing up, and goes on by itself.

use testkit::PATIENCE;
use testkit::cloud::sample;
use testkit::line::Line;
use testkit::process::Process;
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"clicks\"\n";

/// A line whose loader has a role of its own, since much of this does not apply to a superuser: the loader, and its role.
async fn line() -> (Line, Process, String) {
    let mut line = Line::without_services().await;
    let role = format!("{}_loader", line.database.name);
    execute(
        &line,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret'; ALTER DATABASE {} OWNER TO {role}",
            line.database.name
        ),
    )
    .await;
    let mut url = url::Url::parse(&line.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("secret")).unwrap();
    let loader = line
        .service("loader")
        .env("ETL_DATABASE_URL", url.as_str())
        .start()
        .await;
    for name in ["transformer", "extractor"] {
        let service = line.service(name).start().await;
        line.services.push(service);
    }
    line.job("clicks", JOB, sample::clicks(20_000));
    line.run("clicks", "before").await;
    (line, loader, role)
}

async fn execute(line: &Line, sql: &str) {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&line.database.pool)
        .await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Asks for a run that cannot go on, sees that the loader says why, takes away what is in its way, and sees it complete.
async fn assert_waits(line: &Line, loader: &Process, why: &[&str], mend: &str) {
    let asked = line
        .etl(&["run", "clicks", "--run-id", "meanwhile", "--again"])
        .await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until(&format!("the loader to speak of {why:?}"), PATIENCE, async || {
        matches!(loader.readiness().await, Some((false, text)) if why.iter().all(|word| text.contains(word)))
    })
    .await;
    assert_eq!(
        line.number("SELECT count(*) FROM etl.batches WHERE run_id = 'meanwhile'")
            .await,
        0
    );
    execute(line, mend).await;
    let run = line.run("clicks", "meanwhile").await;
    assert_eq!(run["rows_loaded"], 20_000, "{run}");
    line.assert_reconciled("meanwhile").await;
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 40_000);
    assert_eq!(
        line.number("SELECT count(*) FROM etl.dead_letters").await,
        0
    );
    wait_until("the loader to be ready", PATIENCE, async || {
        matches!(loader.readiness().await, Some((true, _)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for() {
    let (line, loader, _) = line().await;
    // What Postgres answers when it cannot write; a disk of its own to fill would need a privileged machine.
    execute(
        &line,
        "CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
         CREATE TRIGGER full_disk BEFORE INSERT ON public.clicks EXECUTE FUNCTION public.full_disk()",
    )
    .await;
    assert_waits(
        &line,
        &loader,
        &["No space left", "free disk space"],
        "DROP TRIGGER full_disk ON public.clicks",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_connections_is_waited_for() {
    let (line, loader, role) = line().await;
    // In force before the first connection is ended: whoever comes back in between would stay.
    execute(&line, &format!("ALTER ROLE {role} CONNECTION LIMIT 0")).await;
    execute(
        &line,
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"),
    )
    .await;
    assert_waits(
        &line,
        &loader,
        &["connection"],
        &format!("ALTER ROLE {role} CONNECTION LIMIT -1"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_gone_is_waited_for() {
    let (line, loader, role) = line().await;
    execute(&line, &format!("ALTER TABLE public.clicks OWNER TO CURRENT_USER; REVOKE ALL ON public.clicks FROM {role}")).await;
    assert_waits(
        &line,
        &loader,
        &["may not write to", "GRANT"],
        &format!("GRANT SELECT, INSERT, UPDATE ON public.clicks TO {role}"),
    )
    .await;
}
