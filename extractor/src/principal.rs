//! Who AWS sees, and the only code that names the SDK of STS.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_sts::Client;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata as _;
use aws_smithy_types::retry::RetryConfig;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::aws;

/// How long AWS may take to tell. The answer is only for the ledger.
const LIMIT: Duration = Duration::from_secs(3);

/// The principal of some credentials.
#[derive(Debug)]
pub struct Principal {
    sts: Client,
    region: Option<String>,
    /// What is known without a call to AWS.
    credentials: String,
    arn: OnceCell<String>,
}

impl Principal {
    pub async fn new(config: &SdkConfig, credentials: String) -> Self {
        // What `configure` could read can be read again.
        let unobserved = aws::unobserved(config).await;
        let unobserved = unobserved.unwrap_or_else(|_| config.clone());
        let single = aws_sdk_sts::config::Builder::from(&unobserved)
            .retry_config(RetryConfig::disabled())
            .build();
        Self {
            sts: Client::from_conf(single),
            region: config.region().map(ToString::to_string),
            credentials,
            arn: OnceCell::new(),
        }
    }

    /// The ARN of the user or role, asked once; where AWS does not tell, what is known without it. STS asks for no
    /// permission, but the network may not reach it.
    pub async fn name(&self) -> &str {
        let ask = async || {
            let asked = self.sts.get_caller_identity().send();
            let answer = timeout(LIMIT, asked).await.ok()?.ok()?;
            answer.arn.filter(|arn| !arn.is_empty())
        };
        let name = async || ask().await.unwrap_or_else(|| self.credentials.clone());
        self.arn.get_or_init(name).await
    }

    /// The same without a call to AWS.
    pub fn known(&self) -> &str {
        self.arn.get().unwrap_or(&self.credentials)
    }

    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }
}

/// The code with which AWS refused to let a role be assumed, if that is what an error is.
pub(crate) fn refused_role<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a str> {
    error.downcast_ref::<AssumeRoleError>()?.code()
}
