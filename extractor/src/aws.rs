//! How the extractor reaches AWS, and what an error of AWS means.
//!
//! The usual AWS configuration applies (`AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`, roles ...).
//! The SDK's defaults wait forever for an answer and stop retrying a throttled call within a second,
//! so this module sets timeouts and retries, once for all clients.

mod credentials;
pub(crate) mod denial;
mod error;
mod http;
mod profile;

use std::error::Error;
use std::time::Duration;

use aws_config::BehaviorVersion;
pub use aws_config::SdkConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use common::lifecycle::Health;

pub use self::denial::denied_action;
pub use self::error::{AwsError, AwsErrorKind};

use self::credentials::Explained;
use self::profile::Profile;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the first byte of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// One attempt of a call, and all attempts together. A streamed body comes after that.
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
const OPERATION_TIMEOUT: Duration = Duration::from_mins(3);
/// Attempts of one call: about half a minute of throttling.
const MAX_ATTEMPTS: u32 = 8;
/// The same for a command, whose user waits at a terminal.
const COMMAND_MAX_ATTEMPTS: u32 = 3;
const COMMAND_OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a call may take.
#[derive(Debug)]
pub enum Patience {
    /// As long as a retry may help. The health tells when AWS does not answer.
    Service(Health),
    /// As long as a user waits.
    Command,
}

/// AWS cannot be used until a setting, a file or a sign-in changes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct ConfigurationError {
    /// `region`, `credentials` or `network`.
    pub what: &'static str,
    pub problem: String,
    pub remedy: String,
}

/// Reads the configuration and checks that there are a region and credentials. Wrong credentials
/// fail at the first call. So does a provider that is unavailable (a role's endpoint that does not
/// answer, a sign-in that has expired), since that is not a matter of configuration.
///
/// The result is that of the process's own credentials. Its `to_builder` gives another region, and
/// `aws_config::sts::AssumeRoleProvider` with it a role on top, by the same HTTP client.
pub async fn configure(patience: Patience) -> Result<SdkConfig, ConfigurationError> {
    let (attempts, operation, health) = match patience {
        Patience::Service(health) => (MAX_ATTEMPTS, OPERATION_TIMEOUT, Some(health)),
        Patience::Command => (COMMAND_MAX_ATTEMPTS, COMMAND_OPERATION_TIMEOUT, None),
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(operation)
        .build();
    let profile = Profile::read().await;
    let config = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http::client(&profile, health)?)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(attempts))
        .load()
        .await;
    let has_region = config.region().is_some_and(|it| !it.as_ref().is_empty());
    if !has_region {
        return Err(ConfigurationError {
            what: "region",
            problem: "no AWS region is set".to_owned(),
            remedy: "set AWS_REGION, or region in the profile".to_owned(),
        });
    }
    let Some(sdk) = config.credentials_provider() else {
        return Ok(config);
    };
    let explained = SharedCredentialsProvider::new(Explained {
        sdk,
        profile,
        timeout: operation,
    });
    check(&explained).await?;
    let config = config.into_builder().credentials_provider(explained);
    Ok(config.build())
}

/// The same configuration for calls that may fail: that AWS does not answer them makes no service unready.
pub async fn unobserved(config: &SdkConfig) -> Result<SdkConfig, ConfigurationError> {
    let client = http::client(&Profile::read().await, None)?;
    Ok(config.to_builder().http_client(client).build())
}

async fn check(credentials: &SharedCredentialsProvider) -> Result<(), ConfigurationError> {
    let Err(error) = credentials.provide_credentials().await else {
        return Ok(());
    };
    let explained = explained(&error).cloned();
    match (error, explained) {
        (
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_),
            Some(explained),
        ) => Err(explained),
        (error, explained) => {
            let error = explained.map_or_else(|| in_a_line(&error), |it| it.to_string());
            tracing::warn!(error, "AWS credentials cannot be loaded now");
            Ok(())
        }
    }
}

/// The identity of the credentials, as far as it is known without a call to AWS, or why there are none.
pub async fn identity(config: &SdkConfig) -> Result<String, ConfigurationError> {
    let unknown = |problem| ConfigurationError {
        what: "credentials",
        problem,
        remedy: "check the profile or the role's endpoint that provides them".to_owned(),
    };
    let Some(provider) = config.credentials_provider() else {
        let problem = "no provider of credentials is configured".to_owned();
        return Err(unknown(problem));
    };
    let loaded = provider.provide_credentials().await;
    let described = loaded.map(|credentials| credentials::describe(&credentials));
    described.map_err(|error| {
        let explained = explained(&error).cloned();
        explained.unwrap_or_else(|| unknown(in_a_line(&error)))
    })
}

/// The explanation that an error of loading credentials carries.
fn explained<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ConfigurationError> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// An error and its sources in one line. The SDK's own format adds its structure and the headers of answers.
fn in_a_line(error: &(dyn Error + 'static)) -> String {
    let messages: Vec<_> = chain(error).map(ToString::to_string).collect();
    messages.join(": ")
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}
