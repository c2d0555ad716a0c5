//! A publisher that no client library is: it writes properties as the bytes that a test gives it, valid or not. RabbitMQ checks
//! little of them. The frames are those of the AMQP 0-9-1 specification, section 4.2.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The frame types.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Bytes of a body frame, below RabbitMQ's `frame_max` of 128 KiB.
const CHUNK: usize = 100_000;

/// The properties of a message, by the bit of their flag. Short strings have at most 255 bytes.
#[derive(Clone, Debug, Default)]
pub struct Properties(BTreeMap<u8, Vec<u8>>);

impl Properties {
    #[must_use]
    pub fn content_encoding(self, text: &[u8]) -> Self {
        self.with(14, short(text))
    }

    /// The entries of the headers, of [`header`].
    #[must_use]
    pub fn headers(self, entries: &[u8]) -> Self {
        self.with(13, long(entries))
    }

    /// 1: transient, 2: persistent.
    #[must_use]
    pub fn delivery_mode(self, mode: u8) -> Self {
        self.with(12, vec![mode])
    }

    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.with(11, vec![priority])
    }

    #[must_use]
    pub fn reply_to(self, text: &[u8]) -> Self {
        self.with(9, short(text))
    }

    /// Milliseconds, as text.
    #[must_use]
    pub fn expiration(self, text: &[u8]) -> Self {
        self.with(8, short(text))
    }

    #[must_use]
    pub fn message_id(self, text: &[u8]) -> Self {
        self.with(7, short(text))
    }

    #[must_use]
    pub fn timestamp(self, seconds: u64) -> Self {
        self.with(6, seconds.to_be_bytes().to_vec())
    }

    /// The property `type`.
    #[must_use]
    pub fn kind(self, text: &[u8]) -> Self {
        self.with(5, short(text))
    }

    #[must_use]
    pub fn app_id(self, text: &[u8]) -> Self {
        self.with(3, short(text))
    }

    fn with(mut self, bit: u8, value: Vec<u8>) -> Self {
        self.0.insert(bit, value);
        self
    }

    /// The frame that a publisher sends has this many bytes.
    pub fn frame_bytes(&self) -> usize {
        self.frame(0).len() + 8
    }

    fn frame(&self, body: usize) -> Vec<u8> {
        let flags = self.0.keys().fold(0_u16, |flags, bit| flags | 1 << bit);
        let mut frame = vec![0, 60, 0, 0];
        frame.extend((body as u64).to_be_bytes());
        frame.extend(flags.to_be_bytes());
        frame.extend(self.0.values().rev().flatten());
        frame
    }
}

/// A header: its name and its value, which begins with its type.
pub fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    [short(name), value.to_vec()].concat()
}

/// A header's value: a text, which need not be UTF-8.
pub fn text(text: &[u8]) -> Vec<u8> {
    [b"S".to_vec(), long(text)].concat()
}

/// A header's value: arrays in each other, to this depth.
pub fn nested(depth: usize) -> Vec<u8> {
    // Written from the inside, and reversed.
    let mut value = vec![1, b't'];
    for _ in 0..depth {
        let bytes = u32::try_from(value.len()).expect("a short value");
        value.extend(bytes.to_le_bytes());
        value.push(b'A');
    }
    value.reverse();
    value
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string has at most 255 bytes");
    [&[length], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a text of a frame");
    [&length.to_be_bytes(), text].concat()
}

/// A connection with one channel and confirms on.
#[derive(Debug)]
pub struct Stranger(TcpStream);

impl Stranger {
    /// Connects to a virtual host. Panics when the broker refuses.
    pub async fn connect(amqp_url: &str) -> Self {
        let url = url::Url::parse(amqp_url).expect("the URL of a virtual host");
        let address = (
            url.host_str().unwrap_or_default(),
            url.port().unwrap_or(5672),
        );
        let stream = TcpStream::connect(address).await;
        let mut stranger = Self(stream.expect("the test broker takes a connection"));
        stranger.write(b"AMQP\0\0\x09\x01").await;
        stranger.await_method(10, 10).await;
        let login = format!(
            "\0{}\0{}",
            url.username(),
            url.password().unwrap_or_default()
        );
        let start = [
            long(b""),
            short(b"PLAIN"),
            long(login.as_bytes()),
            short(b"en_US"),
        ];
        stranger.method(0, (10, 11), &start.concat()).await;
        stranger.await_method(10, 30).await;
        // 2047 channels, the broker's frame_max, no heartbeat.
        stranger
            .method(0, (10, 31), &[7, 255, 0, 2, 0, 0, 0, 0])
            .await;
        let vhost = url.path().trim_start_matches('/').as_bytes();
        stranger
            .method(0, (10, 40), &[&short(vhost)[..], &[0, 0]].concat())
            .await;
        stranger.await_method(10, 41).await;
        stranger.method(1, (20, 10), &[0]).await;
        stranger.await_method(20, 11).await;
        stranger.method(1, (85, 10), &[0]).await;
        stranger.await_method(85, 11).await;
        stranger
    }

    /// Publishes to a queue and waits for the confirm. False when the broker does not take the message, and then the
    /// connection is of no use any more.
    pub async fn publish(&mut self, queue: &str, properties: &Properties, body: &[u8]) -> bool {
        let to = [&[0, 0][..], &short(b""), &short(queue.as_bytes()), &[0]].concat();
        self.method(1, (60, 40), &to).await;
        self.frame(HEADER, 1, &properties.frame(body.len())).await;
        for chunk in body.chunks(CHUNK) {
            self.frame(BODY, 1, chunk).await;
        }
        let answer = self.answer().await;
        is_method(&answer, 60, 80)
    }

    async fn method(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[u8]) {
        let id = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(METHOD, channel, &[&id, arguments].concat())
            .await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let head = [&[kind][..], &channel.to_be_bytes(), &long(payload)].concat();
        self.write(&[&head[..], &[0xCE]].concat()).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        let written = self.0.write_all(bytes).await;
        written.expect("the broker reads what a stranger writes");
    }

    async fn await_method(&mut self, class: u16, method: u16) {
        let answer = self.answer().await;
        assert!(
            is_method(&answer, class, method),
            "the broker did not take what a stranger sent: {}",
            String::from_utf8_lossy(&answer)
        );
    }

    /// The next frame.
    async fn answer(&mut self) -> Vec<u8> {
        loop {
            let mut head = [0; 7];
            let read = self.0.read_exact(&mut head).await;
            read.expect("the broker answers a stranger");
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; length as usize + 1];
            let read = self.0.read_exact(&mut payload).await;
            read.expect("the broker ends its frames");
            if head[0] != HEARTBEAT {
                return payload;
            }
        }
    }
}

fn is_method(frame: &[u8], class: u16, method: u16) -> bool {
    frame.starts_with(&[class.to_be_bytes(), method.to_be_bytes()].concat())
}
