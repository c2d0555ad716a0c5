//! The clients of AWS that the service and the commands share.

use common::lifecycle::Health;

use crate::athena::Athena;
use crate::aws::{self, ConfigurationError, Patience, SdkConfig};
use crate::s3::S3;
use crate::settings::Settings;

/// One client for each AWS service.
#[derive(Debug, Clone)]
pub struct Clients {
    pub athena: Athena,
    pub s3: S3,
    /// Who AWS sees, as far as it is known without a call to AWS.
    pub principal: String,
}

impl Clients {
    /// Reads the AWS configuration for the service. Makes no call to Athena or S3.
    pub async fn connect(settings: &Settings, health: &Health) -> Result<Self, ConfigurationError> {
        let config = aws::configure(Patience::Service(health.clone())).await?;
        let principal = aws::identity(&config).await;
        let principal = principal.unwrap_or_else(|_| "no credentials".to_owned());
        Ok(Self::of(&config, settings, principal))
    }

    /// Makes the clients of a configuration.
    pub fn of(config: &SdkConfig, settings: &Settings, principal: String) -> Self {
        Self {
            athena: Athena::new(config),
            s3: S3::new(config, settings.s3_path_style),
            principal,
        }
    }
}
