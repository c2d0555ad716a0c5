//! A Postgres cluster and databases on it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool};

use super::pooler::as_programs_have_it;
use super::script::Instance;
use super::{block_on_elsewhere, unique_name};

/// A new, empty database on the shared server.
pub async fn database() -> Database {
    shared_postgres().database().await
}

/// The server that `deploy/local/with-servers` started.
pub fn shared_postgres() -> Postgres {
    Postgres(Arc::new(Instance::shared(
        "postgres",
        "ETL_TEST_POSTGRES_DIR",
    )))
}

/// A private server for this test; its start takes some seconds.
pub async fn private_postgres() -> Postgres {
    Postgres(Arc::new(Instance::private("postgres").await))
}

/// A private server with TLS, whose certificate is for 127.0.0.1 and localhost, and of an authority of its own.
pub async fn private_postgres_with_tls() -> Postgres {
    let variables = [("POSTGRES_TLS", OsStr::new("1"))];
    Postgres(Arc::new(
        Instance::private_with("postgres", &variables).await,
    ))
}

/// A Postgres cluster. A private one ends when its last clone and its last database are dropped.
#[derive(Clone, Debug)]
pub struct Postgres(pub(super) Arc<Instance>);

impl Postgres {
    /// The URL of its first database, as a superuser.
    pub fn url(&self) -> String {
        self.0.read("url")
    }

    /// The file with the certificate of the authority of a server with TLS.
    pub fn authority(&self) -> PathBuf {
        self.0.dir().join("ca.pem")
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.0.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills the postmaster, as the kernel's out-of-memory killer would. Private servers only.
    pub async fn kill9(&self) {
        self.0.kill9().await;
    }

    /// Stops it cleanly.
    pub async fn stop(&self) {
        assert!(
            self.0.is_private(),
            "a shared server must not be stopped: other tests use it"
        );
        self.0.run("stop").await;
    }

    /// Restarts it after [`Self::kill9`] or [`Self::stop`], at the same address with the same data.
    pub async fn restart(&self) {
        self.0.run("start").await;
    }

    /// A new, empty database. It is dropped when this is, unless the test failed.
    pub async fn database(&self) -> Database {
        let name = unique_name("test");
        let options: PgConnectOptions = self
            .url()
            .parse()
            .expect("the server's url file holds a URL");
        let mut admin = connect(&options).await;
        // The name consists of letters, digits and underscores.
        let created = admin
            .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await;
        created.unwrap_or_else(|e| panic!("the test server did not create a database: {e}"));
        admin.close().await.ok();
        self.database_named(&name)
    }

    /// A database that exists.
    pub(super) fn database_named(&self, name: &str) -> Database {
        let mut url = url::Url::parse(&self.url()).expect("the server's url file holds a URL");
        url.set_path(name);
        let options: PgConnectOptions = url.as_str().parse().expect("a URL of PostgreSQL");
        let pool = PgPoolOptions::new()
            .max_connections(5)
            // A pool also retries to reach an absent server for this time.
            .acquire_timeout(Duration::from_secs(20))
            .connect_lazy_with(options);
        let url = if self.0.is_private() {
            url.into()
        } else {
            as_programs_have_it(url.as_str())
        };
        Database {
            url,
            name: name.to_owned(),
            pool,
            server: self.clone(),
        }
    }
}

async fn connect(options: &PgConnectOptions) -> PgConnection {
    options
        .connect()
        .await
        .unwrap_or_else(|e| panic!("the test server does not take a connection: {e}"))
}

/// A database, which is dropped when this is, unless the test failed.
#[derive(Debug)]
pub struct Database {
    pub name: String,
    /// The `ETL_DATABASE_URL` of a service. On the shared server it leads through the pooler where there is one.
    pub url: String,
    /// At most five connections to the server itself, opened on demand.
    pub pool: PgPool,
    pub server: Postgres,
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() || self.server.0.is_private() {
            return;
        }
        let (name, options) = (
            self.name.clone(),
            self.server.url().parse::<PgConnectOptions>(),
        );
        block_on_elsewhere(async move {
            if let Ok(mut admin) = options.expect("it was parsed before").connect().await {
                // FORCE ends whatever connection the test left open.
                let drop =
                    sqlx::AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                admin.execute(drop).await.ok();
                admin.close().await.ok();
            }
        });
    }
}
