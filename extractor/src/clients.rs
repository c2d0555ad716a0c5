//! The clients of AWS that the service and the commands share: those of the extractor's own account and region, and those of
//! a job that names others.

use std::sync::Arc;

use aws_config::Region;
use aws_config::sts::AssumeRoleProvider;
use aws_credential_types::provider::SharedCredentialsProvider;
use common::job::{Account, Source};
use common::lifecycle::Health;

use crate::athena::Athena;
use crate::aws::{self, ConfigurationError, Patience, SdkConfig};
use crate::principal::Principal;
use crate::s3::S3;
use crate::settings::Settings;

/// The name that the sessions of assumed roles have in AWS's logs.
const SESSION: &str = "etl-extractor";

/// What the extractor read from its AWS configuration.
#[derive(Debug, Clone)]
pub struct Access {
    config: SdkConfig,
    s3_path_style: Option<bool>,
    /// Its credentials, as far as they are known without a call to AWS.
    pub credentials: String,
}

/// One client for each AWS service.
#[derive(Debug, Clone)]
pub struct Clients {
    pub athena: Athena,
    pub s3: S3,
    /// Who AWS sees.
    pub principal: Arc<Principal>,
}

impl Access {
    /// Reads the AWS configuration for the service. Makes no call to Athena or S3.
    pub async fn read(settings: &Settings, health: &Health) -> Result<Self, ConfigurationError> {
        let config = aws::configure(Patience::Service(health.clone())).await?;
        let credentials = aws::identity(&config).await;
        let credentials = credentials.unwrap_or_else(|_| "no credentials".to_owned());
        Ok(Self::new(config, settings, credentials))
    }

    pub fn new(config: SdkConfig, settings: &Settings, credentials: String) -> Self {
        Self {
            config,
            s3_path_style: settings.s3_path_style,
            credentials,
        }
    }

    /// The clients of an account. They keep the credentials of a role that is assumed, and renew them.
    pub async fn clients(&self, account: &Account) -> Clients {
        let mut config = self.config.clone();
        if let Some(region) = &account.region {
            let region = Some(Region::new(region.clone()));
            config = config.into_builder().region(region).build();
        }
        let credentials = match &account.role_arn {
            None => self.credentials.clone(),
            Some(role) => {
                let mut assumed = AssumeRoleProvider::builder(role)
                    .session_name(SESSION)
                    .configure(&config);
                if let Some(id) = &account.external_id {
                    assumed = assumed.external_id(id);
                }
                let assumed = SharedCredentialsProvider::new(assumed.build().await);
                let builder = config.into_builder().credentials_provider(assumed);
                config = builder.build();
                role.clone()
            }
        };
        Clients {
            athena: Athena::new(&config),
            s3: S3::new(&config, self.s3_path_style),
            principal: Arc::new(Principal::new(&config, credentials).await),
        }
    }
}

impl Clients {
    /// The same clients for the results of a job.
    #[must_use]
    pub fn of(mut self, source: &Source) -> Self {
        self.s3 = self.s3.of(source);
        self
    }
}
