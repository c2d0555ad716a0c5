//! What can be wrong with the broker, and which of it waiting cannot help.

use std::time::Duration;

use rustls::CertificateError as Certificate;
use rustls::{AlertDescription, Error as TlsError};

use crate::message::QueueName;

/// A failure of the broker, of the connection to it, or of its configuration.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("the broker did not answer within {after:?} while {doing}")]
    Timeout { doing: String, after: Duration },
    #[error("the broker failed while {doing}")]
    Broker { doing: String, source: lapin::Error },
    #[error(
        "the broker refused {doing}: a limit of its connections or channels is reached ({why}); trying again until others have closed theirs. \
         `rabbitmqctl list_vhost_limits --global` and `list_user_limits --global` show the limits; a service needs two connections, and a managed broker's plan may have a limit of its own"
    )]
    Limit { doing: String, why: String },
    #[error(
        "the broker has no such vhost while {doing}; create it (rabbitmqctl add_vhost NAME) and give the user permissions on it, or correct the path of ETL_AMQP_URL, where the vhost / is written %2f"
    )]
    NoVhost { doing: String, source: lapin::Error },
    #[error("TLS failed while {doing}: {problem}")]
    Tls {
        doing: String,
        problem: &'static str,
        /// Whether a setting here has to change.
        is_ours: bool,
        source: Box<lapin::Error>,
    },
    #[error(
        "there is no AMQP while {doing}; amqps:// is for a port with TLS, by default 5671, and amqp:// for one without, by default 5672"
    )]
    NotAmqp { doing: String, source: lapin::Error },
    #[error("no host of the broker accepts a connection: {why}")]
    NoHost { why: String },
    #[error("the connection to the broker was lost: {why}")]
    Lost { why: String },
    #[error(
        "a queue has a message that no client can receive: its headers are too large for a frame of the connection, or its properties are not valid text ({why})"
    )]
    Unreceivable { why: String },
    #[error(
        "the broker refused {doing}; check the user, password, vhost and permissions in ETL_AMQP_URL"
    )]
    Denied { doing: String, source: lapin::Error },
    #[error(
        "the user may not do this on the broker: {doing}; give it the permission to configure `^etl\\.` (docs/managed.md has the command), or declare the queues as an administrator with what `etl topology` prints and set ETL_DECLARE=skip"
    )]
    MayNotDeclare { doing: String, source: lapin::Error },
    #[error(
        "the queue {queue} does not exist, and ETL_DECLARE=skip leaves its declaration to an administrator: `etl topology >etl.json` and `rabbitmqctl import_definitions etl.json`{}",
        if *.queue == QueueName::Archive.name() { "; where the broker has no streams, set ETL_ARCHIVE=off" } else { "" }
    )]
    Absent { queue: &'static str },
    #[error(
        "the broker has no streams ({why}), and ETL_ARCHIVE=stream asks for one; set ETL_ARCHIVE=off, with which replays read the query's result in S3 again, or enable streams (on RabbitMQ 3: rabbitmqctl enable_feature_flag stream_queue)"
    )]
    NoStreams { why: String },
    #[error(
        "the queue {queue} is not a stream; delete it with `rabbitmqctl delete_queue --vhost VHOST {queue}`, and declare it again, or set ETL_ARCHIVE=off"
    )]
    NoStream { queue: &'static str },
    #[error(
        "the queue {queue} exists with other arguments than this version needs; let its consumers empty it, delete it with `rabbitmqctl delete_queue --vhost VHOST {queue}`, and the next service that starts declares it again"
    )]
    Mismatch {
        queue: &'static str,
        source: lapin::Error,
    },
    #[error("the consumer of {queue} ended: the queue was deleted or the broker cancelled it")]
    ConsumerEnded { queue: &'static str },
    #[error(
        "the queue {queue} does not exist, or no binding leads to it; the next session declares both again, or with ETL_DECLARE=skip an administrator does: `etl topology`"
    )]
    Unroutable { queue: String },
    #[error(
        "the queue {queue} stayed full with {messages} messages; the stage that consumes it is slower or not running"
    )]
    Full { queue: &'static str, messages: u32 },
    #[error(
        "the queue {queue} takes no message and is empty; its leader may be away: `rabbitmq-queues quorum_status {queue}` shows its members"
    )]
    Refused { queue: &'static str },
    #[error(
        "the broker accepts no messages: {reason}; look for a memory or disk alarm (rabbitmq-diagnostics alarms)"
    )]
    Blocked { reason: String },
    #[error(
        "the URL of the broker cannot be used: {problem}; ETL_AMQP_URL looks like amqp://user:password@host:5672/%2f, or with several hosts (one:5672,two:5672), or amqps:// and with ?heartbeat=15"
    )]
    Url { problem: String },
}

impl QueueError {
    /// Whether waiting cannot help: a person must change a setting or a queue.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tls { is_ours, .. } => *is_ours,
            Self::Denied { .. }
            | Self::NoVhost { .. }
            | Self::MayNotDeclare { .. }
            | Self::NoStreams { .. }
            | Self::NoStream { .. }
            | Self::Mismatch { .. }
            | Self::Url { .. } => true,
            Self::Timeout { .. }
            | Self::Broker { .. }
            | Self::Limit { .. }
            | Self::NotAmqp { .. }
            | Self::NoHost { .. }
            | Self::Lost { .. }
            | Self::Unreceivable { .. }
            | Self::ConsumerEnded { .. }
            // Somebody else declares it, perhaps in this moment.
            | Self::Absent { .. }
            | Self::Unroutable { .. }
            | Self::Full { .. }
            | Self::Refused { .. }
            | Self::Blocked { .. } => false,
        }
    }

    pub(super) fn broker(doing: impl Into<String>, source: lapin::Error) -> Self {
        let doing = doing.into();
        if let Some(why) = limit(&source) {
            Self::Limit { doing, why }
        } else if amqp_code(&source) == Some(530) && text(&source).contains("not found") {
            Self::NoVhost { doing, source }
        } else if matches!(amqp_code(&source), Some(403 | 530)) {
            // ACCESS_REFUSED and NOT_ALLOWED: the user, the vhost or a permission.
            Self::Denied { doing, source }
        } else if let Some((problem, is_ours)) = tls(&source) {
            Self::Tls {
                doing,
                problem,
                is_ours,
                source: Box::new(source),
            }
        } else if is_unreceivable(&source) {
            let why = source.to_string();
            Self::Unreceivable { why }
        } else {
            Self::Broker { doing, source }
        }
    }

    /// The error of a connection that was never open: what cannot be parsed then is no message, and a broker that misses a
    /// client certificate may close it before it has said so.
    pub(super) fn of_connecting(self, with_tls: bool) -> Self {
        match self {
            Self::Broker { doing, source } if with_tls && is_closed(&source) => Self::Tls {
                doing,
                problem: CLIENT_CERTIFICATE,
                is_ours: false,
                source: Box::new(source),
            },
            Self::Broker { doing, source } if is_other_protocol(&source) => {
                Self::NotAmqp { doing, source }
            }
            Self::Tls { doing, source, .. } if is_other_protocol(&source) => Self::NotAmqp {
                doing,
                source: *source,
            },
            other => other,
        }
    }
}

/// The broker's sentence, where a number of connections or channels is the reason of a refusal: 530 `NOT_ALLOWED` is also the
/// code of a vhost that the user may not enter.
fn limit(error: &lapin::Error) -> Option<String> {
    if matches!(error.kind(), lapin::ErrorKind::ChannelsLimitReached) {
        return Some("the connection has as many channels as the broker allows".to_owned());
    }
    let text = text(error);
    let is_limit = matches!(amqp_code(error), Some(530 | 506)) && text.contains("limit");
    is_limit.then_some(text)
}

const CLIENT_CERTIFICATE: &str = "the broker ended the handshake; if it asks for a client certificate or refuses this one, name the files in ETL_AMQP_URL: ?certfile=/path/to/client.pem&keyfile=/path/to/client.key. Its log says more";

fn is_closed(error: &lapin::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let lapin::ErrorKind::IOError(error) = error.kind() else {
        return false;
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// What is wrong with TLS, and whether a setting here has to change.
fn tls(error: &lapin::Error) -> Option<(&'static str, bool)> {
    let found = match tls_error(error)? {
        TlsError::InvalidCertificate(Certificate::UnknownIssuer) => (
            "the broker's certificate is of an authority that this machine does not trust; name the authority's file in ETL_AMQP_URL: ?cacertfile=/path/to/ca.pem",
            true,
        ),
        TlsError::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => (
            "the broker's certificate is for another host name; write one of its names into ETL_AMQP_URL, or let the broker's certificate name this host",
            true,
        ),
        TlsError::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            (
                "the broker's certificate has expired; renew it there, and check this machine's clock",
                false,
            )
        }
        TlsError::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => (
            "the broker's certificate is not valid yet; check the clocks of the broker and of this machine",
            false,
        ),
        TlsError::InvalidCertificate(_) => (
            "the broker's certificate is not accepted; a certificate that signed itself has to be replaced by one of an authority",
            true,
        ),
        TlsError::AlertReceived(AlertDescription::CertificateExpired) => (
            "the broker says that the client certificate has expired; renew the file that certfile names",
            false,
        ),
        TlsError::AlertReceived(_) => (CLIENT_CERTIFICATE, false),
        _ => ("the broker's log says more", false),
    };
    Some(found)
}

fn tls_error(error: &lapin::Error) -> Option<&TlsError> {
    match error.kind() {
        lapin::ErrorKind::IOError(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// Whether what came is of no AMQP, or of no TLS.
fn is_other_protocol(error: &lapin::Error) -> bool {
    use lapin::ErrorKind::{InvalidProtocolVersion, ParsingError};
    matches!(error.kind(), InvalidProtocolVersion(_) | ParsingError(_))
        || matches!(tls_error(error), Some(TlsError::InvalidMessage(_)))
}

/// Whether a delivery ended the connection: a frame that is larger than the connection allows (501 `FRAME_ERROR`, which
/// lapin finds), or properties that lapin cannot read, such as a message id that is not UTF-8. The broker checks neither.
pub(super) fn is_unreceivable(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ParsingError(_)) || amqp_code(error) == Some(501)
}

/// The AMQP reply code of an error that the broker sent.
pub(super) fn amqp_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// What the broker or lapin says.
pub(super) fn text(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}
