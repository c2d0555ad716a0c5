//! The source of a job: where its query runs, how its result is read, and what it may cost.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The default timeout of a query: Athena's own for DML.
const TIMEOUT: Duration = Duration::from_mins(30);

/// The oldest result that Athena may reuse (API reference, `ResultReuseByAgeConfiguration`).
const MAX_REUSE: Duration = Duration::from_hours(7 * 24);

/// The settings of a query, apart from its SQL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The Glue database.
    pub database: String,
    /// By default Athena's own (`primary`).
    pub workgroup: Option<String>,
    /// By default `AwsDataCatalog`.
    pub catalog: Option<String>,
    /// `s3://bucket/prefix/`. The workgroup's applies by default, and where the workgroup enforces it.
    pub output_location: Option<String>,
    pub results: Results,
    /// The extractor stops a query that has scanned more bytes.
    pub max_scanned: Option<u64>,
    /// The extractor stops a query that runs longer.
    pub timeout: Duration,
    /// Athena may answer with the result of an equal query that is not older; by default it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse_results: Option<Duration>,
    /// The account that the bucket of the result must belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_bucket_owner: Option<String>,
    /// The extractor's account pays for reading the result.
    #[serde(default, skip_serializing_if = "is_false")]
    pub requester_pays: bool,
    /// Whose Athena answers the query.
    #[serde(flatten)]
    pub account: Account,
}

/// The AWS account and region of a job, where they are not those of the extractor's own credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Account {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The role that the extractor assumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_arn: Option<String>,
    /// What the role's trust policy may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
}

/// The way to read a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Results {
    /// From S3 if the result has a location there, else as pages.
    #[default]
    Auto,
    /// The result's CSV object, in ranges.
    S3,
    /// `GetQueryResults`, 1,000 rows a call.
    Api,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// The query, and where it runs.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceTable {
    /// The Glue database.
    database: String,
    /// The file of the query, in the folder of the job or below it.
    pub(super) sql: PathBuf,
    /// The workgroup; by default Athena's own, `primary`.
    workgroup: Option<String>,
    /// The data catalog; by default `AwsDataCatalog`.
    catalog: Option<String>,
    /// Where Athena writes the result, `s3://bucket/prefix/`; by default as the workgroup says.
    output_location: Option<String>,
    /// How the result is read.
    #[serde(default)]
    results: Results,
    /// A query that scans more is stopped, and the run fails: `10 GB`.
    max_scanned: Option<String>,
    /// A run is refused once the job's queries have scanned as much in the month: `2 TB`.
    max_scanned_per_month: Option<String>,
    /// A query that takes longer is stopped, and the run fails; by default `30m`.
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    timeout: Option<Duration>,
    /// Athena may answer with the result of an equal query of at most this age: `60m`, up to `7days`.
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    reuse_results: Option<Duration>,
    /// The account that the result's bucket must belong to: twelve digits.
    expected_bucket_owner: Option<String>,
    /// The extractor's account pays for reading the result.
    #[serde(default)]
    requester_pays: bool,
    /// The AWS region of the query; by default the extractor's.
    region: Option<String>,
    /// The role that the extractor assumes for the query.
    role_arn: Option<String>,
    /// The external id that the role's trust policy wants.
    external_id: Option<String>,
}

static ROLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/\S+$").expect("a constant"));

impl SourceTable {
    /// The bytes that the job's queries may scan in a month.
    pub(super) fn monthly_limit(&self) -> Result<Option<u64>, String> {
        let limit = self.max_scanned_per_month.as_deref();
        limit.map(parse_bytes).transpose()
    }

    /// Refuses what AWS would refuse after the query was sent.
    pub(super) fn check(self) -> Result<Source, String> {
        let account = Account {
            region: self.region,
            role_arn: self.role_arn,
            external_id: self.external_id,
        };
        account.check()?;
        let reuses = |time: Duration| {
            let is_minutes = time.subsec_nanos() == 0 && time.as_secs().is_multiple_of(60);
            is_minutes && !time.is_zero() && time <= MAX_REUSE
        };
        if !self.reuse_results.is_none_or(reuses) {
            return Err(
                "reuse_results is not a time that Athena takes; write whole minutes, from \"1m\" to \"7days\""
                    .to_owned(),
            );
        }
        let is_account = |id: &String| id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit());
        if !self.expected_bucket_owner.as_ref().is_none_or(is_account) {
            return Err(
                "expected_bucket_owner is not the number of an AWS account; write its twelve digits, in quotes"
                    .to_owned(),
            );
        }
        Ok(Source {
            max_scanned: self.max_scanned.as_deref().map(parse_bytes).transpose()?,
            database: self.database,
            workgroup: self.workgroup,
            catalog: self.catalog,
            output_location: self.output_location,
            results: self.results,
            timeout: self.timeout.unwrap_or(TIMEOUT),
            reuse_results: self.reuse_results,
            expected_bucket_owner: self.expected_bucket_owner,
            requester_pays: self.requester_pays,
            account,
        })
    }
}

impl Account {
    fn check(&self) -> Result<(), String> {
        let is_region = |name: &String| {
            let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !name.is_empty() && name.bytes().all(is_part)
        };
        if !self.region.as_ref().is_none_or(is_region) {
            return Err(
                "region is not the name of an AWS region, such as \"eu-central-1\"".to_owned(),
            );
        }
        if !self.role_arn.as_ref().is_none_or(|arn| ROLE.is_match(arn)) {
            return Err(
                "role_arn is not the ARN of a role, such as \"arn:aws:iam::123456789012:role/etl\""
                    .to_owned(),
            );
        }
        if self.external_id.is_some() && self.role_arn.is_none() {
            return Err(
                "external_id belongs to role_arn, and there is none; add role_arn or remove it"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// `10 GB`, `512 MiB`, `1000`: decimal and binary units, in bytes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem = || format!("{text:?} is not a size in bytes such as \"10 GB\" or \"512 MiB\"");
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(problem()),
    };
    let number: u64 = digits.parse().map_err(|_| problem())?;
    number.checked_mul(factor).ok_or_else(problem)
}
