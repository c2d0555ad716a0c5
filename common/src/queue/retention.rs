//! The age of the archive. RabbitMQ removes whole segments of a stream, and looks at their age only when a new one begins;
//! segments end by size. So in a quiet system the last 64 MiB, and whatever was old when it became quiet, would stay for ever.
//!
//! Padding ends a segment by time: once a day where batches came, and once more when all of them are too old. A batch is kept
//! for 7 days at least, and for 9 days and two hours at most while an extractor runs. On a busy system nothing is padded.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::stream::{Begin, StreamReader};
use super::{Connection, Outgoing, Publisher, QueueError, topology};

const DAY: Duration = Duration::from_hours(24);

/// Batches of the last two days are ended by the padding of the last one. Twice as long, so that no check misses one.
const RECENT: Duration = Duration::from_hours(48);

/// Bytes of a message of padding.
const PADDING: usize = 1 << 20;

/// What the archive has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Contents {
    /// Bytes of batches and events of the last two days. More than a segment has ended one.
    recent: usize,
    /// Padding of the last day.
    is_padded: bool,
    /// Messages that the broker should have removed a day ago.
    is_expired: bool,
}

impl Contents {
    fn needs_padding(self) -> bool {
        self.recent <= topology::ARCHIVE_SEGMENT_BYTES
            && !self.is_padded
            && (self.recent > 0 || self.is_expired)
    }
}

/// Ends the segment that the archive is written to, where that is due. Returns whether it was.
pub async fn limit_age(connection: &Connection) -> Result<bool, QueueError> {
    let own = connection.another("etl archive").await?;
    let limited = async {
        let due = contents(&own, SystemTime::now()).await?.needs_padding();
        if due {
            pad(&own, topology::ARCHIVE_SEGMENT_BYTES).await?;
        }
        Ok(due)
    };
    let limited = limited.await;
    own.close().await;
    limited
}

/// Publishes so many bytes of padding to the archive, and the message that begins the next segment.
pub async fn pad(connection: &Connection, segment: usize) -> Result<(), QueueError> {
    let mut publisher = Publisher::open(connection).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let id = format!("padding/{}", now.unwrap_or_default().as_secs());
    let mut left = segment;
    while left > 0 {
        let length = left.min(PADDING);
        let padding = Outgoing::padding(&id, length);
        publisher.publish(std::slice::from_ref(&padding)).await?;
        left -= length;
    }
    publisher.publish(&[Outgoing::padding(&id, 1)]).await?;
    publisher.close().await;
    Ok(())
}

async fn contents(connection: &Connection, now: SystemTime) -> Result<Contents, QueueError> {
    let ago = |time| now.checked_sub(time).unwrap_or(UNIX_EPOCH);
    let first = first_from(connection, Begin::Offset(0)).await?;
    let kept = first_from(
        connection,
        Begin::Time(ago(topology::ARCHIVE_DAYS * DAY + DAY)),
    )
    .await?;
    let mut contents = Contents {
        is_expired: first < kept,
        ..Contents::default()
    };
    let mut archive = StreamReader::open_archive(connection, Begin::Time(ago(RECENT))).await?;
    while let Some(message) = archive.next_earlier().await? {
        if let Some(padded) = padded_at(message.id()) {
            contents.is_padded |= padded > ago(DAY);
        } else if message.kind() != Outgoing::MARKER {
            contents.recent += message.body().len();
        }
        if contents.recent > topology::ARCHIVE_SEGMENT_BYTES {
            break;
        }
    }
    archive.close(connection).await;
    Ok(contents)
}

/// The place of the first message from here on.
async fn first_from(connection: &Connection, begin: Begin) -> Result<Option<u64>, QueueError> {
    let mut archive = StreamReader::open_archive(connection, begin).await?;
    let first = archive.next_offset().await?;
    archive.close(connection).await;
    Ok(first)
}

/// When padding was published, by its id.
fn padded_at(id: &str) -> Option<SystemTime> {
    let seconds = id.strip_prefix("padding/")?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_due_once_a_day_where_batches_came_or_are_too_old() {
        let none = Contents::default();
        let recent = Contents { recent: 1, ..none };
        let expired = Contents {
            is_expired: true,
            ..none
        };
        assert!(recent.needs_padding() && expired.needs_padding());
        assert!(!none.needs_padding());
        for other in [recent, expired] {
            let padded = Contents {
                is_padded: true,
                ..other
            };
            let busy = Contents {
                recent: topology::ARCHIVE_SEGMENT_BYTES + 1,
                ..other
            };
            assert!(!padded.needs_padding() && !busy.needs_padding());
        }
    }

    #[test]
    fn padding_knows_its_time() {
        let at = UNIX_EPOCH + Duration::from_secs(7);
        assert_eq!(padded_at("padding/7"), Some(at));
        for other in ["run/0/7", "padding/x", "marker/7"] {
            assert_eq!(padded_at(other), None);
        }
    }
}
