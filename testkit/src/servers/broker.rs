//! A RabbitMQ node: its script, its management API, and new virtual hosts on it.
//!
//! Tests that only need a virtual host run on another broker, for example of another version, when `ETL_TEST_OUTSIDE_AMQP_URL`
//! (`amqp://user:password@host:port/%2f`, of an administrator) and `ETL_TEST_OUTSIDE_MANAGEMENT_URL` (`http://host:port`)
//! name one:
//!
//! ```text
//! docker run -d --rm --network host rabbitmq:4-management
//! ```
//!
//! Tests that kill, stop or reconfigure their broker start a private one, of the installed version.

use std::ffi::OsStr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::script::{Instance, variable_of};
use crate::http;

/// The broker that `deploy/local/with-servers` started.
pub fn shared_broker() -> Broker {
    let instance = Instance::shared("rabbitmq", "ETL_TEST_BROKER_DIR");
    Broker(Place::Local(Arc::new(instance)))
}

pub(super) fn outside_broker() -> Option<Broker> {
    let url = variable_of("ETL_TEST_OUTSIDE_AMQP_URL")?;
    let management = variable_of("ETL_TEST_OUTSIDE_MANAGEMENT_URL");
    Some(Broker(Place::Outside {
        url,
        management: management
            .expect("ETL_TEST_OUTSIDE_MANAGEMENT_URL is set where ETL_TEST_OUTSIDE_AMQP_URL is"),
    }))
}

/// A private broker for this test; its start takes some seconds.
pub async fn private_broker() -> Broker {
    let instance = Instance::private("rabbitmq").await;
    Broker(Place::Local(Arc::new(instance)))
}

/// A private broker with more lines in its rabbitmq.conf.
pub async fn private_broker_with(configuration: &str) -> Broker {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), configuration).expect("a temporary file can be written");
    let variables = [("RABBITMQ_EXTRA", file.path().as_os_str())];
    let instance = Instance::private_with("rabbitmq", &variables).await;
    Broker(Place::Local(Arc::new(instance)))
}

/// A private broker that has no streams, as RabbitMQ 3 before its feature flag is enabled.
pub async fn private_broker_without_streams() -> Broker {
    let variables = [("RABBITMQ_WITHOUT_STREAMS", OsStr::new("1"))];
    let instance = Instance::private_with("rabbitmq", &variables).await;
    Broker(Place::Local(Arc::new(instance)))
}

/// A RabbitMQ node. A private one ends when its last clone and its last virtual host are dropped.
#[derive(Clone, Debug)]
pub struct Broker(Place);

#[derive(Clone, Debug)]
enum Place {
    Local(Arc<Instance>),
    Outside { url: String, management: String },
}

impl Broker {
    /// Another private broker, which joins the cluster of this one.
    pub(super) async fn joined(&self) -> Self {
        let variables = [("RABBITMQ_JOIN", self.instance().dir().as_os_str())];
        let instance = Instance::private_with("rabbitmq", &variables).await;
        Self(Place::Local(Arc::new(instance)))
    }

    /// `amqp://user:password@host:port/%2f`.
    pub fn url(&self) -> String {
        match &self.0 {
            Place::Local(instance) => instance.read("url"),
            Place::Outside { url, .. } => url.clone(),
        }
    }

    /// Of the management API: `http://host:port`.
    pub(super) fn management(&self) -> String {
        match &self.0 {
            Place::Local(instance) => instance.read("management"),
            Place::Outside { management, .. } => management.clone(),
        }
    }

    pub(super) fn is_private(&self) -> bool {
        matches!(&self.0, Place::Local(instance) if instance.is_private())
    }

    fn instance(&self) -> &Instance {
        match &self.0 {
            Place::Local(instance) => instance,
            Place::Outside { url, .. } => {
                panic!("the broker at {url} cannot be controlled by a test; use private_broker()")
            }
        }
    }

    /// Its name in a cluster.
    pub fn node(&self) -> String {
        self.instance().read("node")
    }

    /// The process id of the Erlang VM. Only of a broker on this machine.
    pub fn pid(&self) -> u32 {
        self.instance().pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills the node with SIGKILL. Private brokers only.
    ///
    /// First flushes the names of quorum queues to disk. RabbitMQ 3.10.8 does so half a second after the declaration. A node that
    /// is killed earlier restarts with the queue but without its log and leader: confirmed messages are lost and the queue is
    /// unusable. The tests are not about this weakness of the broker.
    pub async fn kill9(&self) {
        self.rabbitmqctl(&["eval", "[dets:sync(Table) || Table <- dets:all()]."])
            .await;
        self.instance().kill9().await;
    }

    /// Sends a signal to the Erlang VM, such as `Signal::STOP`. Private brokers only.
    pub fn signal(&self, signal: Signal) {
        assert!(self.is_private(), "other tests use a shared broker");
        let pid = self.instance().pid();
        kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot signal {pid:?}: {e}"));
    }

    /// Stops it cleanly, or as cleanly as the script can.
    pub async fn stop(&self) {
        assert!(
            self.is_private(),
            "a shared broker must not be stopped: other tests use it"
        );
        self.instance().run("stop").await;
    }

    /// Restarts it after [`Self::kill9`] or [`Self::stop`], at the same address with the same data.
    pub async fn restart(&self) {
        self.instance().run("start").await;
    }

    /// Runs `rabbitmqctl` against this node and returns its output. Panics when it fails.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        let done = self.try_rabbitmqctl(arguments).await;
        done.unwrap_or_else(|errors| panic!("rabbitmqctl {arguments:?} failed: {errors}"))
    }

    /// The same, with what it says when it fails, as it does while the node starts or stops.
    pub(super) async fn try_rabbitmqctl(&self, arguments: &[&str]) -> Result<String, String> {
        let program = self.instance().dir().join("rabbitmqctl");
        let output = tokio::process::Command::new(&program)
            .arg("-q")
            .args(arguments)
            .output()
            .await;
        let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// The `ETL_MANAGEMENT_URL` of `etl doctor`, with the credentials of the AMQP URL.
    pub fn management_url(&self) -> String {
        with_credentials(&self.management(), &self.url())
    }

    /// Calls the management API at `/api/PATH`.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        call(&self.management(), &self.url(), method, path, body).await
    }
}

fn with_credentials(management: &str, amqp_url: &str) -> String {
    let credentials = amqp_url
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('@'))
        .map_or("", |(user, _)| user);
    let url = management.trim_end_matches('/');
    url.replacen("://", &format!("://{credentials}@"), 1)
}

/// Calls the management API with the credentials of the AMQP URL.
pub(super) async fn call(
    management: &str,
    amqp_url: &str,
    method: Method,
    path: &str,
    body: Value,
) -> (StatusCode, Value) {
    let url = format!("{}/api/{path}", with_credentials(management, amqp_url));
    let body = if body.is_null() {
        Bytes::new()
    } else {
        Bytes::from(body.to_string())
    };
    let answer = http::send(method, &url, &[("content-type", "application/json")], body).await;
    let answer = answer
        .unwrap_or_else(|e| panic!("the management API of the test broker does not answer: {e}"));
    (
        answer.status(),
        serde_json::from_slice(answer.body()).unwrap_or(Value::Null),
    )
}
