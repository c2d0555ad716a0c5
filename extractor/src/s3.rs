//! S3, and the only code that names its SDK: reads one object forward from any byte.
//!
//! A reader reads one version of the object (`If-Match` with its `ETag`) to its end. The SDK does not
//! resume a body that breaks off, so the reader does, at the byte.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::RequestPayer;
use bytes::Bytes;
use common::backoff::backoff;
use common::job::Source;
use common::message::S3Object;
use common::settings;
use tokio::time::{sleep, timeout};

use crate::aws::AwsError;

/// The bytes of one request. A request costs about 50 ms; a reader that stops wastes the rest of it.
const RANGE_BYTES: u64 = 16 << 20;
/// The longest wait for the next bytes of a body.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts to resume at one byte before the object counts as unavailable.
const MAX_READ_ATTEMPTS: u32 = 6;
/// Attempts to find an object whose query has just succeeded.
const MAX_FIND_ATTEMPTS: u32 = 5;

/// Access to objects.
#[derive(Debug, Clone)]
pub struct S3 {
    client: Client,
    terms: Terms,
}

/// What a job says about the bucket of its results.
#[derive(Debug, Clone, Default)]
struct Terms {
    expected_owner: Option<String>,
    requester_pays: bool,
}

impl Terms {
    fn get(&self, client: &Client, bucket: &str, key: &str) -> GetObjectFluentBuilder {
        let request = client.get_object().bucket(bucket).key(key);
        let payer = self.requester_pays.then_some(RequestPayer::Requester);
        request
            .set_expected_bucket_owner(self.expected_owner.clone())
            .set_request_payer(payer)
    }
}

/// A failure of reading an object.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error(
        "the result s3://{}/{} was replaced while it was being read: its version is no longer {}; run the job again",
        .0.bucket, .0.key, .0.etag
    )]
    Replaced(S3Object),
    #[error("{0:?} is not a location in S3, such as s3://bucket/key")]
    Location(String),
    #[error(
        "the result s3://{bucket}/{key} is encrypted by its writer (CSE_KMS), and only Athena can read it; set results = \"auto\" or \"api\" in the job's [source]"
    )]
    ClientEncrypted { bucket: String, key: String },
}

/// Splits `s3://bucket/key` into bucket and key.
fn parse_location(location: &str) -> Result<(&str, &str), S3Error> {
    (location.strip_prefix("s3://"))
        .and_then(|rest| rest.split_once('/'))
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        .ok_or_else(|| S3Error::Location(location.to_owned()))
}

impl S3Error {
    /// The error for logs, without AWS's own text.
    pub fn logged(&self) -> String {
        match self {
            Self::Aws(error) => error.logged(),
            Self::Replaced(_) | Self::Location(_) | Self::ClientEncrypted { .. } => {
                self.to_string()
            }
        }
    }

    /// Whether a retry by this replica cannot succeed: the location is invalid, there is no such object
    /// or bucket, or a permission is missing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Aws(error) => error.kind.is_answer(),
            Self::Replaced(_) | Self::Location(_) | Self::ClientEncrypted { .. } => true,
        }
    }
}

impl S3 {
    /// `path_style`: `http://host/bucket/key` instead of `http://bucket.host/key`. The default is true
    /// for a custom endpoint, which rarely has a host name for every bucket.
    pub fn new(config: &SdkConfig, path_style: Option<bool>) -> Self {
        let has_endpoint =
            config.endpoint_url().is_some() || settings::variable("AWS_ENDPOINT_URL_S3").is_some();
        let config = aws_sdk_s3::config::Builder::from(config)
            .force_path_style(path_style.unwrap_or(has_endpoint))
            .build();
        Self {
            client: Client::from_conf(config),
            terms: Terms::default(),
        }
    }

    /// The same access, on the terms of a job.
    #[must_use]
    pub fn of(mut self, source: &Source) -> Self {
        self.terms = Terms {
            expected_owner: source.expected_bucket_owner.clone(),
            requester_pays: source.requester_pays,
        };
        self
    }

    /// Finds the current version of an object. Retries a missing one for a few seconds, since the
    /// query that writes it may have ended a moment ago.
    pub async fn find(&self, location: &str) -> Result<S3Object, S3Error> {
        let (bucket, key) = parse_location(location)?;
        let mut attempt = 0;
        loop {
            match self.look(bucket, key).await {
                Err(S3Error::Aws(error))
                    if error.is_code("NoSuchKey") && attempt + 1 < MAX_FIND_ATTEMPTS =>
                {
                    sleep(backoff(attempt, Duration::from_millis(200), CHUNK_TIMEOUT)).await;
                    attempt += 1;
                }
                found => return found,
            }
        }
    }

    /// Checks that an object can be read; `NoSuchKey` when there is none at this location.
    pub async fn probe(&self, location: &str) -> Result<(), S3Error> {
        let (bucket, key) = parse_location(location)?;
        self.look(bucket, key).await?;
        Ok(())
    }

    /// Reads the first byte instead of the head: an error of a HEAD request has no code.
    async fn look(&self, bucket: &str, key: &str) -> Result<S3Object, S3Error> {
        let doing = || format!("opening s3://{bucket}/{key}");
        let object = |etag: &str, size| S3Object {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: etag.to_owned(),
            size,
        };
        let request = self.terms.get(&self.client, bucket, key);
        let found = request.range("bytes=0-0").send().await;
        let found = match found.map_err(|error| AwsError::from_sdk(doing(), &error)) {
            // An empty object has no first byte.
            Err(error) if error.is_code("InvalidRange") => return Ok(object("", 0)),
            found => found?,
        };
        // What the S3 Encryption Client writes beside an object ("Client-side encryption", `x-amz-key-v2`).
        let is_encrypted = |name: &String| name.starts_with("x-amz-key") || name == "x-amz-cek-alg";
        if found
            .metadata()
            .is_some_and(|all| all.keys().any(is_encrypted))
        {
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            return Err(S3Error::ClientEncrypted { bucket, key });
        }
        let range = found.content_range().and_then(parse_content_range);
        let etag = found.e_tag().filter(|etag| !etag.is_empty());
        match (etag, range) {
            (Some(etag), Some((_, size))) => Ok(object(etag, size)),
            _ => Err(AwsError::unavailable(doing(), "S3 returned no ETag or no size").into()),
        }
    }

    /// Reads `object` from byte `at`.
    pub fn read(&self, object: S3Object, at: u64) -> ObjectReader {
        ObjectReader {
            client: self.client.clone(),
            terms: self.terms.clone(),
            object,
            at,
            body: None,
            attempts: 0,
        }
    }
}

/// The bytes of an object, in order and each once.
#[derive(Debug)]
pub struct ObjectReader {
    client: Client,
    terms: Terms,
    object: S3Object,
    /// The next byte.
    at: u64,
    body: Option<ByteStream>,
    /// Requests since the last byte arrived.
    attempts: u32,
}

impl ObjectReader {
    /// The next bytes; none at the object's end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, S3Error> {
        let mut broken = "the body was empty".to_owned();
        while self.at < self.object.size {
            if self.body.is_none() {
                self.pause(&broken).await?;
                self.body = Some(self.request().await?);
            }
            let Some(body) = &mut self.body else { continue };
            match timeout(CHUNK_TIMEOUT, body.next()).await {
                Ok(Some(Ok(bytes))) if !bytes.is_empty() => return self.took(bytes).map(Some),
                // The end of a range, or of a response that was shorter than its range.
                Ok(Some(Ok(_)) | None) => {}
                Ok(Some(Err(error))) => broken = error.to_string(),
                Err(_) => broken = format!("no data arrived for {} s", CHUNK_TIMEOUT.as_secs()),
            }
            self.body = None;
        }
        Ok(None)
    }

    fn took(&mut self, bytes: Bytes) -> Result<Bytes, S3Error> {
        self.attempts = 0;
        self.at += bytes.len() as u64;
        if self.at > self.object.size {
            let message = "more bytes arrived than the object has";
            return Err(AwsError::unavailable(self.doing(), message).into());
        }
        Ok(bytes)
    }

    /// Waits before another request at the same byte; fails after the last attempt. The SDK retries
    /// requests that fail; this is for bodies that break off.
    async fn pause(&mut self, broken: &str) -> Result<(), S3Error> {
        let attempt = self.attempts;
        if attempt >= MAX_READ_ATTEMPTS {
            return Err(AwsError::unavailable(self.doing(), broken).into());
        }
        if attempt > 0 {
            tracing::debug!(error = broken, byte = self.at, "a body broke off; resuming");
            sleep(backoff(
                attempt,
                Duration::from_millis(100),
                Duration::from_secs(5),
            ))
            .await;
        }
        self.attempts += 1;
        Ok(())
    }

    fn doing(&self) -> String {
        let S3Object { bucket, key, .. } = &self.object;
        format!("reading s3://{bucket}/{key} at byte {}", self.at)
    }

    /// Requests the next range, and checks that it belongs to the same version of the object.
    async fn request(&self) -> Result<ByteStream, S3Error> {
        let S3Object {
            bucket,
            key,
            etag,
            size,
        } = &self.object;
        let last = size.min(&(self.at + RANGE_BYTES)) - 1;
        let request = self.terms.get(&self.client, bucket, key);
        let range = format!("bytes={}-{last}", self.at);
        let answer = request.if_match(etag).range(range).send().await;
        let replaced = || S3Error::Replaced(self.object.clone());
        let answer = match answer.map_err(|error| AwsError::from_sdk(self.doing(), &error)) {
            Err(error) if error.is_code("PreconditionFailed") => return Err(replaced()),
            answer => answer?,
        };
        match answer.content_range().and_then(parse_content_range) {
            Some((_, total)) if total != *size => Err(replaced()),
            Some((start, _)) if start == self.at => Ok(answer.body),
            _ => Err(AwsError::unavailable(self.doing(), "S3 returned another range").into()),
        }
    }
}

/// First byte and size of `bytes 0-9/100`.
fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_is_a_bucket_and_a_key() {
        assert_eq!(
            parse_location("s3://b/c/d e.csv").unwrap(),
            ("b", "c/d e.csv")
        );
        for bad in ["", "s3://", "s3://b", "s3://b/", "s3:///k", "https://b/k"] {
            assert!(parse_location(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn content_range_is_a_first_byte_and_a_size() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, 100)));
        for bad in ["", "bytes */100", "bytes 5-9/*", "items 5-9/100"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
