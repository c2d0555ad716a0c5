//! Encrypted connections: what each `sslmode` accepts of a server with TLS, and the sentence when it does not.

use ledger::{Address, Class, Encryption, Store, cause, classify};
use testkit::servers::{Postgres, private_postgres_with_tls, shared_postgres};

/// The URL of the server with another host and these parameters.
fn url(postgres: &Postgres, host: &str, parameters: &str) -> String {
    let url = postgres.url().replace("127.0.0.1", host);
    format!("{url}?{parameters}")
}

async fn connected(url: &str) -> Result<Vec<Encryption>, String> {
    let address = Address::new(&url.parse().unwrap()).map_err(|error| error.to_string())?;
    let store = Store::new(&address, "test", 1);
    let connected = store.connect().await;
    connected.map_err(|error| {
        let why = cause(&error);
        assert_eq!(classify(&error), Class::Configuration, "{why}");
        why
    })?;
    store.close().await;
    let each = address.encryption().await;
    Ok(each.into_iter().map(|(_, encryption)| encryption).collect())
}

/// A host, the parameters of a URL, and what becomes of them. ROOT names the certificate of the server's authority. On Linux,
/// 0.0.0.0 leads to this machine, and is a name that the certificate does not have.
const MODES: [(&str, &str, Result<Encryption, &str>); 11] = [
    (
        "127.0.0.1",
        "sslmode=verify-full&ROOT",
        Ok(Encryption::Verified),
    ),
    (
        "localhost",
        "sslmode=verify-full&ROOT",
        Ok(Encryption::Verified),
    ),
    (
        "0.0.0.0",
        "sslmode=verify-full&ROOT",
        Err("is for another name"),
    ),
    ("0.0.0.0", "sslmode=verify-ca&ROOT", Ok(Encryption::AnyName)),
    ("0.0.0.0", "sslmode=require&ROOT", Ok(Encryption::AnyName)),
    ("0.0.0.0", "sslmode=require", Ok(Encryption::Unverified)),
    ("0.0.0.0", "sslmode=prefer", Ok(Encryption::Unverified)),
    ("0.0.0.0", "sslmode=disable", Ok(Encryption::None)),
    ("127.0.0.1", "sslmode=prefer", Ok(Encryption::Local)),
    (
        "localhost",
        "sslmode=verify-full",
        Err("no authority that is trusted here"),
    ),
    (
        "localhost",
        "sslrootcert=system",
        Err("no authority that is trusted here"),
    ),
];

#[tokio::test]
async fn server_is_verified_as_sslmode_says() {
    common::service::install_tls();
    let postgres = private_postgres_with_tls().await;
    let root = format!("sslrootcert={}", postgres.authority().display());
    for (host, parameters, expected) in MODES {
        let parameters = parameters.replace("ROOT", &root);
        let found = connected(&url(&postgres, host, &parameters)).await;
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, [expected], "{host} {parameters}"),
            (Err(why), Err(part)) => assert!(why.contains(part), "{host} {parameters}: {why}"),
            (found, _) => panic!("{host} {parameters}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn server_without_tls_is_named() {
    common::service::install_tls();
    let postgres = shared_postgres();
    let error = connected(&url(&postgres, "127.0.0.1", "sslmode=verify-full")).await;
    let error = error.unwrap_err();
    assert!(error.contains("offers no TLS"), "{error}");
    let plain = connected(&url(&postgres, "0.0.0.0", "sslmode=prefer")).await;
    assert_eq!(plain.unwrap(), [Encryption::None]);
}
