//! The failures that a test can script, a queue per operation, and the exact form in which AWS reports each: a JSON body
//! with `__type` from Athena, an XML document from S3.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

/// An operation of the emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    StartQueryExecution,
    GetQueryExecution,
    BatchGetQueryExecution,
    StopQueryExecution,
    GetQueryResults,
    GetWorkGroup,
    GetObject,
    HeadObject,
    PutObject,
    AssumeRole,
    GetCallerIdentity,
}

impl Op {
    /// The Athena operation of an `X-Amz-Target`.
    pub(crate) fn of_target(target: &str) -> Option<Self> {
        Some(match target.strip_prefix("AmazonAthena.")? {
            "StartQueryExecution" => Self::StartQueryExecution,
            "GetQueryExecution" => Self::GetQueryExecution,
            "BatchGetQueryExecution" => Self::BatchGetQueryExecution,
            "StopQueryExecution" => Self::StopQueryExecution,
            "GetQueryResults" => Self::GetQueryResults,
            "GetWorkGroup" => Self::GetWorkGroup,
            _ => return None,
        })
    }

    /// The operation of STS that a form asks for.
    pub(crate) fn of_form(body: &[u8]) -> Option<Self> {
        match super::sts::field(body, "Action")?.as_str() {
            "AssumeRole" => Some(Self::AssumeRole),
            "GetCallerIdentity" => Some(Self::GetCallerIdentity),
            _ => None,
        }
    }

    pub(crate) fn is_sts(self) -> bool {
        matches!(self, Self::AssumeRole | Self::GetCallerIdentity)
    }

    pub(crate) fn is_s3(self) -> bool {
        matches!(self, Self::GetObject | Self::HeadObject | Self::PutObject)
    }
}

/// What happens to one request instead of an answer, or to its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: this request is served. Skips to a later request of an operation.
    Pass,
    /// Athena's modelled throttling: `TooManyRequestsException` with `Reason` `CONCURRENT_QUERY_LIMIT_EXCEEDED`.
    TooManyRequests,
    /// The other, un-modelled one: `ThrottlingException`, "Rate exceeded".
    Throttling,
    /// S3's throttling, 503.
    SlowDown,
    /// 500: `InternalServerException`, `InternalError`.
    Internal,
    /// 503 `ServiceUnavailable`.
    Unavailable,
    /// The session's credentials ran out: `ExpiredTokenException` from Athena, `ExpiredToken` from S3.
    ExpiredToken,
    /// `UnrecognizedClientException` from Athena, `InvalidAccessKeyId` from S3.
    UnknownClient,
    /// `AccessDeniedException`, `AccessDenied`.
    AccessDenied,
    /// 403: the client's clock is wrong.
    RequestTimeTooSkewed,
    /// The error of Athena's endpoint for a wrong clock: `InvalidSignatureException`, "Signature expired".
    SignatureExpired,
    /// 404 `NoSuchKey` from S3, `InvalidRequestException` from Athena.
    NotFound,
    /// 412: the object is not the one that If-Match names.
    PreconditionFailed,
    /// The request is served after this time.
    Delay(Duration),
    /// The request is accepted and never answered.
    NoAnswer,
    /// The request is served, and the connection closed before anything of the answer is sent.
    LoseAnswer,
    /// The body breaks off after this many bytes, and the connection is closed.
    Truncate(u64),
    /// The body stops after this many bytes, and the connection stays open.
    Stall(u64),
    /// At most this many bytes are sent, with a matching Content-Length: fewer than the requested range, without an error.
    Short(u64),
    /// Any other error.
    Other {
        status: u16,
        code: &'static str,
        message: &'static str,
    },
}

/// An answer that is an error.
pub(crate) struct ErrorAnswer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// The answer to an Athena request.
pub(crate) type Answered = Result<Value, ErrorAnswer>;

/// Status, code and message of an error.
type Parts = (u16, &'static str, &'static str);

impl Fault {
    /// The error answer of this fault to an operation, if it is one.
    pub(crate) fn answer(&self, op: Op) -> Option<ErrorAnswer> {
        Some(if op.is_sts() {
            let (status, code, message) = self.of_athena()?;
            sts_error(status, code, message)
        } else if op.is_s3() {
            let (status, code, message) = self.of_s3()?;
            s3_error(status, code, message)
        } else {
            let (status, code, message) = self.of_athena()?;
            athena_error(status, code, message)
        })
    }

    fn of_athena(&self) -> Option<Parts> {
        Some(match self {
            Self::TooManyRequests => (
                400,
                "TooManyRequestsException",
                "You have exceeded the limit for the number of queries you can run concurrently.",
            ),
            Self::Throttling | Self::SlowDown => (400, "ThrottlingException", "Rate exceeded"),
            Self::Internal => (
                500,
                "InternalServerException",
                "An internal error occurred.",
            ),
            Self::ExpiredToken => (
                400,
                "ExpiredTokenException",
                "The security token included in the request is expired",
            ),
            Self::UnknownClient => (
                400,
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            ),
            Self::AccessDenied => (
                400,
                "AccessDeniedException",
                "User: arn:aws:iam::123456789012:user/test is not authorized to perform this action",
            ),
            Self::NotFound => (
                400,
                "InvalidRequestException",
                "QueryExecution was not found",
            ),
            other => return other.of_both(),
        })
    }

    fn of_s3(&self) -> Option<Parts> {
        Some(match self {
            Self::TooManyRequests | Self::Throttling | Self::SlowDown => {
                (503, "SlowDown", "Please reduce your request rate.")
            }
            Self::Internal => (
                500,
                "InternalError",
                "We encountered an internal error. Please try again.",
            ),
            Self::ExpiredToken => (400, "ExpiredToken", "The provided token has expired."),
            Self::UnknownClient => (
                403,
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
            ),
            Self::AccessDenied => (403, "AccessDenied", "Access Denied"),
            Self::NotFound => (404, "NoSuchKey", "The specified key does not exist."),
            other => return other.of_both(),
        })
    }

    fn of_both(&self) -> Option<Parts> {
        match self {
            Self::Unavailable => Some((
                503,
                "ServiceUnavailable",
                "Service is unable to handle request.",
            )),
            Self::RequestTimeTooSkewed => Some((
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            )),
            Self::SignatureExpired => Some((
                403,
                "InvalidSignatureException",
                "Signature expired: 20240101T000000Z is now earlier than 20240101T005500Z (20240101T010000Z - 5 min.)",
            )),
            Self::PreconditionFailed => Some((
                412,
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold",
            )),
            Self::Other {
                status,
                code,
                message,
            } => Some((*status, code, message)),
            _ => None,
        }
    }
}

/// AWS JSON 1.1: `Message` for the errors that the service's model has, `message` for the others.
pub(crate) fn athena_error(status: u16, code: &str, message: &str) -> ErrorAnswer {
    let body = match code {
        "TooManyRequestsException" => {
            json!({ "__type": code, "Message": message, "Reason": "CONCURRENT_QUERY_LIMIT_EXCEEDED" })
        }
        "InvalidRequestException" => {
            json!({ "__type": code, "Message": message, "AthenaErrorCode": "INVALID_INPUT" })
        }
        "InternalServerException" => json!({ "__type": code, "Message": message }),
        _ => json!({ "__type": code, "message": message }),
    };
    ErrorAnswer {
        status,
        body: body.to_string().into(),
    }
}

/// An `InvalidRequestException`.
pub(crate) fn invalid(message: impl AsRef<str>) -> ErrorAnswer {
    athena_error(400, "InvalidRequestException", message.as_ref())
}

/// The error for an unknown query execution.
pub(crate) fn not_found(id: &str) -> ErrorAnswer {
    invalid(format!("QueryExecution {id} was not found"))
}

/// An error of the query protocol.
pub(crate) fn sts_error(status: u16, code: &str, message: &str) -> ErrorAnswer {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{message}</Message></Error><RequestId>TESTKIT</RequestId></ErrorResponse>"
    );
    ErrorAnswer {
        status,
        body: body.into(),
    }
}

pub(crate) fn s3_error(status: u16, code: &str, message: &str) -> ErrorAnswer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>TESTKIT</RequestId><HostId>testkit</HostId></Error>"
    );
    ErrorAnswer {
        status,
        body: body.into(),
    }
}
