//! The clients of AWS that the service and the commands share.

use crate::athena::Athena;
use crate::aws::{self, ConfigurationError, Patience, SdkConfig};
use crate::s3::S3;
use crate::settings::Settings;

/// One client for each AWS service.
#[derive(Debug, Clone)]
pub struct Clients {
    pub athena: Athena,
    pub s3: S3,
}

impl Clients {
    /// Reads the AWS configuration for the service. Makes no call to Athena or S3.
    pub async fn connect(settings: &Settings) -> Result<Self, ConfigurationError> {
        let config = aws::configure(Patience::Service).await?;
        Ok(Self::of(&config, settings))
    }

    /// Makes the clients of a configuration.
    pub fn of(config: &SdkConfig, settings: &Settings) -> Self {
        Self {
            athena: Athena::new(config),
            s3: S3::new(config, settings.s3_path_style),
        }
    }
}
