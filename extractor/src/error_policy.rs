//! The error policy: the one place that decides what follows from an error of a step.

use common::queue::{QueueError, Unsendable};
use common::reason::Reason;

use crate::aws::{AwsError, AwsErrorKind};
use crate::outbox::PutError;
use crate::read::ReadError;
use crate::s3::S3Error;

/// Why a step of a task failed, by what follows from it.
#[derive(Debug)]
pub(crate) enum StepError {
    /// AWS is unavailable for now: back off and retry the step.
    Retry(AwsError),
    /// AWS does not accept this replica: it gives the task back, and takes no other.
    Replica(AwsError),
    /// AWS denies this replica what the task needs: another one tries.
    Denied(AwsError),
    /// The cause holds for every replica at any time: the run fails with this sentence.
    FailRun(Reason),
    /// The broker failed: the session ends and the broker delivers the task again.
    Queue(QueueError),
}

impl From<AwsError> for StepError {
    fn from(error: AwsError) -> Self {
        match error.kind {
            AwsErrorKind::Throttled | AwsErrorKind::Unavailable => Self::Retry(error),
            AwsErrorKind::Credentials | AwsErrorKind::ClockSkew => Self::Replica(error),
            AwsErrorKind::Denied => Self::Denied(error),
            AwsErrorKind::Refused => {
                let text = match error.hint() {
                    Some(hint) => format!("{error}; {hint}"),
                    None => error.to_string(),
                };
                Self::FailRun(Reason::quoting(text, error.logged()))
            }
        }
    }
}

impl From<S3Error> for StepError {
    fn from(error: S3Error) -> Self {
        match error {
            S3Error::Aws(error) => error.into(),
            error @ (S3Error::Replaced(_)
            | S3Error::Location(_)
            | S3Error::ClientEncrypted { .. }) => Self::FailRun(error.to_string().into()),
        }
    }
}

impl From<ReadError> for StepError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Aws(error) => error.into(),
            ReadError::S3(error) => error.into(),
            ReadError::Put(PutError::Unsendable(error)) => error.into(),
            // The publisher ended first and returns its own error.
            ReadError::Put(error @ PutError::Closed) => Self::Retry(AwsError::unavailable(
                "reading the result",
                error.to_string(),
            )),
            // Without a header, the first row is in the message.
            error @ ReadError::Header { .. } => Self::FailRun(Reason::quoting(
                error.to_string(),
                "the result does not begin with its column names",
            )),
            error @ (ReadError::Csv(_)
            | ReadError::RowTooLarge(_)
            | ReadError::Width { .. }
            | ReadError::Shrunk { .. }) => Self::FailRun(error.to_string().into()),
        }
    }
}

impl From<Unsendable> for StepError {
    fn from(error: Unsendable) -> Self {
        Self::FailRun(error.to_string().into())
    }
}

impl From<QueueError> for StepError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

#[cfg(test)]
mod tests {
    use common::message::S3Object;

    use super::*;

    fn aws(kind: AwsErrorKind, code: &str) -> StepError {
        let (doing, message) = ("starting the query".to_owned(), format!("No ({code})"));
        AwsError {
            kind,
            doing,
            code: Some(code.to_owned()),
            message,
        }
        .into()
    }

    #[test]
    fn only_causes_that_hold_for_every_replica_fail_the_run() {
        for kind in [AwsErrorKind::Throttled, AwsErrorKind::Unavailable] {
            assert!(matches!(aws(kind, "X"), StepError::Retry(_)), "{kind:?}");
        }
        for kind in [AwsErrorKind::Credentials, AwsErrorKind::ClockSkew] {
            assert!(matches!(aws(kind, "X"), StepError::Replica(_)), "{kind:?}");
        }
        let denied = aws(AwsErrorKind::Denied, "AccessDenied");
        assert!(matches!(denied, StepError::Denied(_)));
        let StepError::FailRun(why) = aws(AwsErrorKind::Refused, "InvalidRequestException") else {
            panic!()
        };
        assert_eq!(
            why.text(),
            "starting the query: No (InvalidRequestException)"
        );
        assert_eq!(why.logged(), "starting the query: InvalidRequestException");
        let shrunk = ReadError::Shrunk { rows: 1, read: 2 };
        assert!(matches!(shrunk.into(), StepError::FailRun(_)));
        let replaced = S3Error::Replaced(S3Object {
            bucket: "b".into(),
            key: "k".into(),
            etag: "e".into(),
            size: 1,
        });
        assert!(matches!(
            ReadError::from(replaced).into(),
            StepError::FailRun(_)
        ));
    }
}
