//! A forward proxy as companies have: it tunnels (CONNECT) to one server, whatever the name, remembers what it was asked, and
//! may demand a password.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;

use crate::listener::{ANY, Listener};

struct Shared {
    target: SocketAddr,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
    asked: Mutex<Vec<String>>,
}

/// A running proxy. Dropping it closes all of its connections.
pub struct Proxy {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts one whose tunnels lead to `target`.
    pub async fn start(target: SocketAddr) -> Self {
        Self::with(target, None).await
    }

    /// The same, for clients that send this `Proxy-Authorization`; the others get 407.
    pub async fn with_authorization(target: SocketAddr, authorization: &str) -> Self {
        Self::with(target, Some(authorization.to_owned())).await
    }

    async fn with(target: SocketAddr, authorization: Option<String>) -> Self {
        let shared = Arc::new(Shared {
            target,
            authorization,
            asked: Mutex::default(),
        });
        let of_connections = Arc::clone(&shared);
        let handle = move |stream| {
            let shared = Arc::clone(&of_connections);
            // An error here is a client that went away.
            async move { drop(tunnel(stream, &shared).await) }
        };
        let listener = Listener::start(ANY, handle).await;
        Self { listener, shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The first line of every request so far.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.shared.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn tunnel(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let is_tunnel = line.starts_with("CONNECT ");
    shared
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(line);
    if !is_tunnel {
        let refused = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        return client.write_all(refused).await;
    }
    let is_permitted = shared.authorization.as_ref().is_none_or(|wanted| {
        let values = head.lines().filter_map(|line| line.split_once(": "));
        let mut values =
            values.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"));
        values.any(|(_, value)| value == wanted)
    });
    if !is_permitted {
        let refused = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refused).await;
    }
    let mut server = TcpStream::connect(shared.target).await?;
    let opened = b"HTTP/1.1 200 Connection established\r\n\r\n";
    client.write_all(opened).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
