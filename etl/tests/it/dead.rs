//! What was dead-lettered can be sent again once the cause is mended, and then the run completes.

mod dropped;
mod reread;

use testkit::PATIENCE;
use testkit::cloud::sample;
use testkit::line::Line;
use testkit::wait_until;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn blocked_run_completes_once_its_dead_letters_are_replayed() {
    let mut line = Line::without_services().await;
    line.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(1_000),
    );
    for name in ["loader", "transformer", "extractor"] {
        let service = line.service(name).start().await;
        line.services.push(service);
    }
    // After the run was asked for, and before its first row: somebody makes a table that does not fit.
    line.services[0].kill9().await;
    let asked = line.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!((asked.code, asked.stdout.trim()), (Some(0), "daily"));
    let made = sqlx::query("CREATE TABLE public.clicks (somebody_elses text)");
    made.execute(&line.database.pool).await.unwrap();
    line.services[0] = line.service("loader").start().await;
    // Before it is noted that the run has begun it would be sent once more, by whoever asks again.
    wait_until("the run to begin", PATIENCE, async || {
        line.number("SELECT count(*) FROM etl.runs WHERE state = 'running'")
            .await
            == 1
    })
    .await;

    let blocked = line
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
        blocked.stderr.contains("blocked") && blocked.stderr.contains("ALTER TABLE"),
        "{}",
        blocked.stderr
    );
    assert_eq!(line.etl(&["reconcile", "daily"]).await.code, Some(1));
    let listed = line.etl(&["dead", "list", "--json"]).await;
    let letters: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(letters[0]["message_id"], "daily/0/0");
    assert_eq!(letters[0]["stage"], "loader");
    let id = letters[0]["id"].to_string();
    let shown = line.etl(&["dead", "show", &id]).await;
    assert!(
        shown.stdout.contains("etl.valid") && shown.stdout.contains("ALTER TABLE"),
        "{}",
        shown.stdout
    );

    let dropped = sqlx::query("DROP TABLE public.clicks")
        .execute(&line.database.pool)
        .await;
    dropped.unwrap();
    let replayed = line.etl(&["dead", "replay", "--all"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    wait_until("the run to complete", PATIENCE, async || {
        line.etl(&["reconcile", "daily"]).await.code == Some(0)
    })
    .await;
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 1_000);

    // Sent once more, they change nothing.
    let books = line.books().await;
    assert_eq!(line.etl(&["dead", "replay", &id]).await.code, Some(0));
    wait_until("the duplicate to be refused", PATIENCE, async || {
        line.counted(&line.services[0], "result=\"duplicate\"")
            .await
            >= 1.0
    })
    .await;
    assert_eq!(line.books().await, books);
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 1_000);
    assert_eq!(line.etl(&["dead", "replay", "4711"]).await.code, Some(2));
}
