//! `etl doctor` reports problems with their remedies; `etl prune` deletes old values that are no longer needed.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::{TIMEOUT, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn healthy_pipeline_passes_every_check() {
    let pipeline = Pipeline::start().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(1),
    );
    for queue in ["etl.extract", "etl.raw", "etl.valid"] {
        let (vhost, bulk) = (&pipeline.vhost, format!("{queue}.bulk"));
        wait_until(&format!("consumers of {queue}"), TIMEOUT, async || {
            vhost.consumers(queue).await > 0 && vhost.consumers(&bulk).await > 0
        })
        .await;
    }
    let done = pipeline.etl(&["doctor"]).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    for said in [
        "PostgreSQL",
        "schema etl is of this version",
        "the broker takes messages of 15 MiB",
        "etl.raw is as",
        "of etl.extract",
        "clicks can be read",
        "rabbitmqctl eval",
    ] {
        assert!(done.stdout.contains(said), "{said}: {}", done.stdout);
    }
    assert!(
        !done.stdout.contains("WRONG") && !done.stdout.contains("warning"),
        "{}",
        done.stdout
    );
    assert!(
        done.stdout.contains("AMQP does not tell the broker's disk"),
        "{}",
        done.stdout
    );
    let asked = pipeline.service("etl").arg("doctor");
    let management = pipeline.vhost.broker.management_url();
    let done = asked.env("ETL_MANAGEMENT_URL", &management).run().await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    assert!(
        done.stdout.contains("free above its disk alarm"),
        "{}",
        done.stdout
    );
    for queue in [
        "etl.extract",
        "etl.raw",
        "etl.valid",
        "etl.parked",
        "etl.events",
        "etl.dead",
    ] {
        assert_eq!(
            pipeline.vhost.ready(queue).await,
            0,
            "a message is left in {queue}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_problem_is_named_with_the_remedy() {
    let pipeline = Pipeline::without_services().await;
    // Before the first service starts: the queues do not exist, and `doctor` declares none.
    let done = pipeline.etl(&["doctor"]).await;
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    for said in ["loader migrate", "etl.raw does not exist yet", "ETL_JOBS"] {
        assert!(done.stdout.contains(said), "{said}: {}", done.stdout);
    }
    assert!(!pipeline.vhost.exists("etl.raw").await);
    // A queue with other arguments, a job with a typo, a target that does not fit.
    pipeline.vhost.declare("etl.raw").await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    pipeline.write_job("typo", "[target]\ntabel = \"clicks\"\n");
    pipeline.write_job("elsewhere", "[target]\ntable = \"secret.clicks\"\n");
    pipeline.write_job("fits", "[target]\ntable = \"clicks\"\n");
    let done = pipeline.etl(&["doctor", "--json"]).await;
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    let found: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let wrong: Vec<String> = found
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["level"] == "wrong")
        .map(|one| format!("{} {}", one["what"], one["text"]))
        .collect();
    assert_eq!(wrong.len(), 3, "{wrong:#?}");
    assert!(
        wrong[0].contains("etl.raw has other arguments") && wrong[0].contains("x-dead-letter"),
        "{wrong:#?}"
    );
    assert!(
        wrong[1].contains("elsewhere") && wrong[1].contains("ETL_SCHEMAS"),
        "{wrong:#?}"
    );
    assert!(
        wrong[2].contains("typo") && wrong[2].contains("tabel"),
        "{wrong:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_broker_and_database_are_reported_beside_the_other_checks() {
    let pipeline = Pipeline::without_services().await;
    let closed = testkit::process::CLOSED_PORT;
    let done = pipeline
        .service("etl")
        .arg("doctor")
        .env(
            "ETL_AMQP_URL",
            &format!("amqp://guest:secret@127.0.0.1:{closed}/%2f"),
        )
        .env(
            "ETL_DATABASE_URL",
            &format!("postgres://etl:secret@127.0.0.1:{closed}/etl"),
        )
        .run()
        .await;
    assert_eq!(done.code, Some(1));
    for said in ["ETL_AMQP_URL", "ETL_DATABASE_URL"] {
        assert!(done.stdout.contains(said), "{said}: {}", done.stdout);
    }
    assert!(!done.stdout.contains("secret"), "{}", done.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_reported_with_the_grant() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let role = format!("reader_{}", pipeline.database.name);
    let grant = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA etl TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA etl TO {role}; REVOKE CREATE ON SCHEMA public FROM public"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant))
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let mut url = url::Url::parse(&pipeline.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let done = pipeline
        .service("etl")
        .arg("doctor")
        .env("ETL_DATABASE_URL", url.as_str())
        .run()
        .await;
    let drop_role = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop_role))
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    for said in [
        format!("GRANT INSERT ON etl.runs TO \"{role}\""),
        format!("GRANT CREATE ON SCHEMA \"public\" TO \"{role}\""),
    ] {
        assert!(done.stdout.contains(&said), "{said}: {}", done.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn prune_deletes_old_values_and_keeps_those_still_needed() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let values = "
        INSERT INTO etl.runs (run_id, job, job_hash, job_spec, sql, target_table, mode, state, batches_expected, rows_expected, requested_at, finished_at)
        SELECT name, 'clicks', 'h', '{}', 'SELECT 1', 'public.clicks', 'append', state, 1, 1, now() - age, CASE WHEN state = 'completed' THEN now() - age END
        FROM (VALUES ('old', 'completed', interval '40 days'), ('new', 'completed', '2 days'), ('open', 'running', '40 days')) AS r (name, state, age);
        INSERT INTO etl.batches (run_id, generation, first_row, content_hash, result_id, rows_extracted, rows_loaded, rows_rejected)
        SELECT run_id, 0, 0, 'h', 'q', 1, 0, 1 FROM etl.runs;
        INSERT INTO etl.rejected_rows (run_id, generation, first_row, row_number, rule, reason, raw, rejected_at)
        SELECT run_id, 0, 0, 0, 'required', 'why', '{}', requested_at FROM etl.runs;
        INSERT INTO etl.dead_letters (digest, stage, reason, run_id, body, received_at, resolved_at, resolution)
        VALUES ('a', 'loader', 'resolved long ago', 'old', 'x', now() - interval '50 days', now() - interval '40 days', 'replayed'),
               ('b', 'loader', 'resolved a moment ago', 'old', 'x', now() - interval '50 days', now(), 'replayed'),
               ('c', 'loader', 'of a run that is over', 'old', 'x', now() - interval '50 days', NULL, NULL),
               ('d', 'loader', 'of a run that waits for it', 'open', 'x', now() - interval '50 days', NULL, NULL),
               ('e', 'loader', 'of no run', NULL, 'x', now() - interval '50 days', NULL, NULL)";
    sqlx::raw_sql(values)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let kept = async || {
        (
            pipeline
                .table("run_id", "etl.rejected_rows WHERE raw IS NOT NULL")
                .await,
            pipeline
                .table("digest", "etl.dead_letters WHERE body IS NOT NULL")
                .await,
        )
    };
    let all = kept().await;
    let dry = pipeline
        .etl(&["prune", "--older-than", "30d", "--dry-run"])
        .await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(
        dry.stdout
            .contains("would delete the values of 1 rejected row and the bodies of 1 dead letter"),
        "{}",
        dry.stdout
    );
    assert_eq!(kept().await, all);
    let pruned = pipeline
        .etl(&["prune", "--older-than", "30d", "--json"])
        .await;
    let json: serde_json::Value = serde_json::from_str(&pruned.stdout).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "rejected_values": 1, "dead_letter_bodies": 1, "unsent": 0 })
    );
    assert_eq!(
        kept().await,
        (
            vec!["(new)".to_owned(), "(open)".to_owned()],
            ["(b)", "(c)", "(d)", "(e)"].map(str::to_owned).to_vec()
        )
    );
    let more = pipeline
        .etl(&["prune", "--older-than", "30d", "--unresolved"])
        .await;
    assert_eq!(more.code, Some(0), "{}", more.stderr);
    assert_eq!(kept().await.1, ["(b)", "(d)"]);
    assert_eq!(
        pipeline.number("SELECT count(*) FROM etl.runs").await
            + pipeline.number("SELECT count(*) FROM etl.batches").await,
        6,
        "runs and batches stay"
    );
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.rejected_rows")
            .await,
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_scripts_ask_the_command() {
    let pipeline = Pipeline::without_services().await;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = pipeline.etl(&["completion", shell]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        for word in ["COMPLETE", "etl"] {
            assert!(done.stdout.contains(word), "{shell}: {}", done.stdout);
        }
    }
}
