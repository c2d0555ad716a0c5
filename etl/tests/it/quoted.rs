//! What Athena, PostgreSQL and a trigger say may quote a value of a row: the ledger keeps it, and no log has it.

use testkit::cloud::{Answer, ResultSet};
use testkit::pipeline::Pipeline;
use testkit::{TIMEOUT, wait_until};

const VALUE: &str = "4111-2222";

/// The pipeline, whose services log all that they can.
async fn pipeline() -> Pipeline {
    let mut pipeline = Pipeline::without_services().await;
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name).env("ETL_LOG", "trace").start().await;
        pipeline.services.push(service);
    }
    pipeline
}

fn assert_not_logged(pipeline: &Pipeline) {
    for service in &pipeline.services {
        let log = service.log();
        let line = log.lines().find(|line| line.contains(VALUE));
        assert_eq!(line, None);
    }
}

async fn text(pipeline: &Pipeline, sql: &'static str) -> String {
    let text = sqlx::query_scalar(sql)
        .fetch_one(&pipeline.database.pool)
        .await;
    text.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn value_in_a_message_of_athena_is_in_the_ledger_and_in_no_log() {
    let pipeline = pipeline().await;
    pipeline.write_job("cards", "[target]\ntable = \"cards\"\n");
    let message = format!("INVALID_CAST_ARGUMENT: Cannot cast '{VALUE}' to BIGINT");
    for (run, answer) in [
        ("failed", Answer::failed_by_user(&message)),
        ("refused", Answer::refused(&message)),
    ] {
        pipeline.cloud.answer_once("FROM cards", answer);
        let done = pipeline
            .etl(&["run", "cards", "--run-id", run, "--follow"])
            .await;
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        assert!(done.stdout.contains(&message), "{}", done.stdout);
    }
    assert_not_logged(&pipeline);
    let log = pipeline.services[2].log();
    assert!(
        log.contains("Athena error type") && log.contains("InvalidRequestException"),
        "the kind of the error is logged: {log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn value_in_a_message_of_a_trigger_is_in_the_ledger_and_in_no_log() {
    let pipeline = pipeline().await;
    let row = || ResultSet::table(&[("card", "varchar")], &[&[Some(VALUE)]]);
    let create = "CREATE TABLE cards (card text, _batch bigint NOT NULL);
        CREATE TABLE whole (card text, _batch bigint NOT NULL);
        CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE WARNING 'there is a %', NEW.card;
            RAISE EXCEPTION 'no % here', NEW.card USING ERRCODE = TG_ARGV[0]; END $$;
        CREATE TRIGGER say BEFORE INSERT ON cards FOR EACH ROW EXECUTE FUNCTION say('45000');
        CREATE TRIGGER say BEFORE INSERT ON whole FOR EACH ROW EXECUTE FUNCTION say('P0001')";
    sqlx::raw_sql(create)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    pipeline.job(
        "whole",
        "[target]\ntable = \"whole\"\ncommit = \"run\"\n",
        row(),
    );
    let held = pipeline.etl(&["run", "whole", "--follow"]).await;
    assert_eq!(held.code, Some(1), "{}", held.stderr);
    let said = format!("no {VALUE} here");
    assert!(held.stdout.contains(&said), "{}", held.stdout);
    pipeline.job("cards", "[target]\ntable = \"cards\"\n", row());
    let done = pipeline.etl(&["run", "cards"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    wait_until("the dead letter", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await
            == 1
    })
    .await;
    let reason = text(&pipeline, "SELECT reason FROM etl.dead_letters").await;
    assert!(reason.contains(&said), "{reason}");
    assert_not_logged(&pipeline);
    let log = pipeline.services[0].log();
    assert!(log.contains("SQLSTATE 45000"), "{log}");
}
