//! Athena, and the only code that names its SDK: start, look, stop, read.
//!
//! What comes out is plain data; every error is an [`AwsError`] that says what follows from it.

use std::fmt;

use aws_config::SdkConfig;
use aws_sdk_athena::Client;
use aws_sdk_athena::types::{
    AthenaError, ColumnInfo, ManagedQueryResultsConfiguration, QueryExecution,
    QueryExecutionContext, QueryExecutionState, QueryExecutionStatistics, ResultConfiguration,
    ResultSet, Row, StatementType, WorkGroupConfiguration, WorkGroupState,
};
use common::job::Source;
use common::message::RunId;
use common::schema::ResultColumn;
use sha2::{Digest, Sha256};

use crate::aws::AwsError;

/// Rows of a page: the most that `GetQueryResults` gives.
const PAGE: i32 = 1_000;

/// Athena's side of a run.
#[derive(Debug, Clone)]
pub struct Athena(Client);

/// What is asked of Athena.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub run: &'a RunId,
    pub sql: &'a str,
    pub source: &'a Source,
    /// From 1.
    pub attempt: u32,
}

/// How a query execution stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    pub state: ExecutionState,
    /// So far.
    pub bytes_scanned: u64,
    /// `s3://bucket/key` of the result; none with managed query results.
    pub output_location: Option<String>,
    /// Whether it is a kind of statement that has rows with a header: not DDL, not `SHOW`, `DESCRIBE`
    /// or `EXPLAIN`.
    pub is_query: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutionState {
    /// Queued or running; a running one may be queued again.
    Working,
    Succeeded,
    Failed(QueryFailure),
    /// Somebody stopped it, and why, if it says.
    Cancelled(String),
}

/// Why Athena could not answer (Athena User Guide, "Athena error catalog").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryFailure {
    pub reason: String,
    /// 1 system, 2 user, 3 other.
    pub category: Option<i32>,
    pub error_type: Option<i32>,
    /// Whether Athena thinks that another attempt may work.
    pub is_retryable: bool,
}

/// What a workgroup says of the queries in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workgroup {
    pub name: String,
    pub enabled: bool,
    /// `s3://bucket/prefix/`.
    pub output_location: Option<String>,
    /// A query's own output location is ignored.
    pub enforced: bool,
    /// Athena keeps results itself: there is no object.
    pub managed_results: bool,
    /// The most that a query may scan, in bytes.
    pub scan_limit: Option<i64>,
}

impl fmt::Display for Workgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.enabled { "enabled" } else { "disabled" };
        write!(f, "{}: {state}", self.name)?;
        if self.enforced {
            f.write_str(", its settings outrank a job's")?;
        }
        if let Some(limit) = self.scan_limit {
            write!(f, ", a query may scan {limit} bytes")?;
        }
        Ok(())
    }
}

/// A page of a result.
#[derive(Debug)]
pub struct Page {
    pub columns: Vec<ResultColumn>,
    rows: Vec<Row>,
    /// The token of the page behind it.
    pub next: Option<String>,
}

impl Query<'_> {
    /// The same for the same query of the same run, so that whoever asks again gets the same
    /// execution and nobody pays twice; another for every other query. 64 characters, of the 32 to
    /// 128 that Athena takes.
    pub fn token(&self) -> String {
        let (source, attempt) = (self.source, self.attempt.to_string());
        let mut hash = Sha256::new();
        for part in [
            Some(self.run.as_str()),
            Some(self.sql),
            Some(&source.database),
            source.catalog.as_deref(),
            source.workgroup.as_deref(),
            source.output_location.as_deref(),
            Some(&attempt),
        ] {
            // With its length, so that no two different queries hash the same bytes.
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hash.update(length.to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        format!("{:x}", hash.finalize())
    }
}

impl Athena {
    pub fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }

    /// Starts the query, or finds the execution that was started for it before. Gives its id.
    pub async fn start(&self, query: Query<'_>) -> Result<String, AwsError> {
        let source = query.source;
        let context = QueryExecutionContext::builder()
            .database(&source.database)
            .set_catalog(source.catalog.clone())
            .build();
        let output = source.output_location.as_ref().map(|location| {
            ResultConfiguration::builder()
                .output_location(location)
                .build()
        });
        let started = self
            .0
            .start_query_execution()
            .query_string(query.sql)
            .client_request_token(query.token())
            .query_execution_context(context)
            .set_result_configuration(output)
            .set_work_group(source.workgroup.clone())
            .send()
            .await
            .map_err(|error| AwsError::of("starting the query", &error))?;
        started.query_execution_id.ok_or_else(|| {
            AwsError::unavailable("starting the query", "Athena gave no query execution id")
        })
    }

    /// How the execution stands.
    pub async fn look(&self, id: &str) -> Result<Execution, AwsError> {
        let doing = || format!("looking at query {id}");
        let found = self
            .0
            .get_query_execution()
            .query_execution_id(id)
            .send()
            .await
            .map_err(|error| AwsError::of(doing(), &error))?;
        found
            .query_execution()
            .map(describe)
            .ok_or_else(|| AwsError::unavailable(doing(), "Athena gave no description of it"))
    }

    /// What a workgroup says of the queries in it.
    pub async fn workgroup(&self, name: &str) -> Result<Workgroup, AwsError> {
        let doing = || format!("looking at the workgroup {name}");
        let found = self
            .0
            .get_work_group()
            .work_group(name)
            .send()
            .await
            .map_err(|error| AwsError::of(doing(), &error))?;
        let found = found
            .work_group
            .ok_or_else(|| AwsError::unavailable(doing(), "Athena gave no description of it"))?;
        let settings = found.configuration();
        let result = settings.and_then(WorkGroupConfiguration::result_configuration);
        let managed =
            settings.and_then(WorkGroupConfiguration::managed_query_results_configuration);
        Ok(Workgroup {
            name: name.to_owned(),
            enabled: found.state() != Some(&WorkGroupState::Disabled),
            output_location: result
                .and_then(ResultConfiguration::output_location)
                .filter(|location| !location.is_empty())
                .map(str::to_owned),
            enforced: settings
                .and_then(WorkGroupConfiguration::enforce_work_group_configuration)
                .unwrap_or(false),
            managed_results: managed.is_some_and(ManagedQueryResultsConfiguration::enabled),
            scan_limit: settings.and_then(WorkGroupConfiguration::bytes_scanned_cutoff_per_query),
        })
    }

    /// Stops the execution. One that has ended stays as it is.
    pub async fn stop(&self, id: &str) -> Result<(), AwsError> {
        self.0
            .stop_query_execution()
            .query_execution_id(id)
            .send()
            .await
            .map(drop)
            .map_err(|error| AwsError::of(format!("stopping query {id}"), &error))
    }

    /// The columns of the result of an execution that succeeded.
    pub async fn columns(&self, id: &str) -> Result<Vec<ResultColumn>, AwsError> {
        self.results(id, None, 1).await.map(|page| page.columns)
    }

    /// The page of the result that `token` names, or the first.
    pub async fn page(&self, id: &str, token: Option<&str>) -> Result<Page, AwsError> {
        self.results(id, token, PAGE).await
    }

    async fn results(&self, id: &str, token: Option<&str>, most: i32) -> Result<Page, AwsError> {
        let page = self
            .0
            .get_query_results()
            .query_execution_id(id)
            .set_next_token(token.map(str::to_owned))
            .max_results(most)
            .send()
            .await
            .map_err(|error| AwsError::of(format!("reading the result of query {id}"), &error))?;
        let set = page
            .result_set
            .unwrap_or_else(|| ResultSet::builder().build());
        let columns = set
            .result_set_metadata
            .and_then(|metadata| metadata.column_info);
        Ok(Page {
            columns: columns.unwrap_or_default().iter().map(column).collect(),
            rows: set.rows.unwrap_or_default(),
            next: page.next_token,
        })
    }
}

impl Page {
    /// The page's rows in order; `None` is NULL. The first page begins with the header.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = PageRow<'_>> {
        self.rows.iter().map(PageRow)
    }
}

/// A row of a page.
#[derive(Debug, Clone, Copy)]
pub struct PageRow<'a>(&'a Row);

impl<'a> PageRow<'a> {
    pub fn values(self) -> impl ExactSizeIterator<Item = Option<&'a str>> + Clone {
        self.0.data().iter().map(|value| value.var_char_value())
    }
}

fn describe(found: &QueryExecution) -> Execution {
    let status = found.status();
    let error = status.and_then(|status| status.athena_error());
    let reason = || {
        let reason = status.and_then(|status| status.state_change_reason());
        let message = error.and_then(AthenaError::error_message);
        let given = reason.filter(|reason| !reason.is_empty()).or(message);
        given.unwrap_or("Athena gave no reason").to_owned()
    };
    let state = match status.and_then(|status| status.state()) {
        Some(QueryExecutionState::Succeeded) => ExecutionState::Succeeded,
        Some(QueryExecutionState::Cancelled) => ExecutionState::Cancelled(reason()),
        Some(QueryExecutionState::Failed) => ExecutionState::Failed(QueryFailure {
            reason: reason(),
            category: error.and_then(AthenaError::error_category),
            error_type: error.and_then(AthenaError::error_type),
            is_retryable: error.is_some_and(AthenaError::retryable),
        }),
        // Queued, running, or a state of the future that is not known to be an end.
        _ => ExecutionState::Working,
    };
    let scanned = found
        .statistics()
        .and_then(QueryExecutionStatistics::data_scanned_in_bytes);
    let location = found
        .result_configuration()
        .and_then(|result| result.output_location());
    Execution {
        state,
        bytes_scanned: scanned
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(0),
        output_location: location
            .filter(|location| !location.is_empty())
            .map(str::to_owned),
        is_query: !matches!(
            found.statement_type(),
            Some(StatementType::Ddl | StatementType::Utility)
        ),
    }
}

/// The type's full text: the metadata has the arguments of a decimal apart from its name.
fn column(info: &ColumnInfo) -> ResultColumn {
    let type_name = match info.r#type() {
        "decimal" => format!("decimal({},{})", info.precision(), info.scale()),
        other => other.to_owned(),
    };
    ResultColumn {
        name: info.name().to_owned(),
        type_name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::job::Results;
    use std::time::Duration;

    fn source() -> Source {
        Source {
            database: "netflix".into(),
            workgroup: None,
            catalog: None,
            output_location: None,
            results: Results::Auto,
            max_scanned: None,
            timeout: Duration::from_mins(30),
        }
    }

    #[test]
    fn the_token_is_the_querys_and_no_other_has_it() {
        let token = |run: &str, sql: &str, source: &Source, attempt| {
            Query {
                run: &run.parse().unwrap(),
                sql,
                source,
                attempt,
            }
            .token()
        };
        let plain = source();
        let workgroup = Source {
            workgroup: Some("etl".into()),
            ..source()
        };
        // The same bytes in another part.
        let output = Source {
            output_location: Some("etl".into()),
            ..source()
        };
        let first = token("r", "SELECT 1", &plain, 1);
        assert_eq!(first.len(), 64);
        assert_eq!(first, token("r", "SELECT 1", &plain, 1));
        let others = [
            first,
            token("r2", "SELECT 1", &plain, 1),
            token("r", "SELECT 2", &plain, 1),
            token("r", "SELECT 1", &workgroup, 1),
            token("r", "SELECT 1", &output, 1),
            token("r", "SELECT 1", &plain, 2),
        ];
        for (index, one) in others.iter().enumerate() {
            assert!(!others[..index].contains(one), "{index}");
        }
    }
}
