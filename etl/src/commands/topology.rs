//! `etl topology`: the queues for an administrator who declares them, where the services' user may not.

use anyhow::Context;
use common::queue::{Archive, definitions};
use common::service::ServiceSettings;
use common::settings;

use super::Command;
use crate::Failure;
use crate::output::print;

/// Print the definitions of the queues, for an administrator.
///
/// For brokers where the services may not declare them (`ETL_DECLARE=skip`).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example: etl topology >etl.json && rabbitmqctl import_definitions etl.json
The vhost is the one of ETL_AMQP_URL. With ETL_ARCHIVE=off the stream etl.archive is left out.")]
pub struct Arguments {
    /// Print JSON, which it does in any case.
    #[arg(long)]
    pub json: bool,
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let settings: ServiceSettings = settings::load().map_err(Failure::usage)?;
        let with_archive = settings.archive != Archive::Off;
        let definitions = definitions(&settings.amqp_url, with_archive).map_err(Failure::usage)?;
        let text = serde_json::to_string_pretty(&definitions).context("cannot write JSON")?;
        print(&text)?;
        Ok(true)
    }
}
