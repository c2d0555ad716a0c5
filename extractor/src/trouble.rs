//! What follows from an error: the one place that decides it.

use common::queue::{QueueError, Unsendable};

use crate::aws::{AwsError, AwsErrorKind};
use crate::read::ReadError;
use crate::s3::S3Error;

/// Why a step of a task did not succeed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// AWS or the way to it: the same step will work later.
    World(AwsError),
    /// It holds for every replica and at any time: the run fails with this sentence.
    Run(String),
    /// The broker: the session ends, and the task is delivered again.
    Queue(QueueError),
}

impl From<AwsError> for Trouble {
    fn from(error: AwsError) -> Self {
        match error.kind {
            AwsErrorKind::Throttled
            | AwsErrorKind::Unavailable
            | AwsErrorKind::ExpiredCredentials
            | AwsErrorKind::ClockSkew => Self::World(error),
            AwsErrorKind::Refused => match error.hint() {
                Some(hint) => Self::Run(format!("{error}; {hint}")),
                None => Self::Run(error.to_string()),
            },
        }
    }
}

impl From<S3Error> for Trouble {
    fn from(error: S3Error) -> Self {
        match error {
            S3Error::Aws(error) => error.into(),
            error @ (S3Error::Replaced { .. } | S3Error::Location(_)) => {
                Self::Run(error.to_string())
            }
        }
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Aws(error) => error.into(),
            ReadError::S3(error) => error.into(),
            ReadError::Unsendable(error) => error.into(),
            // The publisher went first, and knows why.
            ReadError::Closed => Self::World(AwsError::unavailable(
                "reading the result",
                error.to_string(),
            )),
            error @ (ReadError::Csv(_)
            | ReadError::RowTooLarge(_)
            | ReadError::Header { .. }
            | ReadError::Width { .. }
            | ReadError::Shrunk { .. }) => Self::Run(error.to_string()),
        }
    }
}

impl From<Unsendable> for Trouble {
    fn from(error: Unsendable) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<QueueError> for Trouble {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aws(kind: AwsErrorKind, code: &str) -> Trouble {
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
    fn only_what_holds_everywhere_fails_the_run() {
        for kind in [
            AwsErrorKind::Throttled,
            AwsErrorKind::Unavailable,
            AwsErrorKind::ExpiredCredentials,
            AwsErrorKind::ClockSkew,
        ] {
            assert!(matches!(aws(kind, "X"), Trouble::World(_)), "{kind:?}");
        }
        let Trouble::Run(why) = aws(AwsErrorKind::Refused, "UnrecognizedClientException") else {
            panic!()
        };
        assert!(
            why.contains("starting the query: No") && why.contains("credentials of the extractor"),
            "{why}"
        );
        let shrunk = ReadError::Shrunk { rows: 1, read: 2 };
        assert!(matches!(shrunk.into(), Trouble::Run(_)));
        let replaced = S3Error::Replaced {
            bucket: "b".into(),
            key: "k".into(),
            etag: "e".into(),
        };
        assert!(matches!(ReadError::from(replaced).into(), Trouble::Run(_)));
    }
}
