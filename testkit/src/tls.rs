//! TLS in front of a server, with a certificate that a private CA signed: as a proxy that inspects TLS has, and as servers
//! inside companies have.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::NamedTempFile;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::listener::{ANY, Listener};

/// A running TLS server. Dropping it closes all of its connections.
pub struct Tls {
    listener: Listener,
    ca: NamedTempFile,
}

impl Tls {
    /// Starts one on a free port of 127.0.0.1 with a certificate for `name`; what it decrypts goes to `target`.
    pub async fn start(name: &str, target: SocketAddr) -> Self {
        let (ca, config) = certified(name);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let handle = move |stream| {
            let acceptor = acceptor.clone();
            // An error here is a client that does not trust the CA, or went away.
            async move { drop(decrypt(stream, acceptor, target).await) }
        };
        let listener = Listener::start(ANY, handle).await;
        Self { listener, ca }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The PEM file with the certificate of the CA, which is deleted with the server.
    pub fn ca_file(&self) -> &str {
        self.ca.path().to_str().expect("a temporary path is text")
    }
}

/// A new CA's file, and a server's configuration with a certificate of it.
fn certified(name: &str) -> (NamedTempFile, ServerConfig) {
    let key = || KeyPair::generate().expect("a key can be made");
    let params = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        CertificateParams::new(names).expect("a valid name")
    };
    let mut authority = params(&[]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key()).expect("a CA can be made");
    let own = key();
    let certificate = params(&[name]).signed_by(&own, &authority);
    let certificate: CertificateDer<'static> = certificate.expect("a CA signs").into();
    let own = PrivateKeyDer::try_from(own.serialize_der()).expect("a key in PKCS #8");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], own)
        .expect("the key of the certificate");
    let file = NamedTempFile::with_suffix(".pem").expect("a temporary file for a CA");
    std::fs::write(file.path(), authority.pem()).expect("the CA's file is writable");
    (file, config)
}

async fn decrypt(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    target: SocketAddr,
) -> std::io::Result<()> {
    let mut client = acceptor.accept(stream).await?;
    let mut server = TcpStream::connect(target).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
