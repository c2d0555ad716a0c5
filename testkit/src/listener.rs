//! A server of a test: it accepts connections until it is dropped, and all of its connections with it.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A free port of this machine.
pub(crate) const ANY: &str = "127.0.0.1:0";

/// A pause after a connection that could not be accepted, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) struct Listener {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Listener {
    /// Listens at `address`, and leaves each connection to `handle`.
    pub(crate) async fn start<F>(
        address: &str,
        handle: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await;
        let listener = listener.unwrap_or_else(|e| panic!("cannot listen on {address}: {e}"));
        let address = listener.local_addr();
        let address = address.expect("a bound socket has an address");
        #[expect(
            clippy::disallowed_methods,
            reason = "the server belongs to the test, and ends with it in Drop"
        )]
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(connections.spawn(handle(stream))),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Answers the requests of one connection. An error of it is a client that went away, or a scripted fault.
pub(crate) async fn http<F, B, E>(stream: TcpStream, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
        .ok();
}
