//! A database behind a pooler: one that lends its connections is refused by every program, behind one that gives them away a run
//! goes through. What `etl doctor` says about the connection.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::Finished;
use testkit::servers::{PoolMode, Pooler, shared_postgres};

const JOB: &str = "[target]\ntable = \"clicks\"\n";

async fn behind(mode: PoolMode) -> (Pipeline, Pooler) {
    let mut pipeline = Pipeline::without_services().await;
    let pooler = shared_postgres().pooler(mode).await;
    pipeline.database.url = pooler.url_of(&pipeline.database);
    (pipeline, pooler)
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_lends_connections_is_refused_by_every_program() {
    let (pipeline, _pooler) = behind(PoolMode::Transaction).await;
    for program in [
        &["loader"][..],
        &["loader", "migrate"],
        &["etl", "status"],
        &["etl", "run", "clicks"],
        &["etl", "doctor"],
    ] {
        pipeline.write_job("clicks", JOB);
        let service = pipeline.service(program[0]);
        let arguments = program[1..].iter();
        let service = arguments.fold(service, |service, one| service.arg(one));
        let Finished {
            code,
            stdout,
            stderr,
        } = service.run().await;
        assert_eq!(code, Some(1), "{program:?}: {stdout}{stderr}");
        let said = stdout + &stderr;
        assert!(
            said.contains("use the direct address"),
            "{program:?}: {said}"
        );
        assert!(said.contains("pool_mode = session"), "{program:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_goes_through_a_pooler_that_gives_connections_away() {
    let (mut pipeline, _pooler) = behind(PoolMode::Session).await;
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    pipeline.run("clicks", "first").await;
    pipeline.assert_reconciled("first").await;
    let rows = "SELECT count(*) FROM clicks";
    let loaded = pipeline.number(rows).await;
    // Takes a lock for as long as the command runs.
    let replayed = pipeline.etl(&["replay", "first", "--follow"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    pipeline.assert_reconciled("first").await;
    assert_eq!(pipeline.number(rows).await, loaded);
    let done = pipeline.etl(&["doctor"]).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    assert!(
        done.stdout.contains("a session of its own"),
        "{}",
        done.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_how_the_database_is_reached() {
    let pipeline = Pipeline::without_services().await;
    let doctor = || pipeline.service("etl").arg("doctor");
    let here = doctor().run().await.stdout;
    for said in ["which the connection does not leave", "in ETL_DATABASE_URL"] {
        assert!(here.contains(said), "{said}: {here}");
    }
    // Leads here on Linux, and is no address of this machine's loopback.
    let mut url = url::Url::parse(&pipeline.database.url).unwrap();
    url.set_host(Some("0.0.0.0")).unwrap();
    let password = url.password().unwrap().to_owned();
    url.set_password(None).unwrap();
    let there = doctor()
        .env("ETL_DATABASE_URL", url.as_str())
        .env(
            "ETL_DATABASE_PASSWORD_COMMAND",
            &format!("echo '{password}'"),
        )
        .run()
        .await
        .stdout;
    for said in [
        "is not encrypted, and the server is not verified; set sslmode=verify-full",
        "asked of ETL_DATABASE_PASSWORD_COMMAND for each connection",
    ] {
        assert!(there.contains(said), "{said}: {there}");
    }
    assert!(!there.contains(&password), "{there}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rds_token_needs_no_options_as_the_command_for_the_password() {
    let pipeline = Pipeline::without_services().await;
    let host = "db.abc123.eu-central-1.rds.amazonaws.com";
    let asked = || {
        let service = pipeline.service("extractor").arg("rds-token");
        service.env("PGHOST", host)
    };
    let token = asked().env("PGUSER", "etl").run().await;
    assert_eq!(token.code, Some(0), "{}", token.stderr);
    let start = format!("{host}:5432/?Action=connect&DBUser=etl&X-Amz-");
    let lines: Vec<_> = token.stdout.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with(&start),
        "{lines:?}"
    );
    let nobody = asked().run().await;
    assert_eq!(nobody.code, Some(2), "{}", nobody.stdout);
    assert!(nobody.stderr.contains("PGUSER"), "{}", nobody.stderr);
}
