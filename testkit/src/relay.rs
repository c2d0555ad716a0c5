//! A TCP relay between a service and a server that fails on demand as networks do: silence, a cut, or an answer that is
//! lost after the server has acted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use url::Url;

/// What the relay does with bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything, in both directions.
    Pass,
    /// Forwards nothing and closes nothing; accepts new connections, which stay silent. Bytes sent meanwhile are forwarded when
    /// the mode changes back, as with TCP.
    Blackhole,
    /// Closes every connection, new ones at once.
    Cut,
    /// Forwards what the client sends, and drops what the server answers.
    DropReplies,
}

/// A running relay. Dropping it closes all of its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    /// Grows with each call of `cut_once`, which closes connections that started with another number.
    cuts: watch::Sender<u64>,
    /// The answer to lose.
    lose: Mutex<Option<Lose>>,
    connections: watch::Sender<usize>,
    /// The server that new connections lead to.
    target: watch::Sender<String>,
    /// How long bytes are under way, in each direction.
    delay: watch::Sender<Duration>,
    /// What a client of AMQP says, and what the server hears instead, of the same length.
    instead: Mutex<Vec<(&'static str, &'static str)>>,
}

#[derive(Debug)]
struct Lose {
    pattern: Vec<u8>,
    /// Each time, not once.
    always: bool,
}

impl Relay {
    /// Relays from a free port of 127.0.0.1 to `target`, such as `127.0.0.1:5432`. The server need not run yet.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("127.0.0.1 has a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            mode: watch::Sender::new(Mode::Pass),
            cuts: watch::Sender::new(0),
            lose: Mutex::new(None),
            connections: watch::Sender::new(0),
            target: watch::Sender::new(target.to_owned()),
            delay: watch::Sender::new(Duration::ZERO),
            instead: Mutex::new(Vec::new()),
        });
        #[expect(
            clippy::disallowed_methods,
            reason = "the relay belongs to the test, which aborts it in Drop"
        )]
        let server = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            server,
        }
    }

    /// Relays to the server of a URL such as `amqp://user:password@host:port/vhost`.
    pub async fn to_url(url: &str) -> Self {
        Self::start(&address_of(url)).await
    }

    /// The same URL, through the relay.
    pub fn url_for(&self, original: &str) -> String {
        let mut url = Url::parse(original).expect("a URL of a server");
        url.set_host(Some("127.0.0.1"))
            .expect("a URL with a host takes another");
        url.set_port(Some(self.address.port()))
            .expect("a URL with a host takes a port");
        url.into()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the mode, for open and future connections.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// New connections lead to the server of another URL, as after a change of a name in DNS; open ones stay.
    pub fn lead_to(&self, url: &str) {
        self.shared.target.send_replace(address_of(url));
    }

    /// Holds what is sent up for this time, in each direction, as a server far away does.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay.send_replace(delay);
    }

    /// A server of AMQP that new connections lead to hears another text of the same length.
    pub fn say_instead(&self, pairs: &[(&'static str, &'static str)]) {
        assert!(pairs.iter().all(|(one, other)| one.len() == other.len()));
        *self.instead() = pairs.to_vec();
    }

    fn instead(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, &'static str)>> {
        let instead = &self.shared.instead;
        instead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the open connections; new ones follow the mode.
    pub fn cut_once(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Drops the next bytes from the server that contain `pattern`, once, and closes their connection: the server has acted,
    /// and the client gets no answer. A lost COMMIT of Postgres: `b"COMMIT\0"`.
    pub fn lose_reply(&self, pattern: &[u8]) {
        self.lose_what_has(pattern, false);
    }

    /// [`Self::lose_reply`], each time, until [`Self::lose_none`].
    pub fn lose_every_reply(&self, pattern: &[u8]) {
        self.lose_what_has(pattern, true);
    }

    /// Loses no reply from now on.
    pub fn lose_none(&self) {
        *self.lose() = None;
    }

    fn lose_what_has(&self, pattern: &[u8], always: bool) {
        *self.lose() = Some(Lose {
            pattern: pattern.to_vec(),
            always,
        });
    }

    /// Whether the reply that [`Self::lose_reply`] names has been lost.
    pub fn has_lost_reply(&self) -> bool {
        self.lose().is_none()
    }

    /// How many connections are open now.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    fn lose(&self) -> std::sync::MutexGuard<'_, Option<Lose>> {
        self.shared
            .lose
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// `host:port` of a URL.
fn address_of(url: &str) -> String {
    let url = Url::parse(url).expect("a URL of a server");
    let host = url.host_str().expect("the URL of a server has a host");
    let port = url.port().expect("the URL of a test's server has a port");
    format!("{host}:{port}")
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let shared = Arc::clone(&shared);
        let target = shared.target.borrow().clone();
        connections.spawn(async move {
            shared.connections.send_modify(|open| *open += 1);
            relay(client, &target, &shared).await;
            shared.connections.send_modify(|open| *open -= 1);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Relays one connection until either side or the relay closes it.
async fn relay(client: TcpStream, target: &str, shared: &Shared) {
    let (mut modes, mut cuts) = (shared.mode.subscribe(), shared.cuts.subscribe());
    let talk = async {
        // In a black hole there is not even a connection to the server.
        modes.wait_for(|mode| *mode != Mode::Blackhole).await.ok();
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        tokio::select! {
            () = pump(from_client, to_server, shared, Direction::ToServer) => {}
            () = pump(from_server, to_client, shared, Direction::ToClient) => {}
        }
    };
    let mut cut_mode = shared.mode.subscribe();
    tokio::select! {
        _ = cut_mode.wait_for(|mode| *mode == Mode::Cut) => {}
        _ = cuts.changed() => {}
        () = talk => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    direction: Direction,
) {
    let mut modes = shared.mode.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    // The end of the forwarded bytes, since a pattern may span two reads.
    let mut tail = Vec::new();
    let instead = match direction {
        Direction::ToServer => shared
            .instead
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone(),
        Direction::ToClient => Vec::new(),
    };
    let mut held = Vec::new();
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let Ok(mode) = modes
            .wait_for(|mode| *mode != Mode::Blackhole)
            .await
            .map(|mode| *mode)
        else {
            return;
        };
        if direction == Direction::ToClient {
            if mode == Mode::DropReplies {
                continue;
            }
            let passed_on = tail.len();
            tail.extend_from_slice(&buffer[..length]);
            if is_to_be_lost(shared, &tail, passed_on) {
                return;
            }
            tail.drain(..tail.len().saturating_sub(64));
        }
        let delay = *shared.delay.borrow();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let sent = if instead.is_empty() {
            to.write_all(&buffer[..length]).await
        } else {
            held.extend_from_slice(&buffer[..length]);
            let frames = whole_frames(&mut held);
            to.write_all(&replaced(frames, &instead)).await
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Takes the protocol header and the frames of AMQP that have arrived wholly: type, channel, length, payload, end.
fn whole_frames(held: &mut Vec<u8>) -> Vec<u8> {
    let mut end = 0;
    loop {
        let rest = &held[end..];
        let length = match rest {
            [b'A', b'M', b'Q', b'P', ..] => 8,
            [_, _, _, a, b, c, d, ..] => 8 + u32::from_be_bytes([*a, *b, *c, *d]) as usize,
            _ => break,
        };
        if rest.len() < length {
            break;
        }
        end += length;
    }
    held.drain(..end).collect()
}

fn replaced(mut bytes: Vec<u8>, pairs: &[(&str, &str)]) -> Vec<u8> {
    for (one, other) in pairs {
        let (one, other) = (one.as_bytes(), other.as_bytes());
        let places: Vec<_> = (0..bytes.len())
            .filter(|place| bytes[*place..].starts_with(one))
            .collect();
        for place in places {
            bytes[place..place + one.len()].copy_from_slice(other);
        }
    }
    bytes
}

/// True for bytes that contain the pattern, once or each time. The pattern must end behind the bytes that were forwarded
/// already: an answer that the client has cannot be lost.
fn is_to_be_lost(shared: &Shared, bytes: &[u8], passed_on: usize) -> bool {
    let mut lose = shared.lose.lock().unwrap_or_else(PoisonError::into_inner);
    let has = |pattern: &[u8]| {
        let start = (passed_on + 1).saturating_sub(pattern.len());
        let mut windows = bytes[start..].windows(pattern.len());
        windows.any(|window| window == pattern)
    };
    let is_lost = lose.as_ref().is_some_and(|lose| has(&lose.pattern));
    if is_lost {
        lose.take_if(|lose| !lose.always);
    }
    is_lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TIMEOUT, wait_until};

    /// A server that answers each chunk with itself and counts what it got.
    async fn echo() -> (String, Arc<Mutex<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let received = Arc::new(Mutex::new(0));
        let count = Arc::clone(&received);
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                        *count.lock().unwrap() += length;
                        stream.write_all(&buffer[..length]).await.ok();
                    }
                });
            }
        });
        (address, received)
    }

    /// What comes back for `text`: nothing for a closed connection.
    async fn said(stream: &mut TcpStream, text: &str) -> String {
        stream.write_all(text.as_bytes()).await.ok();
        heard(stream).await
    }

    async fn heard(stream: &mut TcpStream) -> String {
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(TIMEOUT, stream.read(&mut buffer)).await;
        let read = read.expect("bytes or an end come").unwrap_or(0);
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    /// Whether nothing comes for a while.
    async fn is_silent(stream: &mut TcpStream) -> bool {
        let while_ = Duration::from_millis(300);
        tokio::time::timeout(while_, stream.readable())
            .await
            .is_err()
    }

    #[tokio::test]
    async fn pass_forwards_and_cut_closes() {
        let (server, _) = echo().await;
        let relay = Relay::start(&server).await;
        let mut one = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(said(&mut one, "a").await, "a");
        relay.cut_once();
        assert_eq!(heard(&mut one).await, "");
        let mut two = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(said(&mut two, "b").await, "b");
        relay.set(Mode::Cut);
        assert_eq!(heard(&mut two).await, "");
        let mut three = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(heard(&mut three).await, "");
        wait_until("all to be closed", TIMEOUT, async || {
            relay.connections() == 0
        })
        .await;
    }

    #[tokio::test]
    async fn blackhole_delays_bytes_until_the_mode_changes() {
        let (server, received) = echo().await;
        let relay = Relay::start(&server).await;
        let mut old = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(said(&mut old, "a").await, "a");
        relay.set(Mode::Blackhole);
        old.write_all("b".as_bytes()).await.unwrap();
        assert!(is_silent(&mut old).await);
        let mut new = TcpStream::connect(relay.address()).await.unwrap();
        new.write_all("c".as_bytes()).await.unwrap();
        assert!(is_silent(&mut new).await);
        assert_eq!(*received.lock().unwrap(), 1);
        relay.set(Mode::Pass);
        assert_eq!(heard(&mut old).await, "b");
        assert_eq!(heard(&mut new).await, "c");
    }

    #[tokio::test]
    async fn drop_replies_hides_answers_from_the_client() {
        let (server, received) = echo().await;
        let relay = Relay::start(&server).await;
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        relay.set(Mode::DropReplies);
        stream.write_all("abc".as_bytes()).await.unwrap();
        wait_until("the server to act", TIMEOUT, async || {
            *received.lock().unwrap() == 3
        })
        .await;
        assert!(is_silent(&mut stream).await);
    }

    #[tokio::test]
    async fn lose_reply_drops_one_answer_and_its_connection() {
        let (server, received) = echo().await;
        let relay = Relay::start(&server).await;
        relay.lose_reply(b"COMMIT");
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(said(&mut stream, "INSERT CO").await, "INSERT CO");
        assert_eq!(said(&mut stream, "MMIT").await, "");
        assert_eq!(*received.lock().unwrap(), 13);
        assert!(relay.has_lost_reply());
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(said(&mut stream, "COMMIT").await, "COMMIT");
        // Bytes that the client has cannot be lost.
        relay.lose_reply(b"COMMIT");
        assert_eq!(said(&mut stream, "next").await, "next");
        assert_eq!(said(&mut stream, "COMMIT").await, "");
    }

    #[tokio::test]
    async fn lose_every_reply_ends_with_lose_none() {
        let (server, _) = echo().await;
        let relay = Relay::start(&server).await;
        relay.lose_every_reply(b"BEGIN");
        for _ in 0..2 {
            let mut stream = TcpStream::connect(relay.address()).await.unwrap();
            assert_eq!(said(&mut stream, "BEGIN").await, "");
        }
        relay.lose_none();
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(said(&mut stream, "BEGIN").await, "BEGIN");
    }

    #[tokio::test]
    async fn url_for_replaces_host_and_port() {
        let relay = Relay::to_url("amqp://guest:guest@127.0.0.1:5/%2f").await;
        let port = relay.address().port();
        assert_eq!(
            relay.url_for("amqp://guest:guest@localhost:5/%2f"),
            format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
        );
    }
}
