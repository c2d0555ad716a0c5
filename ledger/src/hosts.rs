//! The servers that the URL of a database names, and the one of them that takes writes.
//!
//! With one host, the connection is to that host. With several (a primary and its standbys), every one is asked at once what it
//! is, and the one that takes writes is connected to; a server that does not answer delays that by some seconds at most. The next
//! connection goes to the same server without asking the others, for as long as it takes writes. An old primary that came back
//! takes writes, too: the server with the newest timeline is preferred, since each promotion begins a new one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::{Address, name};
use crate::encryption;
use crate::error::{Class, cause, classify};
use crate::password::Password;
use crate::pooler;

/// The longest that connecting may take, where there is one host.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest that one of several hosts may take to answer.
pub(crate) const HOST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server of the last connection may take before the others are asked, too.
const HEAD_START: Duration = Duration::from_secs(2);

/// How long the other hosts may take to answer once one takes writes.
const GRACE: Duration = Duration::from_secs(1);

/// How often a transaction that takes long looks whether another server has taken the place of its own.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows another server.
    Standby,
    /// It follows nobody, and `default_transaction_read_only` is on.
    ReadOnly,
}

/// A connection, and what its server is.
pub(crate) struct Session {
    pub(crate) connection: PgConnection,
    pub(crate) role: Role,
    /// Which of the hosts it is on.
    host: usize,
}

/// The servers of a database.
pub(crate) struct Hosts {
    each: Vec<PgConnectOptions>,
    password: Password,
    /// The one of the last connection, where it took writes.
    last: AtomicUsize,
    /// Whether a connection to a standby will do while no server takes writes.
    reads_standby: bool,
}

const NONE: usize = usize::MAX;

impl Hosts {
    pub(crate) fn new(address: &Address, application: &str, reads_standby: bool) -> Self {
        let each = address.hosts().iter().cloned();
        Self {
            each: each
                .map(|options| options.application_name(application))
                .collect(),
            password: address.password().clone(),
            last: NONE.into(),
            reads_standby,
        }
    }

    /// A connection to the server that takes writes; to the only one, whatever it is.
    pub(crate) async fn connect(&self) -> Result<Session, sqlx::Error> {
        if self.each.len() > 1 {
            return self.find().await;
        }
        match self.open(0, CONNECT_TIMEOUT).await {
            Err(error) if is_timeout(&error) => Err(sqlx::Error::PoolTimedOut),
            opened => opened,
        }
    }

    /// [`Self::connect`] for the first connection of a process, which refuses an address where sessions are not the clients' own.
    pub(crate) async fn connect_first(&self) -> Result<Session, sqlx::Error> {
        let mut session = self.connect().await?;
        let holder = self.open(session.host, CONNECT_TIMEOUT).await?;
        let examined = pooler::examine(holder.connection, &mut session.connection);
        let sessions = match timeout(CONNECT_TIMEOUT, examined).await {
            Ok(sessions) => sessions?,
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        sessions.require_own(&name(&self.each[session.host]))?;
        Ok(session)
    }

    /// A session on one host. The time that its password takes does not count.
    async fn open(&self, host: usize, limit: Duration) -> Result<Session, sqlx::Error> {
        let options = &self.each[host];
        let password = self.password.ask(options).await?;
        let error = match attempt(options, password.as_deref(), limit).await {
            Ok((connection, role)) => {
                return Ok(Session {
                    connection,
                    role,
                    host,
                });
            }
            Err(error) => error,
        };
        if !is_login(&error) {
            return Err(encryption::explain(error, options));
        }
        if let Some(password) = self.password.renewed(password.as_deref()).await
            && let Ok((connection, role)) = attempt(options, Some(&password), limit).await
        {
            return Ok(Session {
                connection,
                role,
                host,
            });
        }
        match self.password {
            Password::Given => Err(error),
            Password::File(_) | Password::Command(_) => {
                let origin = self.password.origin().await;
                Err(sqlx::Error::Configuration(
                    format!("{}{origin}", cause(&error)).into(),
                ))
            }
        }
    }

    async fn find(&self) -> Result<Session, sqlx::Error> {
        let last = self.last.load(Ordering::Relaxed);
        if last != NONE
            && let Ok(session) = self.open(last, HEAD_START).await
            && session.role == Role::Primary
        {
            return Ok(session);
        }
        let mut answers = self.look().await;
        let primaries: Vec<_> = (0..answers.len())
            .filter(|&index| is_primary(&answers[index]))
            .collect();
        let chosen = match primaries[..] {
            [] => None,
            [only] => Some(only),
            _ => Some(self.newest(&primaries, &mut answers).await),
        };
        self.last.store(chosen.unwrap_or(NONE), Ordering::Relaxed);
        let reads = || answers.iter().position(Result::is_ok);
        let chosen = chosen.or_else(|| reads().filter(|_| self.reads_standby));
        match chosen {
            Some(index) => answers.swap_remove(index),
            None => Err(self.no_primary(answers)),
        }
    }

    /// Returns once another server takes writes and that of the last connection before this call does not. A machine that is
    /// gone ends no connection, and the answer to a statement would be waited for in vain.
    pub(crate) fn replaced(&self) -> impl Future<Output = ()> {
        let mut known = self.last.load(Ordering::Relaxed);
        async move {
            if self.each.len() == 1 {
                return std::future::pending().await;
            }
            loop {
                tokio::time::sleep(WATCH_INTERVAL).await;
                if known == NONE {
                    known = self.last.load(Ordering::Relaxed);
                }
                let answers = self.look().await;
                let is_primary = |index| answers.get(index).is_some_and(is_primary);
                if !is_primary(known) && (0..answers.len()).any(is_primary) {
                    return;
                }
            }
        }
    }

    /// Asks every host at once, and has an answer for each, in their order.
    async fn look(&self) -> Vec<Result<Session, sqlx::Error>> {
        let silent = || Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
        let mut answers: Vec<_> = self.each.iter().map(|_| silent()).collect();
        let mut asked: FuturesUnordered<_> = (0..self.each.len())
            .map(|index| async move { (index, self.open(index, HOST_TIMEOUT).await) })
            .collect();
        let mut deadline = Instant::now() + HOST_TIMEOUT + self.password.limit();
        while let Ok(Some((index, answer))) = timeout_at(deadline, asked.next()).await {
            if is_primary(&answer) {
                deadline = deadline.min(Instant::now() + GRACE);
            }
            answers[index] = answer;
        }
        answers
    }

    /// Which of several servers that take writes was promoted last.
    async fn newest(
        &self,
        primaries: &[usize],
        answers: &mut [Result<Session, sqlx::Error>],
    ) -> usize {
        let mut timelines = Vec::new();
        for &index in primaries {
            let timeline = match &mut answers[index] {
                Ok(session) => timeline(&mut session.connection).await.unwrap_or_default(),
                Err(_) => 0,
            };
            timelines.push((timeline, index));
        }
        // Of equal ones, the first in the URL.
        timelines.sort_by_key(|&(timeline, index)| (std::cmp::Reverse(timeline), index));
        let named = |index: usize| name(&self.each[index]);
        let others: Vec<_> = timelines[1..].iter().map(|&(_, at)| named(at)).collect();
        let chosen = timelines[0].1;
        tracing::warn!(
            server = named(chosen),
            others = others.join(", "),
            "several servers of ETL_DATABASE_URL take writes, and the one that was promoted last is used; stop the others, which may be an old primary"
        );
        chosen
    }

    /// What each server is, by its host and port.
    pub(crate) async fn roles(&self) -> Vec<(String, Result<Role, sqlx::Error>)> {
        let names = self.each.iter().map(name);
        let answers = self.look().await.into_iter();
        names.zip(answers.map(|answer| Ok(answer?.role))).collect()
    }

    /// Why there is no server to write to, by host.
    fn no_primary(&self, mut answers: Vec<Result<Session, sqlx::Error>>) -> sqlx::Error {
        let is_configuration = |answer: &Result<Session, _>| matches!(answer, Err(error) if classify(error) == Class::Configuration);
        if answers.iter().all(is_configuration)
            && let Some(Err(error)) = answers.pop()
        {
            return error;
        }
        let why = self.each.iter().zip(answers).map(|(options, answer)| {
            let why = match answer {
                Ok(session) => session.role.name().to_owned(),
                Err(error) => unreachable(&error),
            };
            format!("{} {why}", name(options))
        });
        let why: Vec<_> = why.collect();
        let sentence = format!("no server takes writes: {}", why.join(", "));
        sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::NotConnected,
            sentence,
        ))
    }
}

fn is_primary(answer: &Result<Session, sqlx::Error>) -> bool {
    matches!(answer, Ok(session) if session.role == Role::Primary)
}

impl Role {
    /// The end of a sentence that begins with the server.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "is the primary",
            Self::Standby => "is a standby",
            Self::ReadOnly => "is read-only (default_transaction_read_only is on)",
        }
    }
}

/// Why a server has no role: the end of a sentence that begins with the server.
pub fn unreachable(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            "does not answer".to_owned()
        }
        error => format!("cannot be used ({})", cause(error)),
    }
}

/// A connection within so much time, and what its server is.
async fn attempt(
    options: &PgConnectOptions,
    password: Option<&str>,
    limit: Duration,
) -> Result<(PgConnection, Role), sqlx::Error> {
    let connected = async {
        let mut connection = match password {
            Some(password) => PgConnection::connect_with(&options.clone().password(password)).await,
            None => PgConnection::connect_with(options).await,
        }?;
        let role = role_of(&mut connection).await?;
        Ok((connection, role))
    };
    match timeout(limit, connected).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

fn is_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// Whether the server refused user or password. PgBouncer says it with another SQLSTATE.
fn is_login(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    let code = error.code().unwrap_or_default();
    code.starts_with("28") || (code == "08P01" && error.message().contains("authentication failed"))
}

/// What a session's server is now, in one round trip. It also shows that the connection works.
pub(crate) async fn role_of(connection: &mut PgConnection) -> Result<Role, sqlx::Error> {
    let row = sqlx::raw_sql(
        "SELECT pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool, pg_catalog.pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (_, true) => Role::Standby,
        (true, false) => Role::ReadOnly,
        (false, false) => Role::Primary,
    })
}

/// The timeline that a primary writes.
async fn timeline(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let select =
        "SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint";
    let asked = sqlx::raw_sql(select).fetch_one(connection);
    match timeout(HEAD_START, asked).await {
        Ok(row) => row?.try_get(0),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}
