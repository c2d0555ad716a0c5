//! HTTP for every call to AWS: TLS by ring, the proxy and the CA that the environment names, the timeouts that each call asks
//! for. The endpoints that give this machine its role are never asked through a proxy, which would give its own role away.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use common::lifecycle::Health;
use common::settings;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::Url;

use super::profile::Profile;
use super::{ConfigurationError, in_a_line};

/// The variables of a proxy, as the SDK's library reads them.
const PROXIES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The client for all of the SDK's clients. The SDK's own would add a second TLS library.
pub(super) fn client(
    profile: &Profile,
    health: Option<Health>,
) -> Result<SharedHttpClient, ConfigurationError> {
    check_proxies()?;
    Ok(SharedHttpClient::new(Client {
        routes: Routes {
            tls: trusted(profile)?,
            metadata: metadata_endpoints(profile),
        },
        health,
        is_away: Arc::default(),
        connectors: Mutex::default(),
    }))
}

/// What to do about a call that got no answer, where its error tells.
pub(super) fn advice(error: &str) -> Option<&'static str> {
    Some(if error.contains("UnknownIssuer") {
        "if a proxy inspects TLS here, name the file with its CA in AWS_CA_BUNDLE"
    } else if error.contains("invalid peer certificate") {
        "correct the clock, AWS_ENDPOINT_URL, or what answers in AWS's place"
    } else if error.contains("proxy authorization required") {
        "the proxy asks for a password: HTTPS_PROXY=http://user:password@host:port"
    } else if error.contains("tunnel error") {
        "the proxy of HTTPS_PROXY refuses: permit it AWS's names, or leave them out with NO_PROXY"
    } else {
        return None;
    })
}

/// The SDK's library silently uses no proxy where it cannot read one.
fn check_proxies() -> Result<(), ConfigurationError> {
    let unusable = PROXIES
        .into_iter()
        .find(|name| settings::variable(name).is_some_and(|value| !is_proxy(&value)));
    unusable.map_or(Ok(()), |name| {
        Err(ConfigurationError {
            what: "network",
            problem: format!("{name} is not the address of an HTTP proxy"),
            remedy: format!("write {name}=http://host:port, or http://user:password@host:port"),
        })
    })
}

fn is_proxy(value: &str) -> bool {
    let url = match value.split_once("://") {
        Some(_) => Url::parse(value),
        None => Url::parse(&format!("http://{value}")),
    };
    url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// The certificates that servers are verified with: those of `AWS_CA_BUNDLE` or `ca_bundle` instead of the system's, as with
/// the other AWS tools.
fn trusted(profile: &Profile) -> Result<TlsContext, ConfigurationError> {
    let named = settings::variable("AWS_CA_BUNDLE").map(|file| (file, "AWS_CA_BUNDLE"));
    let named = named.or_else(|| Some((profile.ca_bundle.clone()?, "ca_bundle of the profile")));
    let mut store = TrustStore::default();
    if let Some((file, by)) = named {
        let pem = std::fs::read(&file).map_err(|error| error.to_string());
        let pem = pem.and_then(|pem| certificates(&pem).map(|()| pem));
        let pem = pem.map_err(|problem| ConfigurationError {
            what: "network",
            problem: format!("{file}, which {by} names, cannot be used: {problem}"),
            remedy: "name a PEM file with the certificates of the CAs".to_owned(),
        })?;
        store = TrustStore::empty().with_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(store).build();
    context.map_err(|error| ConfigurationError {
        what: "network",
        problem: format!("TLS cannot be set up: {}", in_a_line(&error)),
        remedy: "correct the system's certificates, or name others in AWS_CA_BUNDLE".to_owned(),
    })
}

/// The SDK's library ends the process where it cannot read a certificate.
fn certificates(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("it has no certificate".to_owned());
    }
    Ok(())
}

/// The addresses that replace the usual ones of this machine's role.
fn metadata_endpoints(profile: &Profile) -> Arc<[Url]> {
    let named = [
        settings::variable("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        settings::variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        profile.metadata_endpoint.clone(),
    ];
    let named = named.into_iter().flatten();
    named.filter_map(|url| Url::parse(&url).ok()).collect()
}

/// Until a connection is there, and until an answer begins.
type Timeouts = (Option<Duration>, Option<Duration>);

/// One connector, with its pool of connections, for each pair of timeouts that a call asks for.
struct Client {
    routes: Routes,
    health: Option<Health>,
    is_away: Arc<AtomicBool>,
    connectors: Mutex<HashMap<Timeouts, SharedHttpConnector>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl HttpClient for Client {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let timeouts = (settings.connect_timeout(), settings.read_timeout());
        let mut connectors = self
            .connectors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let made = connectors.entry(timeouts).or_insert_with(|| {
            SharedHttpConnector::new(Observed {
                connector: self.routes.connector(settings),
                health: self.health.clone(),
                is_away: Arc::clone(&self.is_away),
            })
        });
        made.clone()
    }
}

/// How servers are reached.
#[derive(Clone)]
struct Routes {
    tls: TlsContext,
    metadata: Arc<[Url]>,
}

impl Routes {
    fn connector(&self, settings: &HttpConnectorSettings) -> Routed {
        let with = |proxy: fn() -> ProxyConfig| {
            let (tls, settings) = (self.tls.clone(), settings.clone());
            LazyLock::new(Box::new(move || {
                Connector::builder()
                    .tls_provider(Provider::Rustls(CryptoMode::Ring))
                    .tls_context(tls)
                    .proxy_config(proxy())
                    .connector_settings(settings)
                    .build()
            }) as Make)
        };
        Routed {
            metadata: Arc::clone(&self.metadata),
            direct: with(ProxyConfig::disabled),
            proxied: with(ProxyConfig::from_env),
        }
    }
}

type Make = Box<dyn FnOnce() -> Connector + Send>;

/// The connection of one pair of timeouts, with and without the proxy; each is made when it is needed.
struct Routed {
    metadata: Arc<[Url]>,
    direct: LazyLock<Connector, Make>,
    proxied: LazyLock<Connector, Make>,
}

impl Routed {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let is_metadata = Url::parse(request.uri()).is_ok_and(|url| {
            is_link_local(&url) || self.metadata.iter().any(|own| same_server(own, &url))
        });
        if is_metadata {
            self.direct.call(request)
        } else {
            self.proxied.call(request)
        }
    }
}

/// The addresses of the metadata of an instance, a task and a pod: 169.254.169.254, 169.254.170.2, 169.254.170.23, and those
/// in `fd00:ec2::/32`. Nothing else of AWS has such an address.
fn is_link_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.segments().starts_with(&[0xfd00, 0x0ec2]),
        Err(_) => false,
    }
}

fn same_server(one: &Url, other: &Url) -> bool {
    one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Tells at once that AWS does not answer. The SDK tries again for a minute before a call fails.
struct Observed {
    connector: Routed,
    /// That of the service; a command has none.
    health: Option<Health>,
    is_away: Arc<AtomicBool>,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observed")
    }
}

impl HttpConnector for Observed {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let call = self.connector.call(request);
        let Some(health) = self.health.clone() else {
            return call;
        };
        let is_away = Arc::clone(&self.is_away);
        HttpConnectorFuture::new(async move {
            let answer = call.await;
            observe(&answer, &health, &is_away);
            answer
        })
    }
}

fn observe(answer: &Result<HttpResponse, ConnectorError>, health: &Health, is_away: &AtomicBool) {
    let problem = match answer {
        Ok(answer) if answer.status().is_server_error() => {
            Some(format!("it answers with HTTP status {}", answer.status()))
        }
        Ok(_) => None,
        Err(error) => {
            let error = in_a_line(error);
            Some(match advice(&error) {
                Some(advice) => format!("{error}; {advice}"),
                None => error,
            })
        }
    };
    match problem {
        Some(problem) => {
            if !is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!(error = problem, "AWS does not answer; trying again");
            }
            let why = format!("AWS does not answer, and is tried again: {problem}");
            health.not_ready("aws", why);
        }
        None if is_away.swap(false, Ordering::Relaxed) => health.clear("aws"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_this_machines_role_are_told_from_aws() {
        let is_local = |url| is_link_local(&Url::parse(url).unwrap());
        for url in [
            "http://169.254.169.254/latest/api/token",
            "http://169.254.170.2/v2/credentials",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::254]/latest/api/token",
            "http://[fd00:ec2::23]/v1/credentials",
        ] {
            assert!(is_local(url), "{url}");
        }
        for url in [
            "https://athena.eu-central-1.amazonaws.com/",
            "http://10.0.0.1/",
            "http://[fd00::1]/",
            "http://169.254.169.254.example.com/",
        ] {
            assert!(!is_local(url), "{url}");
        }
        let own = Url::parse("http://127.0.0.1:1338/role").unwrap();
        let is_own = |url| same_server(&own, &Url::parse(url).unwrap());
        assert!(is_own("http://127.0.0.1:1338/latest"));
        assert!(!is_own("http://127.0.0.1:1339/latest"));
    }

    #[test]
    fn proxy_is_an_http_address() {
        for proxy in [
            "proxy:3128",
            "http://proxy:3128",
            "https://me:word@proxy:3128/",
            "10.0.0.1:3128",
        ] {
            assert!(is_proxy(proxy), "{proxy}");
        }
        for other in ["socks5://proxy:1080", "http://", "://", "ftp://proxy"] {
            assert!(!is_proxy(other), "{other}");
        }
    }

    #[test]
    fn bundle_has_a_certificate() {
        assert_eq!(certificates(b"").unwrap_err(), "it has no certificate");
        let half = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert!(certificates(half).is_err());
    }
}
