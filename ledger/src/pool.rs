//! Connections that are kept for the next transaction. A connection from the pool was asked a moment ago whether it works and
//! what its server is, so that a server which became read-only or a standby is left. One that is wrong with its server is
//! closed with all others that are idle.
//!
//! sqlx's own pool connects to one server, hides why it has no connection, and keeps idle connections to a server that was left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::database::{BEGIN_READING, Tx};
use crate::hosts::{CONNECT_TIMEOUT, HOST_TIMEOUT, Hosts, Role, role_of};

/// An idle connection is closed after this time.
const MAX_IDLE: Duration = Duration::from_mins(10);

/// A connection is closed after this time, and its memory on the server with it.
const MAX_AGE: Duration = Duration::from_mins(30);

/// The longest pause before a server that was away a moment ago is tried again.
const MAX_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Pool {
    pub(crate) hosts: Hosts,
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
}

struct Idle {
    connection: PgConnection,
    made: Instant,
    since: Instant,
}

/// A connection of the pool, which is closed when dropped unless it is given back.
pub struct Connected {
    connection: PgConnection,
    made: Instant,
    /// How a transaction that writes begins.
    begin: &'static str,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// A pool of at most so many connections; none is made yet.
    pub(crate) fn new(hosts: Hosts, connections: u32) -> Arc<Self> {
        Arc::new(Self {
            hosts,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(connections as usize)),
        })
    }

    /// A connection to the server that takes writes, for transactions that begin so. A server that is away is waited for a
    /// little.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        begin: &'static str,
    ) -> Result<Connected, sqlx::Error> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned());
        let permit = permit.await.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
        let (connection, made) = match self.usable().await {
            Some(usable) => usable,
            None => (self.connect(deadline).await?, Instant::now()),
        };
        Ok(Connected {
            connection,
            made,
            begin,
            pool: Arc::clone(self),
            _permit: permit,
        })
    }

    /// Makes the first connection now. The error says at once why there is none, or that the address is of no use.
    pub(crate) async fn first(&self) -> Result<Role, sqlx::Error> {
        let session = self.hosts.connect_first().await?;
        let role = session.role;
        self.keep(session.connection, Instant::now());
        Ok(role)
    }

    /// Closes every connection.
    pub(crate) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        for idle in idle {
            timeout(HOST_TIMEOUT, idle.connection.close()).await.ok();
        }
    }

    /// An idle connection that works, to a server that takes writes.
    async fn usable(&self) -> Option<(PgConnection, Instant)> {
        let Idle {
            mut connection,
            made,
            ..
        } = self.idle().pop()?;
        let asked = timeout(HOST_TIMEOUT, role_of(&mut connection)).await;
        if let Ok(Ok(Role::Primary)) = asked {
            return Some((connection, made));
        }
        self.idle().clear();
        None
    }

    async fn connect(&self, deadline: Instant) -> Result<PgConnection, sqlx::Error> {
        let mut pause = Duration::from_millis(10);
        loop {
            let error = match Box::pin(self.hosts.connect()).await {
                Ok(session) => return Ok(session.connection),
                Err(error) => error,
            };
            if !passes(&error) || Instant::now() + pause > deadline {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn keep(&self, connection: PgConnection, made: Instant) {
        let now = Instant::now();
        let mut idle = self.idle();
        idle.retain(|idle| now - idle.since < MAX_IDLE);
        if now - made < MAX_AGE && !self.permits.is_closed() {
            idle.push(Idle {
                connection,
                made,
                since: now,
            });
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error of connecting may be over in a moment: the server starts, stops or has no connection left, or no server
/// takes writes yet.
fn passes(error: &sqlx::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotConnected};
    match error {
        sqlx::Error::Io(error) => matches!(error.kind(), ConnectionRefused | NotConnected),
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("53300" | "57P03"))
        }
        _ => false,
    }
}

impl Connected {
    /// Begins a transaction with the settings that its meaning depends on.
    pub async fn begin(&mut self) -> Result<Tx<'_>, sqlx::Error> {
        self.begin_with(self.begin).await
    }

    /// Begins a transaction that only reads, all of its statements from one snapshot.
    pub async fn begin_reading(&mut self) -> Result<Tx<'_>, sqlx::Error> {
        self.begin_with(BEGIN_READING).await
    }

    pub(crate) async fn begin_with(&mut self, begin: &'static str) -> Result<Tx<'_>, sqlx::Error> {
        let tx = self.connection.begin_with(begin).await?;
        Ok(Tx::new(tx))
    }

    /// Its transaction ended in good order.
    pub fn give_back(self) {
        self.pool.keep(self.connection, self.made);
    }

    /// Takes the connection out of the pool: what the session holds ends with it.
    pub(crate) fn detach(self) -> PgConnection {
        self.connection
    }
}
