//! Proxies, private CAs, and the endpoints that give this machine its role.

use testkit::endpoint::{Endpoint, Reply};
use testkit::proxy::Proxy;
use testkit::tls::Tls;

use crate::signin::{Checked, Home, metadata, sts};

/// A name that only the proxy can reach.
const NAME: &str = "aws.test";
const URL: &str = "https://aws.test";

/// The emulator behind TLS, behind a proxy.
struct Company {
    home: Home,
    tls: Tls,
    proxy: Proxy,
}

impl Company {
    async fn new() -> Self {
        let home = Home::new("").await;
        let tls = Tls::start(NAME, home.cloud.address()).await;
        let proxy = Proxy::start(tls.address()).await;
        Self { home, tls, proxy }
    }

    /// Checks with keys in the environment, the CA of the proxy, and no exceptions.
    async fn check(&self, env: &[(&str, &str)]) -> Checked {
        let proxy = format!("http://{}", self.proxy.address());
        let mut all = vec![
            ("AWS_ENDPOINT_URL", URL),
            ("AWS_ACCESS_KEY_ID", "AKIATESTKIT"),
            ("AWS_SECRET_ACCESS_KEY", "testkit"),
            ("AWS_CA_BUNDLE", self.tls.ca_file()),
            ("HTTPS_PROXY", &proxy),
            ("NO_PROXY", ""),
        ];
        all.extend(env);
        self.home.check(&all).await
    }

    fn tunnels_only(&self) {
        let asked = self.proxy.asked();
        assert!(!asked.is_empty());
        let others = asked
            .iter()
            .filter(|line| !line.starts_with("CONNECT aws.test:443 "));
        assert_eq!(others.count(), 0, "{asked:?}");
    }
}

#[tokio::test]
async fn calls_go_through_the_proxy_of_the_environment() {
    let company = Company::new().await;
    company
        .check(&[])
        .await
        .passed_with("...TKIT of the environment");
    company.tunnels_only();
    let before = company.proxy.asked().len();
    // The name is known to the proxy alone.
    let direct = company.check(&[("NO_PROXY", NAME)]).await;
    direct.failed(
        "athena:GetWorkGroup",
        &["check AWS_REGION (or AWS_ENDPOINT_URL), the network"],
    );
    assert_eq!(company.proxy.asked().len(), before);
}

#[tokio::test]
async fn private_ca_is_trusted_where_it_is_named() {
    let company = Company::new().await;
    let unknown = company.check(&[("AWS_CA_BUNDLE", "")]).await;
    unknown.failed("athena:GetWorkGroup", &["UnknownIssuer", "AWS_CA_BUNDLE"]);
    let config = format!("[default]\nca_bundle = {}\n", company.tls.ca_file());
    company.home.write(".aws/config", &config);
    let of_profile = company.check(&[("AWS_CA_BUNDLE", "")]).await;
    of_profile.passed_with("...TKIT");
    company.home.write("empty.pem", "no certificate\n");
    let empty = company.home.path().join("empty.pem");
    for (file, why) in [
        ("/nowhere.pem", "No such file"),
        (empty.to_str().unwrap(), "it has no certificate"),
    ] {
        let refused = company.check(&[("AWS_CA_BUNDLE", file)]).await;
        refused.failed(
            "network",
            &[file, "which AWS_CA_BUNDLE names", why, "PEM file"],
        );
    }
}

#[tokio::test]
async fn proxy_that_asks_for_a_password_gets_it_from_the_variable() {
    let company = Company::new().await;
    // me:word
    let guarded = Proxy::with_authorization(company.tls.address(), "Basic bWU6d29yZA==").await;
    let with = |user: &str| format!("http://{user}{}", guarded.address());
    let without = company.check(&[("HTTPS_PROXY", &with(""))]).await;
    without.failed(
        "athena:GetWorkGroup",
        &["HTTPS_PROXY=http://user:password@host:port"],
    );
    company
        .check(&[("HTTPS_PROXY", &with("me:word@"))])
        .await
        .passed_with("...TKIT");
    let unusable = company
        .check(&[("HTTPS_PROXY", "socks5://me:word@127.0.0.1:1080")])
        .await;
    unusable.failed(
        "network",
        &["HTTPS_PROXY is not the address of an HTTP proxy"],
    );
    assert!(!unusable.0.stdout.contains("word@127"), "{unusable:?}");
}

#[tokio::test]
async fn sts_uses_the_proxy_and_the_ca_too() {
    let (home, sts) = (Home::new("").await, sts(false).await);
    let address = sts.url().trim_start_matches("http://").parse().unwrap();
    let tls = Tls::start(NAME, address).await;
    let proxy = Proxy::start(tls.address()).await;
    home.write("token", "a-jwt");
    let env = [
        (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            home.path().join("token").to_str().unwrap().to_owned(),
        ),
        (
            "AWS_ROLE_ARN",
            "arn:aws:iam::123456789012:role/irsa".to_owned(),
        ),
        ("AWS_ENDPOINT_URL_STS", URL.to_owned()),
        ("HTTPS_PROXY", format!("http://{}", proxy.address())),
        ("AWS_CA_BUNDLE", tls.ca_file().to_owned()),
    ];
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    home.check(&env).await.passed_with("...IRSA");
    assert!(
        proxy.asked()[0].starts_with("CONNECT aws.test:443"),
        "{:?}",
        proxy.asked()
    );
}

#[tokio::test]
async fn endpoints_of_the_role_are_never_asked_through_a_proxy() {
    let (company, metadata) = (Company::new().await, metadata().await);
    let (proxy, url) = (
        format!("http://{}", company.proxy.address()),
        metadata.url(),
    );
    let role = format!("{url}/role");
    let proxies = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("HTTP_PROXY", proxy.as_str()),
        ("http_proxy", proxy.as_str()),
        ("ALL_PROXY", proxy.as_str()),
    ];
    let instance = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
    ];
    let container = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.as_str())];
    for (way, wanted) in [
        (&instance[..], "...ROLE of the instance's role"),
        (&container[..], "...ROLE of the container's role"),
    ] {
        let env: Vec<_> = proxies.iter().chain(way).copied().collect();
        company.check(&env).await.passed_with(wanted);
        company.tunnels_only();
    }
    let before = company.proxy.asked().len();
    // The fixed address of ECS, which nothing has here.
    let task = [(
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "/v2/credentials/x",
    )];
    let env: Vec<_> = proxies.iter().chain(&task).copied().collect();
    let lost = company.check(&env).await;
    lost.failed(
        "credentials",
        &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "the task's role"],
    );
    assert_eq!(
        company.proxy.asked().len(),
        before,
        "{:?}",
        company.proxy.asked()
    );
}

/// The SDK's own timeout for it is a second, and ours for calls to AWS are longer.
#[tokio::test]
async fn silent_metadata_endpoint_is_asked_with_the_short_timeout_of_the_sdk() {
    let home = Home::new("").await;
    let silent = Endpoint::start(|_| Reply::Silence).await;
    let env = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &silent.url()),
    ];
    let checked = home.check(&env).await;
    checked.failed(
        "credentials",
        &["metadata cannot be read", "read timeout occurred after 1s"],
    );
    assert_eq!(silent.asked()[0].path, "/latest/api/token");
}
