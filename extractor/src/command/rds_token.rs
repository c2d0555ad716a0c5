//! `extractor rds-token`: a password for RDS and Aurora with IAM authentication. It is the address of a request to `rds-db` that is
//! signed and never sent; RDS takes it for a quarter of an hour.
//!
//! Source: Amazon RDS User Guide, "IAM database authentication"; AWS General Reference, "Signature Version 4".

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use common::command::{Failure, print};
use common::settings::variable;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::aws::{self, Patience};

/// Print an IAM token: the password of a user of RDS or Aurora for a quarter of an hour.
///
/// Nothing is sent. The credentials are those of the AWS configuration, and need `rds-db:connect` for the user.
/// `ETL_DATABASE_PASSWORD_COMMAND` can be this command without options: it is told the server and the user.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  extractor rds-token --host db.abc.eu-central-1.rds.amazonaws.com --user etl\n  ETL_DATABASE_PASSWORD_COMMAND='extractor rds-token' loader\n\nExit code 0: success. 1: failed. 2: usage error."
)]
pub struct Arguments {
    /// The endpoint of the instance or cluster, as in `ETL_DATABASE_URL`; a name of your own in DNS is not valid. Default: PGHOST.
    #[arg(long)]
    host: Option<String>,
    /// Its port. Default: PGPORT, or 5432.
    #[arg(long)]
    port: Option<u16>,
    /// The user of the database. Default: PGUSER.
    #[arg(long)]
    user: Option<String>,
    /// The region of the database. Default: the one in its host's name, or that of the AWS configuration.
    #[arg(long)]
    region: Option<String>,
}

/// How long a token is taken, the longest that RDS allows.
const LIFETIME: Duration = Duration::from_mins(15);

/// What is written as it is in the parameters of a signed address.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) async fn run(arguments: Arguments) -> Result<bool, Failure> {
    let missing = |option: &str, name: &str| Failure::usage(anyhow!("set {option}, or {name}"));
    let host = arguments.host.or_else(|| variable("PGHOST"));
    let host = host.ok_or_else(|| missing("--host", "PGHOST"))?;
    let user = arguments.user.or_else(|| variable("PGUSER"));
    let user = user.ok_or_else(|| missing("--user", "PGUSER"))?;
    let port = match arguments.port {
        Some(port) => port,
        None => variable("PGPORT").map_or(Ok(5432), |port| {
            let port = port.parse().context("PGPORT is not the number of a port");
            port.map_err(Failure::Usage)
        })?,
    };
    let config = aws::configure(Patience::Command).await;
    let config = config.map_err(Failure::usage)?;
    let region = arguments
        .region
        .or_else(|| region_in(&host).map(str::to_owned))
        .or_else(|| config.region().map(ToString::to_string))
        .context("no AWS region is known; set --region or AWS_REGION")?;
    let provider = config.credentials_provider();
    let provider = provider.context("no provider of AWS credentials is configured")?;
    let credentials = provider.provide_credentials().await;
    let credentials = credentials.context("there are no AWS credentials to sign with")?;
    let place = Place {
        host: &host,
        port,
        user: &user,
        region: &region,
    };
    print(&place.token(credentials, SystemTime::now())?)?;
    Ok(true)
}

/// The region in the name of an endpoint: `NAME.ID.REGION.rds.amazonaws.com`.
fn region_in(host: &str) -> Option<&str> {
    let (name, _) = host.split_once(".rds.amazonaws.com")?;
    let (_, region) = name.rsplit_once('.')?;
    region.contains('-').then_some(region)
}

/// What a token is for.
struct Place<'a> {
    host: &'a str,
    port: u16,
    user: &'a str,
    region: &'a str,
}

impl Place<'_> {
    fn token(&self, credentials: Credentials, now: SystemTime) -> anyhow::Result<String> {
        let Self {
            host, port, user, ..
        } = self;
        let user = utf8_percent_encode(user, ESCAPED);
        let address = format!("{host}:{port}/?Action=connect&DBUser={user}");
        let url = format!("https://{address}");
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(LIFETIME);
        let identity = credentials.into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name("rds-db")
            .time(now)
            .settings(settings)
            .build()?
            .into();
        let headers = std::iter::empty();
        let request = SignableRequest::new("GET", &url, headers, SignableBody::Bytes(&[]))?;
        let (signed, _) = sign(request, &parameters)?.into_parts();
        let added = signed.params().iter().map(|(name, value)| {
            let value = utf8_percent_encode(value, ESCAPED);
            format!("&{name}={value}")
        });
        Ok(address + &added.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-30T12:34:56Z.
    const NOW: u64 = 1_796_042_096;

    fn token(session: Option<&str>) -> String {
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            session.map(str::to_owned),
            None,
            "test",
        );
        let place = Place {
            host: "db.abc123.eu-central-1.rds.amazonaws.com",
            port: 5432,
            user: "etl loader@x",
            region: "eu-central-1",
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        place.token(credentials, now).unwrap()
    }

    /// The tokens are those of botocore 1.44.8, `generate_db_auth_token`, with the same clock and credentials.
    #[test]
    fn token_is_that_of_another_implementation() {
        let start = "db.abc123.eu-central-1.rds.amazonaws.com:5432/?Action=connect&DBUser=etl%20loader%40x&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261130%2Feu-central-1%2Frds-db%2Faws4_request&X-Amz-Date=20261130T123456Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host";
        for (session, end) in [
            (
                None,
                "&X-Amz-Signature=4270c565ce19b13364981d7fc319555da4331f718713a9b0788afb0c62b7e4dc",
            ),
            (
                Some("FQoGZXIvYXdzEXAMPLE/token+with=signs=="),
                "&X-Amz-Security-Token=FQoGZXIvYXdzEXAMPLE%2Ftoken%2Bwith%3Dsigns%3D%3D&X-Amz-Signature=602c048213fb7d9cab2986231db3092ed8d1934ae162733c4e660dc7cd2c5f7a",
            ),
        ] {
            let sorted = |token: &str| {
                let mut parts: Vec<_> = token.split('&').map(str::to_owned).collect();
                parts.sort();
                parts
            };
            assert_eq!(sorted(&token(session)), sorted(&format!("{start}{end}")));
        }
    }

    #[test]
    fn region_is_in_the_name_of_an_endpoint() {
        for (host, region) in [
            (
                "db.abc123.eu-central-1.rds.amazonaws.com",
                Some("eu-central-1"),
            ),
            (
                "c.cluster-abc123.us-gov-west-1.rds.amazonaws.com",
                Some("us-gov-west-1"),
            ),
            (
                "db.abc123.cn-north-1.rds.amazonaws.com.cn",
                Some("cn-north-1"),
            ),
            ("db.example.com", None),
            ("127.0.0.1", None),
        ] {
            assert_eq!(region_in(host), region, "{host}");
        }
    }
}
