//! What an error of AWS means, and what to do about it.

use std::error::Error;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use aws_credential_types::provider::error::CredentialsError;

use crate::principal::refused_role;

use super::{chain, denial, explained, http, in_a_line};

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
            _ => match (explained(error), no_credentials) {
                (Some(why), _) => format!("the AWS credentials cannot be loaded: {why}"),
                (None, Some(error)) => format!(
                    "the AWS credentials cannot be loaded: {}; check what provides them: the profile, or the role's endpoint",
                    in_a_line(error)
                ),
                (None, None) => in_a_line(error),
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
    pub fn hint(&self) -> Option<String> {
        let denial = || denial::of_message(&self.message).map(|denial| denial.remedy);
        match self.kind {
            AwsErrorKind::Credentials => {
                Some("check the AWS credentials of the extractor".to_owned())
            }
            AwsErrorKind::Denied => Some(denial().unwrap_or_else(|| {
                "give the extractor's AWS user or role the permission that the message names"
                    .to_owned()
            })),
            AwsErrorKind::Refused => denial(),
            AwsErrorKind::Unavailable => http::advice(&self.message).map(str::to_owned),
            AwsErrorKind::Throttled | AwsErrorKind::ClockSkew => None,
        }
    }

    /// Whether a permission is missing, as opposed to wrong credentials.
    pub fn is_denied(&self) -> bool {
        self.kind == AwsErrorKind::Denied
    }

    /// Whether AWS refused credentials, or to give some, by a code that holds until somebody changes something.
    pub fn is_refusal_of_credentials(&self) -> bool {
        let kind = |code: &str| classify_code(code, None).unwrap_or(AwsErrorKind::Refused);
        self.code
            .as_deref()
            .map(kind)
            .is_some_and(|kind| match kind {
                AwsErrorKind::Credentials | AwsErrorKind::Denied | AwsErrorKind::Refused => true,
                AwsErrorKind::Throttled | AwsErrorKind::Unavailable | AwsErrorKind::ClockSkew => {
                    false
                }
            })
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
