//! Connecting to a broker that has limits, TLS or another address, and what is said where that fails.

use common::queue::{Connection, QueueError};
use common::reason::paragraph;
use testkit::certificates::Authority;
use testkit::http::Method;
use testkit::servers::{Broker, Vhost, private_broker_with, vhost};
use testkit::{TIMEOUT, wait_until};
use tokio::net::TcpListener;

use crate::url;

async fn connect(url: &str) -> Result<Connection, QueueError> {
    Connection::open(&url.parse().unwrap(), "test").await
}

/// The error of a URL that does not work, and whether a person must change something here.
async fn refused(url: &str) -> (String, bool) {
    let Err(error) = connect(url).await else {
        panic!("connected to {url}")
    };
    let is_configuration = error.is_configuration();
    (paragraph(&error.into()), is_configuration)
}

#[tokio::test]
async fn ipv6_address_is_connected_to() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("amqp://guest:guest@[::1]:{port}/%2f?connection_timeout=60000");
    let connecting = connect(&url);
    tokio::select! {
        accepted = listener.accept() => drop(accepted.unwrap()),
        _ = connecting => panic!("it connects elsewhere"),
    }
}

/// Sets a limit of the broker on a vhost or a user; zero sets none.
async fn limit(vhost: &Vhost, kind: &str, name: &str, value: i32) {
    let body = serde_json::json!({ "value": if value == 0 { -1 } else { value } });
    let path = if kind == "max-connections" {
        format!("vhost-limits/{name}/{kind}")
    } else {
        format!("user-limits/{name}/{kind}")
    };
    let (status, answer) = vhost.broker.call(Method::PUT, &path, body).await;
    assert!(status.is_success(), "{status} {answer}");
}

#[tokio::test]
async fn limit_of_connections_is_waited_for_and_named() {
    let vhost = vhost().await;
    limit(&vhost, "max-connections", &vhost.name, 1).await;
    let first = Connection::open(&url(&vhost), "test").await.unwrap();
    // The broker counts a connection a moment after it has accepted it.
    let mut said = (String::new(), false);
    wait_until("the limit to hold", TIMEOUT, async || {
        match connect(&vhost.amqp_url).await {
            Ok(second) => {
                second.close().await;
                false
            }
            Err(error) => {
                let is_configuration = error.is_configuration();
                said = (paragraph(&error.into()), is_configuration);
                true
            }
        }
    })
    .await;
    assert!(!said.1, "{said:?}");
    assert!(
        said.0.contains("a limit of its connections or channels") && said.0.contains("limit (1)"),
        "{said:?}"
    );
    assert!(!said.0.contains("password"), "{said:?}");
    first.close().await;
    wait_until("room", TIMEOUT, async || {
        connect(&vhost.amqp_url).await.is_ok()
    })
    .await;
}

/// A user with all permissions on a vhost, and the URL of it.
async fn user(vhost: &Vhost, name: &str) -> String {
    let put = async |path: String, body| {
        let (status, answer) = vhost.broker.call(Method::PUT, &path, body).await;
        assert!(status.is_success(), "{answer}");
    };
    let body = serde_json::json!({ "password": "secret", "tags": "" });
    put(format!("users/{name}"), body).await;
    let all = serde_json::json!({ "configure": ".*", "write": ".*", "read": ".*" });
    put(format!("permissions/{}/{name}", vhost.name), all).await;
    let (_, server) = vhost.amqp_url.split_once('@').unwrap();
    format!("amqp://{name}:secret@{server}")
}

#[tokio::test]
async fn limit_of_channels_is_no_wrong_password() {
    let vhost = vhost().await;
    let name = format!("{}-few", vhost.name);
    let url = user(&vhost, &name).await;
    limit(&vhost, "max-channels", &name, 1).await;
    let connection = connect(&url).await.unwrap();
    let publisher = common::queue::Publisher::open(&connection).await.unwrap();
    let Err(error) = common::queue::Publisher::open(&connection).await else {
        panic!("two channels")
    };
    assert!(matches!(error, QueueError::Limit { .. }), "{error:?}");
    assert!(!error.is_configuration());
    drop(publisher);
    vhost
        .broker
        .call(
            Method::DELETE,
            &format!("users/{name}"),
            serde_json::Value::Null,
        )
        .await;
}

#[tokio::test]
async fn missing_vhost_is_named_with_the_command() {
    let vhost = vhost().await;
    let (server, _) = vhost.amqp_url.rsplit_once('/').unwrap();
    let (said, is_configuration) = refused(&format!("{server}/nowhere")).await;
    assert!(is_configuration);
    for wanted in ["no such vhost", "nowhere", "rabbitmqctl add_vhost"] {
        assert!(said.contains(wanted), "{said}");
    }
}

/// A broker that asks clients for a certificate, and the port of its TLS.
async fn broker_with_tls(authority: &Authority) -> (Broker, u16) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|f| authority.path(f));
    let configuration = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {ca}\nssl_options.certfile = {certificate}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    );
    (private_broker_with(&configuration).await, port)
}

#[tokio::test]
async fn tls_needs_the_authority_the_name_and_the_client_certificate() {
    common::service::install_tls();
    let authority = Authority::new();
    authority.issue("server", &["127.0.0.1"]);
    authority.issue("client", &["client"]);
    let (broker, port) = broker_with_tls(&authority).await;
    let base = format!("amqps://guest:secret@127.0.0.1:{port}/%2f");
    let [ca, certificate, key] = ["ca.pem", "client.pem", "client.key"].map(|f| authority.path(f));
    let trusting = format!("?cacertfile={ca}");
    let client = format!("&certfile={certificate}&keyfile={key}");
    let plain = broker.url().replace("guest@", "secret@");
    let plain_port = url::Url::parse(&plain).unwrap().port().unwrap();
    for (url, wanted, is_final) in [
        (
            base.clone(),
            "does not trust; name the authority's file in ETL_AMQP_URL: ?cacertfile=",
            true,
        ),
        (
            base.replace("127.0.0.1", "localhost") + &trusting + &client,
            "is for another host name",
            true,
        ),
        (
            base.clone() + &trusting,
            "if it asks for a client certificate or refuses this one",
            false,
        ),
        (
            base.replace(&port.to_string(), &plain_port.to_string()) + &trusting,
            "amqp:// for one without",
            false,
        ),
    ] {
        let (said, is_configuration) = refused(&url).await;
        assert!(said.contains(wanted), "{url}: {said}");
        assert!(!said.contains("secret"), "{said}");
        assert_eq!(is_configuration, is_final, "{said}");
    }
    let works = base.replace("secret", "guest") + &trusting + &client;
    connect(&works).await.unwrap().close().await;
    // The server renews its certificate too late.
    authority.issue_expired("server", &["127.0.0.1"]);
    broker
        .rabbitmqctl(&["eval", "ssl:clear_pem_cache()."])
        .await;
    let (said, is_configuration) = refused(&works).await;
    assert!(said.contains("has expired"), "{said}");
    assert!(!is_configuration, "it is renewed without a restart of ours");
}
