//! Athena, and the only code that names its SDK: start, poll, stop and read a query.
//!
//! It returns plain data; every error is a classified [`AwsError`].

use std::fmt;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_athena::Client;
use aws_sdk_athena::types::builders::ResultConfigurationBuilder;
use aws_sdk_athena::types::{
    AthenaError, ColumnInfo, Datum, EncryptionOption, ManagedQueryResultsConfiguration,
    QueryExecution, QueryExecutionContext, QueryExecutionState, QueryExecutionStatistics,
    ResultConfiguration, ResultReuseByAgeConfiguration, ResultReuseConfiguration,
    ResultReuseInformation, Row, StatementType, WorkGroupConfiguration, WorkGroupState,
};
use common::job::{Source, changes_something};
use common::message::RunId;
use common::schema::ResultColumn;
use sha2::{Digest, Sha256};

use crate::aws::AwsError;

/// Rows of a page: the maximum of `GetQueryResults`.
const PAGE_ROWS: i32 = 1_000;

/// The client of Athena.
#[derive(Debug, Clone)]
pub struct Athena(Client);

/// A query to start.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub run: &'a RunId,
    /// The generation that a retry of the run requested it with, or 0.
    pub generation: u32,
    pub sql: &'a str,
    pub source: &'a Source,
    /// From 1.
    pub attempt: u32,
}

/// The state of a query execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    pub state: ExecutionState,
    /// So far.
    pub bytes_scanned: u64,
    /// `s3://bucket/key` of the result; none with managed query results.
    pub output_location: Option<String>,
    /// Whether the statement is one whose result can be loaded: not DDL, `SHOW`, `DESCRIBE` or `EXPLAIN`, and not `INSERT` or
    /// `UNLOAD`, which Athena calls DML as it does `SELECT`.
    pub is_query: bool,
    /// Athena answered with the result of an earlier query.
    pub reused: bool,
    /// The result's object is encrypted before S3 gets it (`CSE_KMS`): only Athena can read it.
    pub is_client_encrypted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutionState {
    /// Queued or running; a running query may be queued again.
    Working,
    Succeeded,
    Failed(QueryFailure),
    /// Stopped by a user, with Athena's reason.
    Cancelled(String),
}

/// Why a query failed (Athena User Guide, "Athena error catalog").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryFailure {
    pub reason: String,
    /// 1 system, 2 user, 3 other.
    pub category: Option<i32>,
    pub error_type: Option<i32>,
    /// Whether Athena says that another attempt may succeed.
    pub is_retryable: bool,
}

/// The settings of a workgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "settings of Athena, each independent of the others"
)]
pub struct Workgroup {
    pub name: String,
    pub enabled: bool,
    /// `s3://bucket/prefix/`.
    pub output_location: Option<String>,
    /// The workgroup ignores a query's own output location.
    pub enforced: bool,
    /// Athena keeps the results itself: there is no object in S3.
    pub managed_results: bool,
    /// It has results encrypted before S3 gets them (`CSE_KMS`).
    pub is_client_encrypted: bool,
    /// The most that a query may scan, in bytes.
    pub scan_limit: Option<i64>,
}

impl fmt::Display for Workgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.enabled { "enabled" } else { "disabled" };
        write!(f, "{}: {state}", self.name)?;
        if self.enforced {
            f.write_str(", its settings override a job's")?;
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
    /// The token of the next page.
    pub next: Option<String>,
}

impl<'a> Query<'a> {
    /// The only attempt of a query that belongs to no run, under a name of its own.
    pub fn once(name: &'a RunId, sql: &'a str, source: &'a Source) -> Self {
        Self {
            run: name,
            generation: 0,
            sql,
            source,
            attempt: 1,
        }
    }

    /// The `ClientRequestToken`: the same for the same query of the same run, so that a second request
    /// finds the same execution and nothing is paid twice; different for every other query. It has 64
    /// characters; Athena accepts 32 to 128.
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
            // The length keeps two different queries from hashing the same bytes.
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hash.update(length.to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        // Settings that are newer, where they are set: a task of an older extractor keeps its token.
        let account = serde_json::to_value(&source.account).unwrap_or_default();
        let newer = serde_json::json!([
            account,
            source.reuse_results.map(|age| age.as_secs()),
            source.expected_bucket_owner
        ]);
        if newer != serde_json::json!([{}, null, null]) {
            hash.update(newer.to_string());
        }
        if self.generation > 0 {
            hash.update(self.generation.to_le_bytes());
        }
        format!("{:x}", hash.finalize())
    }
}

impl Athena {
    pub fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }

    /// Starts the query, or finds the execution that an earlier request started. Returns its id.
    pub async fn start(&self, query: Query<'_>) -> Result<String, AwsError> {
        let source = query.source;
        let context = QueryExecutionContext::builder()
            .database(&source.database)
            .set_catalog(source.catalog.clone());
        let is_set = source.output_location.is_some() || source.expected_bucket_owner.is_some();
        let output = is_set.then(|| {
            ResultConfiguration::builder()
                .set_output_location(source.output_location.clone())
                .set_expected_bucket_owner(source.expected_bucket_owner.clone())
        });
        let started = self
            .0
            .start_query_execution()
            .query_string(query.sql)
            .client_request_token(query.token())
            .query_execution_context(context.build())
            .set_result_configuration(output.map(ResultConfigurationBuilder::build))
            .set_work_group(source.workgroup.clone())
            .set_result_reuse_configuration(source.reuse_results.map(reuse))
            .send()
            .await
            .map_err(|error| AwsError::from_sdk("starting the query", &error))?;
        started.query_execution_id.ok_or_else(|| {
            AwsError::unavailable(
                "starting the query",
                "Athena returned no query execution id",
            )
        })
    }

    /// The current state of the execution.
    pub async fn look(&self, id: &str) -> Result<Execution, AwsError> {
        let doing = || format!("polling query {id}");
        let found = self
            .0
            .get_query_execution()
            .query_execution_id(id)
            .send()
            .await
            .map_err(|error| AwsError::from_sdk(doing(), &error))?;
        found
            .query_execution()
            .map(describe)
            .ok_or_else(|| AwsError::unavailable(doing(), "Athena returned no description"))
    }

    /// The settings of the workgroup.
    pub async fn workgroup(&self, name: &str) -> Result<Workgroup, AwsError> {
        let doing = || format!("reading the workgroup {name}");
        let found = self
            .0
            .get_work_group()
            .work_group(name)
            .send()
            .await
            .map_err(|error| AwsError::from_sdk(doing(), &error))?;
        let found = found
            .work_group
            .ok_or_else(|| AwsError::unavailable(doing(), "Athena returned no description"))?;
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
            is_client_encrypted: result.is_some_and(is_client_encrypted),
            scan_limit: settings.and_then(WorkGroupConfiguration::bytes_scanned_cutoff_per_query),
        })
    }

    /// Stops the execution. It does not change one that has ended.
    pub async fn stop(&self, id: &str) -> Result<(), AwsError> {
        self.0
            .stop_query_execution()
            .query_execution_id(id)
            .send()
            .await
            .map(drop)
            .map_err(|error| AwsError::from_sdk(format!("stopping query {id}"), &error))
    }

    /// The columns of a result.
    pub async fn columns(&self, id: &str) -> Result<Vec<ResultColumn>, AwsError> {
        self.results(id, None, 1).await.map(|page| page.columns)
    }

    /// The page that `token` names, or the first one.
    pub async fn page(&self, id: &str, token: Option<&str>) -> Result<Page, AwsError> {
        self.results(id, token, PAGE_ROWS).await
    }

    async fn results(
        &self,
        id: &str,
        token: Option<&str>,
        max_rows: i32,
    ) -> Result<Page, AwsError> {
        let page = self
            .0
            .get_query_results()
            .query_execution_id(id)
            .set_next_token(token.map(str::to_owned))
            .max_results(max_rows)
            .send()
            .await
            .map_err(|error| {
                AwsError::from_sdk(format!("reading the result of query {id}"), &error)
            })?;
        let (rows, metadata) = page
            .result_set
            .map_or((None, None), |set| (set.rows, set.result_set_metadata));
        let columns = metadata.and_then(|metadata| metadata.column_info);
        Ok(Page {
            columns: columns.unwrap_or_default().iter().map(column).collect(),
            rows: rows.unwrap_or_default(),
            next: page.next_token,
        })
    }
}

impl Page {
    /// The values of the page's rows in order; `None` is NULL. The first page begins with the header.
    pub fn rows(
        &self,
    ) -> impl Iterator<Item = impl ExactSizeIterator<Item = Option<&str>> + Clone> {
        (self.rows.iter()).map(|row| row.data().iter().map(Datum::var_char_value))
    }
}

fn describe(found: &QueryExecution) -> Execution {
    let status = found.status();
    let error = status.and_then(|status| status.athena_error());
    let reason = || {
        let reason = status.and_then(|status| status.state_change_reason());
        let message = error.and_then(AthenaError::error_message);
        let given = reason.filter(|reason| !reason.is_empty()).or(message);
        given.unwrap_or("Athena gives no reason").to_owned()
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
        // Queued, running, or a future state that is not known to be final.
        _ => ExecutionState::Working,
    };
    let scanned = found
        .statistics()
        .and_then(QueryExecutionStatistics::data_scanned_in_bytes);
    let result = found.result_configuration();
    let location = result.and_then(ResultConfiguration::output_location);
    let reuse = found
        .statistics()
        .and_then(QueryExecutionStatistics::result_reuse_information);
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
        ) && !found.substatement_type().is_some_and(changes_something),
        reused: reuse.is_some_and(ResultReuseInformation::reused_previous_result),
        is_client_encrypted: result.is_some_and(is_client_encrypted),
    }
}

fn is_client_encrypted(result: &ResultConfiguration) -> bool {
    let encryption = result.encryption_configuration();
    encryption.is_some_and(|with| *with.encryption_option() == EncryptionOption::CseKms)
}

/// Athena counts in minutes.
fn reuse(age: Duration) -> ResultReuseConfiguration {
    let minutes = i32::try_from(age.as_secs() / 60).unwrap_or(i32::MAX);
    let by_age = ResultReuseByAgeConfiguration::builder()
        .enabled(true)
        .max_age_in_minutes(minutes);
    ResultReuseConfiguration::builder()
        .result_reuse_by_age_configuration(by_age.build())
        .build()
}

/// The type with its arguments: the metadata keeps those of a decimal apart from its name.
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

    fn source() -> Source {
        Source {
            database: "netflix".into(),
            workgroup: None,
            catalog: None,
            output_location: None,
            results: Results::Auto,
            max_scanned: None,
            timeout: Duration::from_mins(30),
            ..Source::default()
        }
    }

    #[test]
    fn token_is_stable_and_unique_to_the_query() {
        let retried = |run: &str, generation, sql: &str, source: &Source, attempt| {
            Query {
                run: &run.parse().unwrap(),
                generation,
                sql,
                source,
                attempt,
            }
            .token()
        };
        let token =
            |run: &str, sql: &str, source: &Source, attempt| retried(run, 0, sql, source, attempt);
        let plain = source();
        let workgroup = Source {
            workgroup: Some("etl".into()),
            ..source()
        };
        // The same bytes in another field.
        let output = Source {
            output_location: Some("etl".into()),
            ..source()
        };
        let mut in_region = source();
        in_region.account.region = Some("eu-west-1".into());
        let mut reusing = source();
        reusing.reuse_results = Some(Duration::from_hours(1));
        let first = token("r", "SELECT 1", &plain, 1);
        // Of a task that an older extractor began.
        assert_eq!(
            first,
            "a60db194f441950864fdac167948efec0243b6f5f03f171a5ed9f5fce302cdae"
        );
        assert_eq!(first.len(), 64);
        assert_eq!(first, token("r", "SELECT 1", &plain, 1));
        let others = [
            first,
            token("r2", "SELECT 1", &plain, 1),
            token("r", "SELECT 2", &plain, 1),
            token("r", "SELECT 1", &workgroup, 1),
            token("r", "SELECT 1", &output, 1),
            token("r", "SELECT 1", &plain, 2),
            token("r", "SELECT 1", &in_region, 1),
            token("r", "SELECT 1", &reusing, 1),
            retried("r", 1, "SELECT 1", &plain, 1),
            retried("r", 2, "SELECT 1", &plain, 1),
        ];
        for (index, one) in others.iter().enumerate() {
            assert!(!others[..index].contains(one), "{index}");
        }
    }
}
