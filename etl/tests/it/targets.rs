//! What is wrong with an existing target is said by `etl plan`, `etl run`, `etl backfill` and `etl doctor` before Athena is asked,
//! for the role that loaders work as, and all at once; and the run loads after the statements that they say.

use serde_json::Value;
use sqlx::AssertSqlSafe;
use testkit::cloud::ResultSet;
use testkit::pipeline::Pipeline;
use testkit::{TIMEOUT, wait_until};

const COLUMNS: &str = "[[columns]]\nsource = \"url\"\ntype = \"text\"\n[[columns]]\nsource = \"visits\"\ntype = \"bigint\"\n";

fn clicks() -> ResultSet {
    let columns = [("url", "varchar"), ("visits", "bigint")];
    let rows: [&[Option<&str>]; 2] = [&[Some("a"), Some("1")], &[Some("b"), Some("2")]];
    ResultSet::table(&columns, &rows)
}

async fn execute(pipeline: &Pipeline, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&pipeline.database.pool)
        .await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A pipeline whose loader works as a role that has privileges on the ledger alone, while `etl` is a superuser.
async fn pipeline() -> (Pipeline, String) {
    let mut pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let role = format!("loader_{}", pipeline.database.name);
    execute(
        &pipeline,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA etl TO {role}; GRANT USAGE, CREATE ON SCHEMA etl_staging TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO {role}; GRANT SELECT ON etl.schema_migrations TO {role}"
        ),
    )
    .await;
    let mut url = url::Url::parse(&pipeline.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name);
        let service = if name == "loader" {
            let service = service.env("ETL_DATABASE_URL", url.as_str());
            service.env("ETL_MIGRATE", "false")
        } else {
            service
        };
        pipeline.services.push(service.start().await);
    }
    wait_until("the loader to record its role", TIMEOUT, async || {
        pipeline.table("role_name", "etl.loaders").await == [format!("({role})")]
    })
    .await;
    (pipeline, role)
}

/// The sentences of `etl plan`.
async fn refused(pipeline: &Pipeline, job: &str) -> Vec<String> {
    let plan = pipeline.etl(&["plan", job, "--json"]).await;
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let why = plan["target"]["why"].as_array().cloned();
    let sentences = why.unwrap_or_default();
    sentences
        .iter()
        .map(|one| one.as_str().unwrap().to_owned())
        .collect()
}

/// The statement at the end of a sentence.
fn statement(sentence: &str) -> &str {
    let starts = ["run: ", "superuser: "].iter();
    let starts = starts.filter_map(|end| Some(sentence.rfind(end)? + end.len()));
    &sentence[starts.max().unwrap()..]
}

/// Checks that no command begins a run, and that each says every sentence.
async fn assert_refused(pipeline: &Pipeline, job: &str, sentences: &[String]) {
    let plan = pipeline.etl(&["plan", job]).await;
    let run = pipeline.etl(&["run", job, "--run-id", job]).await;
    let doctor = pipeline.etl(&["doctor"]).await;
    for (done, said) in [
        (&plan, &plan.stdout),
        (&run, &run.stderr),
        (&doctor, &doctor.stdout),
    ] {
        assert_eq!(done.code, Some(1), "{}{}", done.stdout, done.stderr);
        for sentence in sentences {
            assert!(said.contains(sentence), "{sentence}: {said}");
        }
    }
    assert_eq!(pipeline.cloud.started().len(), 0, "no query");
    assert_eq!(pipeline.vhost.ready("etl.extract").await, 0);
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_target_is_said_before_athena_is_asked() {
    let (pipeline, role) = pipeline().await;
    let modes = [
        ("append", ""),
        ("upsert", "key = [\"url\"]\n"),
        ("insert_only", "key = [\"url\"]\n"),
        ("replace", ""),
    ];
    let mut all = Vec::new();
    for (mode, more) in modes {
        let table = format!("t_{mode}");
        execute(
            &pipeline,
            &format!(
                "CREATE UNLOGGED TABLE public.{table} (url text UNIQUE, visits bigint GENERATED ALWAYS AS IDENTITY, id serial, _batch bigint);
                 CREATE RULE other AS ON INSERT TO public.{table} DO ALSO NOTHING; ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY"
            ),
        )
        .await;
        let job = format!("[target]\ntable = \"{table}\"\nmode = \"{mode}\"\n{more}{COLUMNS}");
        pipeline.job(mode, &job, clicks());
        let sentences = refused(&pipeline, mode).await;
        assert_eq!(sentences.len(), 6, "{mode}: {sentences:#?}");
        assert!(
            sentences.iter().any(|one| one.contains(&role)),
            "{sentences:#?}"
        );
        assert_refused(&pipeline, mode, &sentences).await;
        all.extend(sentences);
    }
    for sentence in &all {
        execute(&pipeline, statement(sentence)).await;
    }
    for (mode, _) in modes {
        assert_eq!(refused(&pipeline, mode).await, [""; 0]);
        pipeline.run(mode, mode).await;
        pipeline.assert_reconciled(mode).await;
    }
    let run = pipeline.etl(&["run", "append", "--again"]).await;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stderr
            .contains("a replay or an undo of its runs will not work")
            && run
                .stderr
                .contains("GRANT SELECT, DELETE ON \"public\".\"t_append\""),
        "{}",
        run.stderr
    );
    let doctor = pipeline.etl(&["doctor"]).await;
    assert_eq!(doctor.code, Some(0), "{}", doctor.stdout);
    assert!(
        doctor.stdout.contains("GRANT SELECT, DELETE ON"),
        "{}",
        doctor.stdout
    );
    let drop = format!("DROP OWNED BY {role}");
    execute(&pipeline, &drop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_say_which_roles_they_have_checked() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    pipeline.job("clicks", "[target]\ntable = \"clicks\"\n", clicks());
    let unknown = "no loader has recorded its role yet";
    let plan = pipeline.etl(&["plan", "clicks"]).await;
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stdout.contains(unknown), "{}", plan.stdout);
    let doctor = pipeline.etl(&["doctor"]).await;
    assert!(doctor.stdout.contains(unknown), "{}", doctor.stdout);
    let names = ["one", "two"].map(|one| format!("{one}_{}", pipeline.database.name));
    for name in &names {
        execute(
            &pipeline,
            &format!("CREATE ROLE {name}; INSERT INTO etl.loaders VALUES ('{name}')"),
        )
        .await;
    }
    execute(
        &pipeline,
        &format!("GRANT CREATE ON SCHEMA public TO {}", names[0]),
    )
    .await;
    let sentences = refused(&pipeline, "clicks").await;
    let [sentence] = &sentences[..] else {
        panic!("{sentences:#?}");
    };
    assert!(
        sentence.contains(&format!("TO \"{}\"", names[1])),
        "{sentence}"
    );
    let plan = pipeline.etl(&["plan", "clicks"]).await;
    let several = format!("loaders work as several roles ({}, {})", names[0], names[1]);
    assert!(plan.stdout.contains(&several), "{}", plan.stdout);
    execute(
        &pipeline,
        &format!("GRANT CREATE ON SCHEMA public TO {}", names[1]),
    )
    .await;
    assert_eq!(refused(&pipeline, "clicks").await, [""; 0]);
    let roles = names.join(", ");
    execute(
        &pipeline,
        &format!("DROP OWNED BY {roles}; DROP ROLE {roles}"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_postgres_has_no_room_for_are_refused() {
    let pipeline = Pipeline::start().await;
    let target = |table: &str| format!("[target]\ntable = \"{table}\"\n{COLUMNS}");
    pipeline.job("clicks", &target("wide"), clicks());
    let columns: Vec<_> = (0..1598).map(|n| format!("c{n} text")).collect();
    let wide = format!(
        "CREATE TABLE public.wide (url text, visits bigint, {}); ALTER TABLE public.wide DROP c7",
        columns.join(", ")
    );
    execute(&pipeline, &wide).await;
    let sentences = refused(&pipeline, "clicks").await;
    let [sentence] = &sentences[..] else {
        panic!("{sentences:#?}");
    };
    assert!(
        sentence.contains("1600 columns") && sentence.contains("needs 1 more"),
        "{sentence}"
    );
    assert_refused(&pipeline, "clicks", &sentences).await;
    let columns = (0..1597).map(|n| format!("[[columns]]\nsource = \"c{n}\"\ntype = \"text\"\n"));
    let job = target("clicks") + &columns.collect::<String>();
    pipeline.write_job("clicks", &job);
    let run = pipeline.etl(&["run", "clicks"]).await;
    assert_eq!(run.code, Some(2), "{}", run.stdout);
    assert!(run.stderr.contains("1599 columns"), "{}", run.stderr);
    pipeline.write_job("clicks", &target("clicks"));
    pipeline.run("clicks", "clicks").await;
}
