//! Real servers for tests. [`vhost`] and [`database`] create a virtual host and a database for one test on the servers that
//! `deploy/local/with-servers` started. [`private_broker`], [`private_cluster`] and [`private_postgres`] start instances for one
//! test, which may kill them.

mod broker;
mod cluster;
mod message;
mod pooler;
mod postgres;
mod script;
mod standby;
pub mod stranger;
mod vhost;

pub use broker::{
    Broker, private_broker, private_broker_with, private_broker_without_streams, shared_broker,
};
pub use cluster::{Cluster, private_cluster};
pub use message::Message;
pub use pooler::{PoolMode, Pooler};
pub use postgres::{
    Database, Postgres, database, private_postgres, private_postgres_with_tls, shared_postgres,
};
pub use vhost::{Depth, Vhost, vhost};

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// A name that no other test on this machine has: letters, digits and underscores, short enough for Postgres.
fn unique_name(kind: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{kind}_{}_{}_{count}", std::process::id(), now.as_millis())
}

/// Runs a future to completion from `Drop`, which cannot await.
fn block_on_elsewhere(future: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime can be made").block_on(future);
    });
    // A failed clean-up does not fail the test.
    thread.join().ok();
}
