//! `etl schema`: the JSON Schema of job files.

use super::Command;
use crate::Failure;
use crate::output::print_json;

/// Print the JSON Schema of job files, for editors and checks.
///
/// The comment `#:schema ./job.schema.json` in the first line of a job tells editors where it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl schema > jobs/job.schema.json")]
pub struct Arguments {}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        print_json(&common::job::schema())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn committed_schema_is_that_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../jobs/job.schema.json");
        let committed = std::fs::read_to_string(path).unwrap();
        let current = serde_json::to_string_pretty(&common::job::schema()).unwrap();
        assert!(
            committed.trim_end() == current,
            "jobs/job.schema.json is out of date; write it again: etl schema > jobs/job.schema.json"
        );
    }
}
