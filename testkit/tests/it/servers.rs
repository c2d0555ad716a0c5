//! Virtual hosts and databases on the shared servers.

use serde_json::Value;
use testkit::TIMEOUT;
use testkit::http::{Method, StatusCode};
use testkit::servers::{self, Depth};
use testkit::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn vhost_publishes_peeks_and_takes_messages() {
    let vhost = servers::vhost().await;
    vhost.declare("q").await;
    assert_eq!(vhost.ready("q").await, 0);
    for body in ["one", "two", "three"] {
        vhost.publish("q", body.as_bytes()).await;
    }
    assert_eq!(vhost.ready("q").await, 3);
    assert_eq!(vhost.peek_all("q").await.len(), 3);
    wait_until("the statistics to show them", TIMEOUT, async || {
        vhost.depth("q").await
            == Depth {
                ready: 3,
                unacked: 0,
            }
    })
    .await;
    let taken = vhost.take_all("q").await;
    let bodies: Vec<_> = taken
        .iter()
        .map(|m| String::from_utf8_lossy(&m.body).into_owned())
        .collect();
    assert_eq!(bodies, ["one", "two", "three"]);
    assert_eq!(vhost.ready("q").await, 0);
    assert!(!vhost.exists("nowhere").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn vhosts_are_separate_and_deleted_on_drop() {
    let (one, other) = (servers::vhost().await, servers::vhost().await);
    one.declare("q").await;
    assert!(!other.exists("q").await);
    let (path, broker) = (format!("vhosts/{}", one.name), one.broker.clone());
    drop(one);
    let (status, _) = broker.call(Method::GET, &path, Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_separate_and_dropped_on_drop() {
    let (one, other) = (servers::database().await, servers::database().await);
    sqlx::query("CREATE TABLE t AS SELECT 1 AS n")
        .execute(&one.pool)
        .await
        .unwrap();
    assert!(
        sqlx::query("SELECT n FROM t")
            .execute(&other.pool)
            .await
            .is_err()
    );
    let name = one.name.clone();
    drop(one);
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_database WHERE datname = $1")
        .bind(name)
        .fetch_one(&other.pool)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_private_broker_keeps_confirmed_messages() {
    let broker = servers::private_broker().await;
    let vhost = broker.vhost().await;
    vhost.declare("q").await;
    vhost.publish("q", b"kept").await;
    broker.kill9().await;
    assert!(vhost.try_connect().await.is_err());
    broker.restart().await;
    wait_until("the queue to be back with a leader", TIMEOUT, async || {
        vhost.exists("q").await && vhost.ready("q").await == 1
    })
    .await;
    assert_eq!(vhost.take_all("q").await[0].body, b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_private_postgres_keeps_committed_rows() {
    let postgres = servers::private_postgres().await;
    let database = postgres.database().await;
    sqlx::query("CREATE TABLE t AS SELECT 1 AS n")
        .execute(&database.pool)
        .await
        .unwrap();
    postgres.kill9().await;
    assert!(
        sqlx::query("SELECT n FROM t")
            .execute(&database.pool)
            .await
            .is_err()
    );
    postgres.restart().await;
    wait_until("the table to be back", TIMEOUT, async || {
        sqlx::query("SELECT n FROM t")
            .execute(&database.pool)
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_servers_end_with_the_test() {
    let postgres = servers::private_postgres().await;
    let url = postgres.url();
    drop(postgres);
    let address = url
        .rsplit_once('@')
        .unwrap()
        .1
        .split_once('/')
        .unwrap()
        .0
        .to_owned();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_counts_unacked_messages() {
    use lapin::options::BasicGetOptions;
    let vhost = servers::vhost().await;
    vhost.declare("q").await;
    vhost.publish("q", b"held").await;
    let channel = vhost.channel().await;
    let held = channel
        .basic_get("q".into(), BasicGetOptions { no_ack: false })
        .await
        .unwrap();
    assert!(held.is_some());
    assert_eq!(vhost.ready("q").await, 0);
    wait_until("the statistics to show it", TIMEOUT, async || {
        vhost.depth("q").await
            == Depth {
                ready: 0,
                unacked: 1,
            }
    })
    .await;
}
