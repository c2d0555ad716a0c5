//! `extractor columns`: the columns of a job's query, which `etl init` and `etl validate --connected` ask for.

use common::command::{Failure, assignment, assignments, print, print_json};
use common::schema::ResultColumn;

use super::sample::limited;
use super::{clients, hinted, read_job, to_the_end};

/// Print the columns of a job's query, with their types in Athena.
///
/// The query has a LIMIT of 0, so that it scans nothing. A parameter without a value gets an example of its type.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: extractor columns most_visited_url")]
pub struct Arguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    job: String,
    /// Set a parameter of the job; the others have their defaults.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<bool, Failure> {
    let job = read_job(&arguments.job)?;
    let request = job.example(&assignments(&arguments.set)?);
    let sql = limited(&request.map_err(Failure::usage)?.sql, 0);
    let clients = clients(&job.source).await?;
    let (id, _) = to_the_end(&clients, &job.source, &sql, "columns").await?;
    let columns = clients.athena.columns(&id).await.map_err(hinted)?;
    if arguments.json {
        print_json(&columns)?;
    } else {
        let line = |column: &ResultColumn| format!("{} {}", column.name, column.type_name);
        let lines: Vec<_> = columns.iter().map(line).collect();
        print(&lines.join("\n"))?;
    }
    Ok(true)
}
