//! Each part works as a role of its own, with the privileges that `loader migrate` gives it and no others.

use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::process::Finished;
use testkit::servers::private_postgres;
use testkit::{TIMEOUT, wait_until};
use tokio::process::Command;

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/postgres/roles.sql");

const PARTS: [&str; 6] = [
    "--loader-role",
    "etl_loader",
    "--command-role",
    "etl_command",
    "--console-role",
    "etl_console",
];

const HELD: &str = "commit = \"run\"\nmax_rejected = \"1%\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";

async fn psql(url: &str, arguments: &[&str]) {
    let run = Command::new("psql")
        .args(["-X", "-q", url])
        .args(arguments)
        .output();
    let done = run.await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {said}");
}

fn as_role(url: &str, role: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_username(role).unwrap();
    url.set_password(Some("x")).unwrap();
    url.into()
}

/// A pipeline on a server of its own, whose parts have the roles of `roles.sql`. `etl` works as `etl_command`, and the
/// pipeline's own connections are those of the administrator.
async fn pipeline() -> (Pipeline, String) {
    let database = private_postgres().await.database().await;
    let mut pipeline = Pipeline::on_database(database).await;
    let admin = pipeline.database.url.clone();
    // Where nobody may do more than what was given: neither in the database nor in its schemas.
    let strict = format!(
        "REVOKE ALL ON DATABASE {0} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE SCHEMA warehouse",
        pipeline.database.name
    );
    psql(&admin, &["-c", &strict]).await;
    for _ in 0..2 {
        psql(&admin, &["-v", "schema=warehouse", "-f", ROLES]).await;
    }
    for role in ["etl_migrate", "etl_loader", "etl_command", "etl_console"] {
        let password = format!("ALTER ROLE {role} PASSWORD 'x'");
        psql(&admin, &["-c", &password]).await;
    }
    // A loader that is there before the ledger waits for it.
    let loader = pipeline.service("loader");
    let loader = loader.env("ETL_DATABASE_URL", &as_role(&admin, "etl_loader"));
    let loader = loader.env("ETL_MIGRATE", "false");
    let mut loader = loader.env("ETL_SCHEMAS", "warehouse").spawn();
    wait_until("the loader to wait for the schema", TIMEOUT, async || {
        let said = loader.readiness().await;
        said.is_some_and(|(_, why)| why.contains("loader migrate"))
    })
    .await;
    for _ in 0..2 {
        let migrated = migrate(&pipeline, &as_role(&admin, "etl_migrate"), &PARTS).await;
        assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    }
    loader.await_ready().await;
    pipeline.services.push(loader);
    for name in ["transformer", "extractor"] {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    pipeline.database.url = as_role(&admin, "etl_command");
    (pipeline, admin)
}

async fn migrate(pipeline: &Pipeline, url: &str, parts: &[&str]) -> Finished {
    let command = pipeline.service("loader").env("ETL_DATABASE_URL", url);
    let command = command.arg("migrate");
    let command = parts
        .iter()
        .fold(command, |command, part| command.arg(part));
    command.run().await
}

/// Runs `etl`, which must end with this code.
async fn ends(pipeline: &Pipeline, arguments: &[&str], code: i32) -> Finished {
    let etl = pipeline.service("etl").env("ETL_SCHEMAS", "warehouse");
    let etl = arguments
        .iter()
        .fold(etl, |etl, argument| etl.arg(argument));
    let done = etl.run().await;
    let said = format!("{arguments:?}\n{}\n{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{said}");
    done
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn each_part_works_as_a_role_of_its_own() {
    let (mut pipeline, admin) = pipeline().await;
    for (job, more) in [
        ("added", ""),
        (
            "merged",
            "mode = \"upsert\"\nkey = [\"url\", \"seen_at\"]\n",
        ),
        ("kept", "mode = \"insert_only\"\nkey = [\"url\"]\n"),
        ("replaced", "mode = \"replace\"\n"),
        ("held", HELD),
    ] {
        let toml = format!("[target]\ntable = \"warehouse.{job}\"\n{more}");
        pipeline.job(job, &toml, sample::clicks(12_000));
        ends(&pipeline, &["plan", job], 0).await;
        if job != "held" {
            ends(&pipeline, &["run", job, "--run-id", job, "--follow"], 0).await;
            ends(&pipeline, &["reconcile", job], 0).await;
        }
    }
    let held = |run| ["run", "held", "--again", "--run-id", run, "--follow"];
    ends(&pipeline, &held("one"), 1).await;
    ends(
        &pipeline,
        &["approve", "one", "--why", "right", "--follow"],
        0,
    )
    .await;
    ends(&pipeline, &held("two"), 1).await;
    ends(&pipeline, &["discard", "two", "--why", "wrong"], 0).await;

    // A replay that is abandoned, and one from S3.
    let strict = |table: &str| format!("[target]\ntable = \"warehouse.{table}\"\n{HELD}");
    pipeline.write_job("added", &strict("added"));
    ends(&pipeline, &["replay", "added", "--follow"], 1).await;
    ends(&pipeline, &["discard", "added", "--why", "wrong"], 0).await;
    ends(&pipeline, &["reconcile", "added"], 0).await;
    ends(
        &pipeline,
        &["replay", "replaced", "--from-athena", "--follow"],
        0,
    )
    .await;
    let unanswered = Answer::queued_for_ever();
    pipeline.cloud.answer_once("FROM kept", unanswered);
    ends(&pipeline, &["run", "kept", "--run-id", "open"], 0).await;
    let undo = ["cancel", "open", "--undo", "--why", "wrong"];
    ends(&pipeline, &undo, 0).await;

    for looks in [
        &["status"][..],
        &["status", "one", "--json"],
        &["runs"],
        &["rejects", "one"],
        &["reconcile"],
        &["dead", "list"],
        &["prune", "--older-than", "1d"],
    ] {
        ends(&pipeline, looks, 0).await;
    }
    let doctor = ends(&pipeline, &["doctor"], 0).await;
    assert!(!doctor.stdout.contains("WRONG"), "{}", doctor.stdout);

    // What a role does not have.
    let trace = ["trace", "--table", "warehouse.added", "--where", "true"];
    let denied = ends(&pipeline, &trace, 2).await;
    assert!(
        denied.stderr.contains("permission denied"),
        "{}",
        denied.stderr
    );
    pipeline.database.url = as_role(&admin, "etl_console");
    ends(&pipeline, &["status"], 0).await;
    ends(&pipeline, &["rejects", "one"], 0).await;
    let denied = ends(&pipeline, &["run", "kept", "--again"], 1).await;
    assert!(
        denied
            .stderr
            .contains("etl doctor names the privileges that the role lacks"),
        "{}",
        denied.stderr
    );
    let doctor = ends(&pipeline, &["doctor"], 1).await;
    let grant = "GRANT INSERT ON etl.runs TO \"etl_console\"";
    assert!(doctor.stdout.contains(grant), "{}", doctor.stdout);
    let beyond = "SELECT count(*) FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p
        WHERE c.relnamespace = 'etl'::regnamespace AND c.relkind IN ('r', 'v') AND has_table_privilege('etl_console', c.oid, p)";
    assert_eq!(pipeline.number(beyond).await, 0);
    // A role that is not there, and one that does not own the ledger.
    for (role, parts, said) in [
        (
            "etl_migrate",
            &["--loader-role", "nobody"],
            "create the role first",
        ),
        // PostgreSQL only warns of grants by a role that has a privilege and may not give it.
        (
            "etl_command",
            &["--console-role", "etl_console"],
            "as the owner of the schemas etl and etl_staging",
        ),
    ] {
        let refused = migrate(&pipeline, &as_role(&admin, role), parts).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
}

/// Each privilege to write that a command needs, as a grant to this role.
fn assert_writes_are_lacking(lacking: &str, role: &str) {
    for (privilege, tables) in [
        ("INSERT", "runs batches replays removals"),
        (
            "UPDATE",
            "runs batches replays removals rejected_rows dead_letters",
        ),
        ("DELETE", "batches rejected_rows"),
    ] {
        for table in tables.split(' ') {
            let grant = format!("GRANT {privilege} ON etl.{table} TO \"{role}\"");
            assert!(lacking.contains(&grant), "{grant}: {lacking}");
        }
    }
}

/// Doctor knows each privilege that `etl` needs: taking any of them away is said, with the statement that gives it back.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_each_privilege_that_was_taken_away() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let role = format!("command_{}", pipeline.database.name);
    let grants = pipeline.service("loader").arg("grants");
    let grants = grants.arg("--command-role").arg(&role).run().await;
    let url = &pipeline.database.url;
    let made = format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; {}", grants.stdout);
    psql(url, &["-c", &made]).await;
    let doctor = async || {
        let etl = pipeline.service("etl").arg("doctor");
        etl.env("ETL_DATABASE_URL", &as_role(url, &role))
            .run()
            .await
            .stdout
    };
    let complete = doctor().await;
    assert!(
        complete.contains("may read and write the ledger"),
        "{complete}"
    );
    let revoke = async |of: &str| {
        for line in grants.stdout.lines().filter(|line| line.contains(of)) {
            let line = line.replacen("GRANT", "REVOKE", 1);
            psql(url, &["-c", &line.replace(" TO ", " FROM ")]).await;
        }
    };
    revoke(" ON etl.").await;
    assert_writes_are_lacking(&doctor().await, &role);
    // Without a privilege to read, nothing else can be asked.
    let public = "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA etl FROM PUBLIC";
    psql(url, &["-c", public]).await;
    for (taken, said) in [
        (
            "ALL FUNCTIONS",
            "GRANT EXECUTE ON FUNCTION etl.run_no(batch_no bigint) TO",
        ),
        ("ALL TABLES", "GRANT SELECT ON etl.runs TO"),
        ("SCHEMA etl TO", "GRANT USAGE ON SCHEMA etl TO"),
    ] {
        revoke(taken).await;
        let lacking = doctor().await;
        assert!(lacking.contains(said), "{said}: {lacking}");
        assert!(
            lacking.contains("loader migrate --command-role"),
            "{lacking}"
        );
    }
    let dropped = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    psql(url, &["-c", &dropped]).await;
}
