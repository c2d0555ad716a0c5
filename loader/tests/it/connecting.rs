//! How the loader's process reaches its database: with a password that changes while it runs, with TLS, and what it says when
//! the settings about that are wrong.

use std::path::Path;

use testkit::process::{Finished, Service};
use testkit::relay::Relay;
use testkit::servers::{Database, database, private_postgres_with_tls, vhost};
use testkit::{TIMEOUT, wait_until};

use crate::service::{World, batch, sent};
use crate::support::{execute, request, text};

/// A role that owns the database, and its URL without a password.
async fn owner(database: &Database) -> (String, String) {
    let role = format!("{}_owner", database.name);
    let sql = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'hunter1'; ALTER DATABASE {} OWNER TO {role}",
        database.name
    );
    execute(&database.pool, &sql).await;
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(None).unwrap();
    (role, url.into())
}

/// Renews a file as its writers should: whole at any moment.
fn write(path: &Path, password: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, password).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

/// A loader whose password changes in PostgreSQL, and a moment later where `setting` finds it.
async fn assert_rotation_needs_no_restart(setting: &str, value: impl Fn(&Path) -> String) {
    let database = database().await;
    let (role, url) = owner(&database).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    write(&file, "hunter1\n");
    let environment = [("ETL_DATABASE_URL", &*url), (setting, &*value(&file))];
    let mut world = World::with(database, &environment).await;
    let pool = world.database.pool.clone();
    request(&pool, "r").await;
    world.publish(&[sent(&batch(0))]).await;
    let batches = "SELECT count(*) FROM etl.batches";
    world.until("the first batch", batches, "1").await;
    // PostgreSQL keeps sessions whose password changed; their end is that of a failover, or of the pool's own age.
    let rotate = format!(
        "ALTER ROLE {role} PASSWORD 'hunter2'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    execute(&pool, &rotate).await;
    world.publish(&[sent(&batch(1))]).await;
    wait_until("the loader to say why it waits", TIMEOUT, async || {
        let readiness = world.loader.readiness().await;
        readiness
            .is_some_and(|(_, why)| why.contains("authentication failed") && why.contains(setting))
    })
    .await;
    write(&file, "hunter2\n");
    world.until("the second batch", batches, "2").await;
    assert!(world.loader.is_running());
    let log = world.loader.log();
    assert!(!log.contains("hunter"), "{log}");
    let dead = text(&pool, "SELECT count(*) FROM etl.dead_letters").await;
    assert_eq!(dead, "0");
    world.loader.kill9().await;
    let drop_role =
        format!("REASSIGN OWNED BY {role} TO etl; DROP OWNED BY {role}; DROP ROLE {role}");
    execute(&pool, &drop_role).await;
}

#[tokio::test]
async fn password_in_a_file_changes_without_a_restart() {
    let path = |file: &Path| file.display().to_string();
    assert_rotation_needs_no_restart("ETL_DATABASE_PASSWORD_FILE", path).await;
}

#[tokio::test]
async fn password_of_a_command_changes_without_a_restart() {
    let cat = |file: &Path| format!("cat '{}'", file.display());
    assert_rotation_needs_no_restart("ETL_DATABASE_PASSWORD_COMMAND", cat).await;
}

async fn migrate(database: &Database, environment: &[(&str, &str)]) -> Finished {
    let service = Service::new("loader").arg("migrate");
    let service = service.env("ETL_DATABASE_URL", &database.url);
    let set = |service: Service, (name, value): &(&str, &str)| service.env(name, value);
    environment.iter().fold(service, set).run().await
}

/// The one error of a process that could not start.
fn only_error(finished: &Finished) -> &str {
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let mut errors = finished
        .stderr
        .lines()
        .filter(|line| line.contains("ERROR"));
    let error = errors.next().unwrap();
    assert_eq!(errors.next(), None, "{}", finished.stderr);
    error
}

#[tokio::test]
async fn wrong_source_of_the_password_is_one_sentence() {
    let database = database().await;
    let (role, url) = owner(&database).await;
    let (url, given) = (
        ("ETL_DATABASE_URL", &*url),
        ("ETL_DATABASE_URL", &*database.url),
    );
    let file = |path| ("ETL_DATABASE_PASSWORD_FILE", path);
    let command = |text| ("ETL_DATABASE_PASSWORD_COMMAND", text);
    for (settings, said) in [
        (
            &[url, file("/no/such/file")][..],
            "cannot read the file of ETL_DATABASE_PASSWORD_FILE",
        ),
        (&[url, file("/dev/null")], "is empty"),
        (
            &[url, command("echo hidden; echo no such role >&2; exit 3")],
            "exit code 3; its last words: no such role",
        ),
        (&[url, command("/no/such/command")], "exit code 127"),
        (
            &[url, command("echo hidden; sleep 1000")],
            "did not end within 10 s",
        ),
        (
            &[url, command("echo hidden")],
            "with the password that the command of ETL_DATABASE_PASSWORD_COMMAND printed",
        ),
        (
            &[url, file("/dev/null"), command("echo hidden")],
            "are set; remove one of them",
        ),
        (
            &[given, file("/dev/null")],
            "it has a password, and ETL_DATABASE_PASSWORD_FILE is set, too",
        ),
        (
            &[given, command("echo hidden")],
            "it has a password, and ETL_DATABASE_PASSWORD_COMMAND is set, too",
        ),
    ] {
        let finished = migrate(&database, settings).await;
        let error = only_error(&finished);
        assert!(error.contains(said) && !error.contains("hidden"), "{error}");
    }
    let accepted = migrate(&database, &[url, command("echo hunter1")]).await;
    assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
    let drop_role =
        format!("REASSIGN OWNED BY {role} TO etl; DROP OWNED BY {role}; DROP ROLE {role}");
    execute(&database.pool, &drop_role).await;
}

#[tokio::test]
async fn sslrootcert_can_be_the_authorities_of_the_system() {
    let postgres = private_postgres_with_tls().await;
    let database = postgres.database().await;
    let url = format!("{}?sslrootcert=system", database.url);
    let url = ("ETL_DATABASE_URL", &*url);
    let unknown = migrate(&database, &[url]).await;
    let error = only_error(&unknown);
    assert!(
        error.contains("no authority that is trusted here"),
        "{error}"
    );
    // What OpenSSL takes for the system's.
    let authority = postgres.authority();
    let authority = ("SSL_CERT_FILE", authority.to_str().unwrap());
    let migrated = migrate(&database, &[url, authority]).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
}

#[tokio::test]
async fn lax_encryption_to_another_machine_is_warned_of_once_and_no_parameter_is_logged() {
    let (database, vhost) = (database().await, vhost().await);
    let broker = Relay::to_url(&vhost.amqp_url).await;
    // Leads here on Linux, and is no address of this machine's loopback.
    let mut url = url::Url::parse(&database.url.replace("127.0.0.1", "0.0.0.0")).unwrap();
    let password = url.password().unwrap().to_owned();
    url.set_password(None).unwrap();
    url.query_pairs_mut()
        .append_pair("password", &password)
        .append_pair("application_name", "hidden");
    let mut loader = Service::new("loader")
        .env("ETL_DATABASE_URL", url.as_str())
        .env("ETL_AMQP_URL", &broker.url_for(&vhost.amqp_url))
        .env("ETL_LOG", "trace")
        .start()
        .await;
    let sessions = |log: &str| log.matches("connected to the broker").count();
    let before = sessions(&loader.log());
    broker.cut_once();
    wait_until("another session", TIMEOUT, async || {
        sessions(&loader.log()) > before
    })
    .await;
    loader.await_ready().await;
    let log = loader.log();
    assert_eq!(
        log.matches("nobody verifies the server").count(),
        1,
        "{log}"
    );
    assert!(!log.contains(&password) && !log.contains("hidden"), "{log}");
    let migrate = Service::new("loader").arg("migrate");
    let done = migrate.env("ETL_DATABASE_URL", url.as_str()).run().await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let warned = done.stderr.matches("nobody verifies the server").count();
    assert_eq!(warned, 1, "{}", done.stderr);
}
