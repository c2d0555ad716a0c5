//! What a connection finds out about the address before it is used: a pooler that lends sessions is refused, one that gives them
//! away is not.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use ledger::{Address, Class, Store, cause, classify};
use sqlx::{ConnectOptions as _, Executor as _};
use testkit::servers::{PoolMode, database, shared_postgres};

async fn first(url: &str) -> Result<(), sqlx::Error> {
    let address = Address::new(&url.parse().unwrap()).unwrap();
    let store = Store::new(&address, "test", 2);
    store.connect().await.map(drop)
}

fn assert_refused(answer: Result<(), sqlx::Error>) {
    let error = answer.unwrap_err();
    let said = cause(&error);
    assert_eq!(classify(&error), Class::Configuration, "{said}");
    assert!(said.contains("use the direct address"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_lends_sessions_is_refused() {
    let database = database().await;
    let pooler = shared_postgres().pooler(PoolMode::Statement).await;
    assert_refused(first(&pooler.url_of(&database)).await);
    let pooler = shared_postgres().pooler(PoolMode::Transaction).await;
    let url = pooler.url_of(&database);
    assert_refused(first(&url).await);
    // With sessions of others in the pool, the two of a look have two servers most of the time.
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    let options = options.extra_float_digits(None);
    let stop = AtomicBool::new(false);
    let others = (0..6).map(async |_| {
        let mut other = options.connect().await.unwrap();
        while !stop.load(Ordering::Relaxed) {
            other
                .execute(sqlx::raw_sql("SELECT pg_sleep(0.002)"))
                .await
                .unwrap();
        }
    });
    let looks = async {
        for _ in 0..20 {
            assert_refused(first(&url).await);
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(others), looks);
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_gives_sessions_away_and_a_server_are_used() {
    let database = database().await;
    let pooler = shared_postgres().pooler(PoolMode::Session).await;
    for url in [pooler.url_of(&database), database.url.clone()] {
        for answer in join_all((0..10).map(|_| first(&url))).await {
            answer.unwrap();
        }
    }
}
