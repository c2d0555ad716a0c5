//! A standby of a private Postgres: streaming replication, cut and resumed by command, and promotion.

use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::postgres::{Database, Postgres};
use super::script::Instance;
use crate::{TIMEOUT, wait_until};

impl Postgres {
    /// A hot standby of this server, which follows it asynchronously.
    pub async fn standby(&self) -> Self {
        let variables = [("POSTGRES_STANDBY_OF", self.0.dir().as_os_str())];
        let standby = Self(Arc::new(
            Instance::private_with("postgres", &variables).await,
        ));
        standby.await_streaming().await;
        standby
    }

    /// One statement as a superuser, on a connection of its own.
    pub async fn execute(&self, sql: &str) {
        self.ask(sql).await;
    }

    /// Whether the answer to a query is true.
    pub async fn holds(&self, sql: &str) -> bool {
        self.ask(sql).await == "t"
    }

    /// The first value of the answer as text, empty for none or NULL.
    async fn ask(&self, sql: &str) -> String {
        let options: PgConnectOptions = self.url().parse().expect("a URL of PostgreSQL");
        let asked = async {
            let mut connection = options.connect().await?;
            let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
                .fetch_all(&mut connection)
                .await?;
            connection.close().await.ok();
            Ok::<_, sqlx::Error>(rows)
        };
        let rows = asked.await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let value = rows.first().map(|row| {
            use sqlx::{Row as _, ValueRef as _};
            let value = row.try_get_raw(0).expect("a column");
            let text = (!value.is_null()).then(|| value.as_str().expect("a text").to_owned());
            text.unwrap_or_default()
        });
        value.unwrap_or_default()
    }

    /// Makes every COMMIT wait for a standby, or none. Returns when new transactions do so.
    pub async fn synchronous(&self, is_synchronous: bool) {
        let names = if is_synchronous { "*" } else { "" };
        self.set("synchronous_standby_names", names).await;
        if is_synchronous {
            let state = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
            wait_until("a synchronous standby", TIMEOUT, async || {
                self.holds(state).await
            })
            .await;
        }
    }

    /// Sets a parameter that needs no restart, and waits until new sessions have it.
    pub async fn set(&self, name: &str, value: &str) {
        self.execute(&format!("ALTER SYSTEM SET {name} = '{value}'"))
            .await;
        self.execute("SELECT pg_reload_conf()").await;
        let shown = format!("SHOW {name}");
        wait_until(&shown, TIMEOUT, async || self.ask(&shown).await == value).await;
    }

    /// Cuts this standby off from its primary. What the primary writes from now on is not here.
    pub async fn cut(&self) -> Cut {
        let primary = self.ask("SHOW primary_conninfo").await;
        self.set("primary_conninfo", "").await;
        let receives = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)";
        wait_until("the standby to be cut off", TIMEOUT, async || {
            !self.holds(receives).await
        })
        .await;
        Cut { primary }
    }

    /// Lets this standby follow its primary again, and waits until it does.
    pub async fn follow(&self, cut: Cut) {
        self.set("primary_conninfo", &cut.primary).await;
        self.await_streaming().await;
    }

    async fn await_streaming(&self) {
        let streams = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";
        wait_until("the standby to stream", TIMEOUT, async || {
            self.holds(streams).await
        })
        .await;
    }

    /// Waits until this standby has replayed what the primary has written so far.
    pub async fn await_caught_up(&self, primary: &Self) {
        let written = primary.ask("SELECT pg_current_wal_lsn()").await;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        wait_until("the standby to catch up", TIMEOUT, async || {
            self.holds(&replayed).await
        })
        .await;
    }

    /// Makes this standby a primary.
    pub async fn promote(&self) {
        assert!(
            self.holds("SELECT pg_promote()").await,
            "the standby was not promoted"
        );
    }

    /// The database of the same name here: on a standby, and after its promotion.
    pub fn copy_of(&self, database: &Database) -> Database {
        self.database_named(&database.name)
    }
}

/// The way back of a standby that was cut off.
#[derive(Debug)]
pub struct Cut {
    primary: String,
}
