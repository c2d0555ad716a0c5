//! A PgBouncer in front of a Postgres: of one test, or of all when `deploy/local/with-servers` was told so.

use std::ffi::OsStr;
use std::path::PathBuf;

use url::Url;

use super::postgres::{Database, Postgres};
use super::script::{Instance, variable_of};

/// When PgBouncer takes a connection of the server back from a client.
#[derive(Clone, Copy, Debug)]
pub enum PoolMode {
    Session,
    Transaction,
    Statement,
}

/// A PgBouncer, which ends when this is dropped.
#[derive(Debug)]
pub struct Pooler(Instance);

impl Postgres {
    /// A PgBouncer in front of this server. Only the server's own user can log in.
    pub async fn pooler(&self, mode: PoolMode) -> Pooler {
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        };
        let variables = [
            ("PGBOUNCER_OF", self.0.dir().as_os_str()),
            ("PGBOUNCER_MODE", OsStr::new(mode)),
        ];
        Pooler(Instance::private_with("pgbouncer", &variables).await)
    }
}

impl Pooler {
    /// The `ETL_DATABASE_URL` that leads to a database through this pooler.
    pub fn url_of(&self, database: &Database) -> String {
        through(&database.url, &self.0.read("url"))
    }
}

/// A URL of the shared server as the programs have it: through the pooler, where all tests have one.
pub(super) fn as_programs_have_it(url: &str) -> String {
    let Some(folder) = variable_of("ETL_TEST_POOLER_DIR").map(PathBuf::from) else {
        return url.to_owned();
    };
    let pooler = std::fs::read_to_string(folder.join("url"));
    through(url, pooler.expect("the pooler has a URL").trim())
}

/// A URL with the port of another.
fn through(url: &str, pooler: &str) -> String {
    let parse = |url: &str| Url::parse(url).expect("the URL of a server");
    let mut url = parse(url);
    url.set_port(parse(pooler).port())
        .expect("the URL of a server takes a port");
    url.into()
}
