//! Loaders killed at critical points, one after the other, with runs of every mode: the next loader continues, and the
//! result is the same.

use common::message::Message;
use common::queue::{Connection, Outgoing, Publisher, Topology, declare};
use testkit::TIMEOUT;
use testkit::process::Service;
use testkit::servers::{Database, Vhost, vhost};
use testkit::wait_until;

use crate::modes::setups;
use crate::support::{extracted, ledger_database, text, url};

fn sent(message: &impl Message) -> Outgoing {
    Outgoing::of(message).unwrap()
}

fn service(database: &Database, vhost: &Vhost) -> Service {
    Service::new("loader")
        .env("ETL_DATABASE_URL", &database.url)
        .env("ETL_AMQP_URL", &vhost.amqp_url)
}

#[tokio::test]
async fn loaders_killed_at_any_point_leave_the_same_table_in_every_mode() {
    common::service::install_tls();
    let (database, vhost) = (ledger_database().await, vhost().await);
    let broker = Connection::open(&url(&vhost.amqp_url), "test")
        .await
        .unwrap();
    declare(&broker, Topology::default()).await.unwrap();
    let mut publisher = Publisher::open(&broker).await.unwrap();
    for setup in setups() {
        let (run, batches) = setup.prepared(&database.pool, "killed").await;
        let mut messages: Vec<_> = batches.iter().map(sent).collect();
        messages.insert(1, sent(&extracted(&run, 3, 8)));
        publisher.publish(&messages).await.unwrap();
    }
    // Within the rows of a batch, before and after its commit; and in the transaction that commits a run: before its
    // first change, after the last one, and after the commit.
    for point in [
        "mid_copy@3",
        "before_commit@3",
        "after_commit@2",
        "before_run_commit",
        "mid_run_commit",
        "before_run_commit@2",
        "after_run_commit@2",
    ] {
        let mut loader = service(&database, &vhost)
            .env("ETL_FAILPOINT", &format!("{point}=exit"))
            .spawn();
        let status = loader.wait(TIMEOUT).await;
        assert_eq!(status.code(), Some(99), "{point}\n{}", loader.log());
    }
    let _loader = service(&database, &vhost).start().await;
    let open = "SELECT count(*) FROM etl.runs WHERE state <> 'completed'";
    wait_until("every run to complete", TIMEOUT, async || {
        text(&database.pool, open).await == "0"
    })
    .await;
    for setup in setups() {
        setup.assert_loaded(&database.pool, "killed").await;
    }
    wait_until("the staging tables to be dropped", TIMEOUT, async || {
        let left = "SELECT count(*) FROM pg_tables WHERE schemaname = 'etl_staging'";
        text(&database.pool, left).await == "0"
    })
    .await;
    assert_eq!(
        text(&database.pool, "SELECT count(*) FROM etl.dead_letters").await,
        "0"
    );
}

/// The sweep of an idle loader.
#[tokio::test]
async fn approved_run_is_committed_without_a_message() {
    common::service::install_tls();
    let (database, vhost) = (ledger_database().await, vhost().await);
    let broker = Connection::open(&url(&vhost.amqp_url), "test")
        .await
        .unwrap();
    declare(&broker, Topology::default()).await.unwrap();
    let _loader = service(&database, &vhost).start().await;
    let mut setup = setups().remove(0);
    setup.target.max_rejected = Some(common::job::MaxRejected::Rows(0));
    let (run, batches) = setup.prepared(&database.pool, "held").await;
    let mut messages: Vec<_> = batches.iter().map(sent).collect();
    messages.push(sent(&extracted(&run, 3, 8)));
    let mut publisher = Publisher::open(&broker).await.unwrap();
    publisher.publish(&messages).await.unwrap();
    let state = "SELECT state FROM etl.runs";
    wait_until("the run to be held", TIMEOUT, async || {
        text(&database.pool, state).await == "held"
    })
    .await;
    crate::support::approved(&database.pool, &run).await;
    wait_until("the run to be committed", TIMEOUT, async || {
        text(&database.pool, state).await == "completed"
    })
    .await;
    setup.assert_loaded(&database.pool, "held").await;
}
