//! Dead letters can be replayed once the cause is fixed, and then the run completes.

mod dropped;
mod reread;

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// A job whose target may be any table with the column `_batch`.
pub(crate) const EVOLVING: &str = "[target]\ntable = \"clicks\"\nschema = \"evolve\"\n";

/// A table that takes the rows of that job and drops them, so that its batches become dead letters.
pub(crate) const DROPS_ROWS: &str = "CREATE TABLE public.clicks (_batch bigint);
    CREATE FUNCTION public.drops() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER drops BEFORE INSERT ON public.clicks FOR EACH ROW EXECUTE FUNCTION public.drops()";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn blocked_run_completes_once_its_dead_letters_are_replayed() {
    let mut pipeline = Pipeline::without_services().await;
    pipeline.job("clicks", EVOLVING, sample::clicks(1_000));
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    // After the request and before the first row, another program creates a table that drops rows.
    pipeline.services[0].kill9().await;
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!((asked.code, asked.stdout.trim()), (Some(0), "daily"));
    let made = sqlx::raw_sql(DROPS_ROWS);
    made.execute(&pipeline.database.pool).await.unwrap();
    pipeline.services[0] = pipeline.service("loader").start().await;
    // Until the start of the run is recorded, a repeated request would send its task again.
    wait_until("the run to begin", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.runs WHERE state = 'running'")
            .await
            == 1
    })
    .await;

    let blocked = pipeline
        .etl(&["run", "clicks", "--run-id", "daily", "--follow"])
        .await;
    assert_eq!(
        blocked.code,
        Some(1),
        "{}\n{}",
        blocked.stdout,
        blocked.stderr
    );
    assert!(
        blocked.stderr.contains("blocked") && blocked.stderr.contains("drops rows there"),
        "{}",
        blocked.stderr
    );
    assert_eq!(pipeline.etl(&["reconcile", "daily"]).await.code, Some(1));
    let listed = pipeline.etl(&["dead", "list", "--json"]).await;
    let dead_letters: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(dead_letters[0]["message_id"], "daily/0/0");
    assert_eq!(dead_letters[0]["stage"], "loader");
    let id = dead_letters[0]["id"].to_string();
    let shown = pipeline.etl(&["dead", "show", &id]).await;
    assert!(
        shown.stdout.contains("etl.valid") && shown.stdout.contains("drops rows there"),
        "{}",
        shown.stdout
    );

    let dropped = sqlx::query("DROP TABLE public.clicks")
        .execute(&pipeline.database.pool)
        .await;
    dropped.unwrap();
    let replayed = pipeline.etl(&["dead", "replay", "--all"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    wait_until("the run to complete", TIMEOUT, async || {
        pipeline.etl(&["reconcile", "daily"]).await.code == Some(0)
    })
    .await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 1_000);

    // A second replay is refused, and changes nothing.
    let ledger = pipeline.ledger().await;
    let again = pipeline.etl(&["dead", "replay", &id]).await;
    assert_eq!((again.code, &*again.stdout), (Some(1), ""));
    assert!(
        again.stderr.contains("was resolved before: replayed by"),
        "{}",
        again.stderr
    );
    assert_eq!(pipeline.ledger().await, ledger);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 1_000);
    assert_eq!(
        pipeline.etl(&["dead", "replay", "4711"]).await.code,
        Some(2)
    );
}
