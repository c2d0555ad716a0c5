//! How the extractor reaches AWS, and what an error of AWS means.
//!
//! The usual AWS configuration applies (`AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`, roles ...).
//! The SDK's defaults wait forever for an answer and stop retrying a throttled call within a second,
//! so this module sets timeouts and retries, once for both clients.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::BehaviorVersion;
pub use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use common::lifecycle::Health;
use common::settings;

use crate::principal::refused_role;

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

/// AWS cannot be used until a setting changes.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("no AWS region is set; set AWS_REGION, or region in the profile")]
    NoRegion,
    #[error(
        "no AWS credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with a role (profiles that need SSO are not supported: export their keys)"
    )]
    NoCredentials(#[source] CredentialsError),
    #[error("the AWS credentials cannot be read; correct the profile or the AWS_ variables")]
    Credentials(#[source] CredentialsError),
}

/// Reads the configuration and checks that there are a region and credentials. Wrong credentials
/// fail at the first call. So does a provider that is unavailable (a role's endpoint that does not
/// answer), since that is not a matter of configuration.
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
    let config = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client(health))
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(attempts))
        .load()
        .await;
    if config
        .region()
        .is_none_or(|region| region.as_ref().is_empty())
    {
        return Err(ConfigurationError::NoRegion);
    }
    if let Some(provider) = config.credentials_provider() {
        match provider.provide_credentials().await {
            Err(error @ CredentialsError::CredentialsNotLoaded(_)) => {
                return Err(ConfigurationError::NoCredentials(error));
            }
            Err(error @ CredentialsError::InvalidConfiguration(_)) => {
                return Err(ConfigurationError::Credentials(error));
            }
            Err(error) => {
                let error = in_a_line(&error);
                tracing::warn!(error, "AWS credentials cannot be loaded now");
            }
            Ok(_) => {}
        }
    }
    Ok(config)
}

/// The identity of the credentials, as far as it is known without a call to AWS, or why there are none.
pub async fn identity(config: &SdkConfig) -> Result<String, String> {
    let Some(provider) = config.credentials_provider() else {
        return Err("no provider of credentials is configured".to_owned());
    };
    match provider.provide_credentials().await {
        Ok(credentials) => {
            let key = credentials.access_key_id();
            let end = key.char_indices().nth_back(3).map_or(0, |(at, _)| at);
            let profile = settings::variable("AWS_PROFILE");
            let profile = profile.map(|profile| format!(" of the profile {profile}"));
            Ok(format!(
                "access key ...{}{}",
                &key[end..],
                profile.unwrap_or_default()
            ))
        }
        Err(error) => Err(in_a_line(&error)),
    }
}

/// An error and its sources in one line. The SDK's own format adds its structure and the headers of answers.
fn in_a_line(error: &(dyn Error + 'static)) -> String {
    let messages: Vec<_> = chain(error).map(ToString::to_string).collect();
    messages.join(": ")
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The action that AWS's message names, such as `athena:GetWorkGroup` in 'User: .. is not
/// authorized to perform: athena:GetWorkGroup on resource: ..'.
pub fn denied_action(message: &str) -> Option<&str> {
    let rest = message.split_once("not authorized to perform: ")?.1;
    let action = rest.split([' ', ',']).next()?;
    action.contains(':').then_some(action)
}

/// HTTP with TLS by ring and the proxy of the environment; the SDK's default client would add a
/// second TLS library.
fn http_client(health: Option<Health>) -> SharedHttpClient {
    let settings = HttpConnectorSettings::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT);
    let connector = Connector::builder()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .proxy_config(ProxyConfig::from_env())
        .connector_settings(settings.build())
        .build();
    let connector = match health {
        Some(health) => SharedHttpConnector::new(Observed {
            connector: SharedHttpConnector::new(connector),
            health,
            is_away: Arc::default(),
        }),
        None => SharedHttpConnector::new(connector),
    };
    http_client_fn(move |_, _| connector.clone())
}

/// Tells at once that AWS does not answer. The SDK tries again for a minute before a call fails.
#[derive(Debug)]
struct Observed {
    connector: SharedHttpConnector,
    health: Health,
    is_away: Arc<AtomicBool>,
}

impl HttpConnector for Observed {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let call = self.connector.call(request);
        let (health, is_away) = (self.health.clone(), Arc::clone(&self.is_away));
        HttpConnectorFuture::new(async move {
            let answer = call.await;
            let problem = match &answer {
                Ok(answer) if answer.status().is_server_error() => {
                    Some(format!("it answers with HTTP status {}", answer.status()))
                }
                Ok(_) => None,
                Err(error) => Some(in_a_line(error)),
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
            answer
        })
    }
}

/// A call to AWS that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {message}")]
pub struct AwsError {
    pub kind: AwsErrorKind,
    /// The call, such as `starting the query`.
    pub doing: String,
    /// AWS's error code, such as `InvalidRequestException`.
    pub code: Option<String>,
    /// AWS's message, with the code.
    pub message: String,
}

/// What follows from an error of AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwsErrorKind {
    /// Too many calls: a retry will succeed.
    Throttled,
    /// AWS or the network is unavailable: a retry will succeed.
    Unavailable,
    /// The credentials are wrong or expired, or cannot be loaded: other ones, or another replica, will
    /// succeed.
    Credentials,
    /// The clock of this machine is wrong: another machine, or a correct clock, will succeed.
    ClockSkew,
    /// The caller lacks a permission: another replica may have it.
    Denied,
    /// The same call fails at any time, on every replica.
    Refused,
}

impl AwsError {
    /// Classifies the `error` of a call to AWS.
    pub fn from_sdk<E>(doing: impl Into<String>, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (code, text, status) = match error {
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                let status = service.raw().status();
                (meta.code(), meta.message(), Some(status.as_u16()))
            }
            SdkError::ResponseError(response) => {
                (None, None, Some(response.raw().status().as_u16()))
            }
            _ => (None, None, None),
        };
        let no_credentials =
            chain(error).find_map(|error| error.downcast_ref::<CredentialsError>());
        let code = code.or_else(|| chain(error).find_map(refused_role));
        let message = match (text, code, status) {
            (Some(text), Some(code), _) => format!("{text} ({code})"),
            (None, Some(code), Some(status)) => format!("{code} (HTTP status {status})"),
            (_, None, Some(status)) if matches!(error, SdkError::ServiceError(_)) => {
                format!("no reason given (HTTP status {status})")
            }
            _ => match no_credentials {
                Some(error) => format!(
                    "the AWS credentials cannot be loaded: {}; check what provides them: the profile, or the role's endpoint",
                    in_a_line(error)
                ),
                None => in_a_line(error),
            },
        };
        let kind = match error {
            // The call was never sent.
            SdkError::ConstructionFailure(_) => AwsErrorKind::Refused,
            _ if no_credentials.is_some() => AwsErrorKind::Credentials,
            _ => classify(code, text, status),
        };
        metrics::counter!("etl_aws_errors_total", "kind" => kind.name()).increment(1);
        Self {
            kind,
            doing: doing.into(),
            code: code.map(str::to_owned),
            message,
        }
    }

    /// The error for logs: AWS's own text may quote values, its code does not.
    pub fn logged(&self) -> String {
        match &self.code {
            Some(code) => format!("{}: {code}", self.doing),
            None => self.to_string(),
        }
    }

    /// An answer that is missing or breaks off.
    pub fn unavailable(doing: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: AwsErrorKind::Unavailable,
            doing: doing.into(),
            code: None,
            message: message.into(),
        }
    }

    /// What to do about the error, where the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self.kind {
            AwsErrorKind::Credentials => "check the AWS credentials of the extractor",
            AwsErrorKind::Denied => {
                "give the extractor's AWS user or role the permission that the message names"
            }
            // Athena's message when neither the query nor its workgroup has an output location.
            AwsErrorKind::Refused
                if self.is_code("InvalidRequestException")
                    && self.message.contains("output location") =>
            {
                "set workgroup or output_location in the job's [source], or an output location in the workgroup"
            }
            _ => return None,
        })
    }

    /// Whether a permission is missing, as opposed to wrong credentials.
    pub fn is_denied(&self) -> bool {
        self.kind == AwsErrorKind::Denied
    }

    /// Whether the credentials are missing since AWS refused to let a role be assumed.
    pub fn is_role_denied(&self) -> bool {
        self.kind == AwsErrorKind::Credentials
            && (self.code.as_deref())
                .and_then(|code| classify_code(code, None))
                .is_some_and(|kind| kind == AwsErrorKind::Denied)
    }

    pub fn is_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

impl AwsErrorKind {
    /// The cause of a retry, in metrics.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Throttled => "aws_throttled",
            Self::Unavailable | Self::Refused => "aws_unavailable",
            Self::Credentials => "aws_credentials",
            Self::ClockSkew => "aws_clock_skew",
            Self::Denied => "aws_denied",
        }
    }

    /// Whether AWS accepted the caller, and answered what was asked.
    pub fn is_answer(self) -> bool {
        match self {
            Self::Denied | Self::Refused => true,
            Self::Throttled | Self::Unavailable | Self::Credentials | Self::ClockSkew => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            retried => retried.cause().trim_start_matches("aws_"),
        }
    }
}

/// The one place that classifies an error. It goes by the code, since some errors of the services'
/// front ends are in no operation's model: Athena's `ThrottlingException`, for example.
fn classify(code: Option<&str>, message: Option<&str>, status: Option<u16>) -> AwsErrorKind {
    let known = code.and_then(|code| classify_code(code, message));
    known.unwrap_or(match status {
        Some(429) => AwsErrorKind::Throttled,
        Some(408 | 500..) => AwsErrorKind::Unavailable,
        // A proxy of this machine may be meant, too.
        Some(401 | 403 | 407) => AwsErrorKind::Denied,
        // A redirect, or an unknown 4xx.
        Some(300..) => AwsErrorKind::Refused,
        // No answer, or an incomplete one.
        _ => AwsErrorKind::Unavailable,
    })
}

fn classify_code(code: &str, message: Option<&str>) -> Option<AwsErrorKind> {
    Some(match code {
        "TooManyRequestsException"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "BandwidthLimitExceeded" => AwsErrorKind::Throttled,
        "RequestTimeTooSkewed" | "RequestExpired" => AwsErrorKind::ClockSkew,
        // A wrong secret key has the same code with another message.
        "InvalidSignatureException"
            if message.is_some_and(|text| {
                text.contains("Signature expired") || text.contains("Signature not yet current")
            }) =>
        {
            AwsErrorKind::ClockSkew
        }
        "ExpiredToken"
        | "ExpiredTokenException"
        | "TokenRefreshRequired"
        | "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId"
        | "InvalidToken"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "AuthFailure" => AwsErrorKind::Credentials,
        "AccessDenied"
        | "AccessDeniedException"
        | "NotAuthorized"
        | "UnauthorizedAccess"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "NotSignedUp"
        | "OptInRequired" => AwsErrorKind::Denied,
        "InternalServerException"
        | "InternalError"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "OperationAborted" => AwsErrorKind::Unavailable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_classified_by_its_code() {
        for (code, status, wanted) in [
            (
                Some("TooManyRequestsException"),
                400,
                AwsErrorKind::Throttled,
            ),
            (Some("ThrottlingException"), 400, AwsErrorKind::Throttled),
            (Some("SlowDown"), 503, AwsErrorKind::Throttled),
            (None, 429, AwsErrorKind::Throttled),
            (
                Some("InternalServerException"),
                500,
                AwsErrorKind::Unavailable,
            ),
            (Some("SomethingNew"), 503, AwsErrorKind::Unavailable),
            (None, 500, AwsErrorKind::Unavailable),
            (
                Some("ExpiredTokenException"),
                400,
                AwsErrorKind::Credentials,
            ),
            (Some("ExpiredToken"), 400, AwsErrorKind::Credentials),
            (Some("RequestTimeTooSkewed"), 403, AwsErrorKind::ClockSkew),
            (Some("InvalidRequestException"), 400, AwsErrorKind::Refused),
            (Some("AccessDenied"), 403, AwsErrorKind::Denied),
            (
                Some("UnrecognizedClientException"),
                400,
                AwsErrorKind::Credentials,
            ),
            (Some("NoSuchKey"), 404, AwsErrorKind::Refused),
            (Some("PreconditionFailed"), 412, AwsErrorKind::Refused),
            (None, 403, AwsErrorKind::Denied),
        ] {
            assert_eq!(
                classify(code, None, Some(status)),
                wanted,
                "{code:?} {status}"
            );
        }
        assert_eq!(classify(None, None, None), AwsErrorKind::Unavailable);
    }

    #[test]
    fn denial_names_its_action() {
        let message = "User: arn:aws:iam::1:user/x is not authorized to perform: s3:ListBucket on resource: \"arn\" because ...";
        assert_eq!(denied_action(message), Some("s3:ListBucket"));
        assert_eq!(denied_action("Access Denied (AccessDenied)"), None);
        assert_eq!(
            denied_action("User: x is not authorized to perform: this"),
            None
        );
    }

    #[test]
    fn wrong_clock_differs_from_wrong_key() {
        let of = |text| classify(Some("InvalidSignatureException"), Some(text), Some(403));
        assert_eq!(
            of("Signature expired: 20240101T000000Z is now earlier"),
            AwsErrorKind::ClockSkew
        );
        assert_eq!(
            of("The request signature we calculated does not match"),
            AwsErrorKind::Credentials
        );
    }
}
