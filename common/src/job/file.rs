//! Reads a job from its folder: `NAME.toml` and the SQL file that it names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::notify::{Notify, OneOrMore};
use super::parameter::{self, render};
use super::source::SourceTable;
use super::{
    ColumnSpec, Commit, Duplicates, JobSpec, MaxRejected, Mode, ParameterError, ParameterSpec,
    Request, SchemaContract, Source, Target, Window, statement, watermark,
};
use crate::nearest::did_you_mean;
use crate::schema::{SchemaError, check_identifier};

/// Athena's limit on the length of a statement, in bytes (API reference, `QueryString`).
const SQL_BYTES: usize = 262_144;

/// The longest name of a job, which is a prefix of its run ids.
const NAME_BYTES: usize = 60;

/// A job, read and checked.
#[derive(Debug, Clone)]
pub struct Job {
    pub description: String,
    pub source: Source,
    /// The bytes that the job's queries may scan in a month. Not a part of [`Job::hash`]: it changes no run.
    pub max_scanned_per_month: Option<u64>,
    /// The spec of the file. A run gets the spec of a [`Request`], with the parameters filled in.
    pub spec: JobSpec,
    pub parameters: BTreeMap<String, ParameterSpec>,
    /// Of relative dates and times. Not a part of [`Job::hash`], either: a run has their values.
    pub timezone: TimeZone,
    /// The SQL, with `:name` for parameters.
    pub sql: String,
    /// Not a part of [`Job::hash`], either.
    pub notify: Notify,
}

/// Why a job cannot be used. Each error names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("there is no job {name:?} in {}; there {}{}", folder.display(), there(known), did_you_mean(name, known))]
    Unknown {
        name: String,
        folder: PathBuf,
        known: Vec<String>,
    },
    #[error("cannot read the folder {}; set ETL_JOBS to the folder of your jobs", folder.display())]
    NoFolder {
        folder: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot read {}; check the path and its permissions", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not below the folder {}, or a link on its way leads out; put the file itself into that folder and name it by its path from there", path.display(), folder.display())]
    Outside { path: PathBuf, folder: PathBuf },
    #[error("{} is {encoding}, and only UTF-8 is read; save it as UTF-8", path.display())]
    Encoding {
        path: PathBuf,
        encoding: &'static str,
    },
    #[error("{} is not a file that can be read to its end, but a folder, a pipe or a device; put a regular file there", path.display())]
    NotRegular { path: PathBuf },
    #[error("{} is not a job file:\n{problem}", path.display())]
    Syntax {
        path: PathBuf,
        // Not `source`: the text contains it, and the cause would repeat it.
        problem: Box<toml::de::Error>,
    },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
}

/// A job: a query for Athena, and the PostgreSQL table that takes its rows. The file's name is the job's name.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Job")]
struct JobFile {
    /// What the job is for, in a sentence.
    #[serde(default)]
    description: String,
    source: SourceTable,
    /// The time zone of relative dates and times, such as `Europe/Amsterdam`; by default UTC.
    timezone: Option<String>,
    /// Who is told when a run fails, is held or has many rejected rows, and when the job is late: the name of a channel, or
    /// several. Its URL or command is a setting of the loader, `ETL_NOTIFY_NAME_URL`.
    #[serde(default)]
    notify: OneOrMore,
    /// The channels are told of a run with more rejected rows: a number, or a share; by default `5%`.
    warn_rejected: Option<MaxRejected>,
    /// The job is late when no run has completed for so long and a tenth longer: `1d`, `15m`.
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    expected_every: Option<Duration>,
    /// What a run can set: `:name` in the SQL, in `replace_where` and in columns.
    #[serde(default)]
    parameters: BTreeMap<String, ParameterSpec>,
    target: TargetTable,
    /// Types, names, treatment and rules of columns. A column that is not here is loaded under its own name.
    #[serde(default)]
    columns: Vec<ColumnSpec>,
}

/// The table that takes the rows.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetTable {
    /// `table` or `schema.table`; the schema is `public` by default.
    table: String,
    /// What the rows do to the table.
    #[serde(default)]
    mode: Mode,
    /// The columns of the target that identify a row, for `upsert` and `insert_only`.
    #[serde(default)]
    key: Vec<String>,
    /// When the rows become visible. By default `batch`, and `run` for `replace` and with `max_rejected`.
    commit: Option<Commit>,
    /// What may be done to the table's columns.
    #[serde(default)]
    schema: SchemaContract,
    /// The part of the table that a `replace` replaces, such as `date between :from and :to`; by default all of it.
    replace_where: Option<String>,
    /// A `replace` with fewer rows is held; by default 1.
    min_rows: Option<u64>,
    /// A run with more rejected rows is held: a number, or a share such as `1%`.
    max_rejected: Option<MaxRejected>,
    /// A run that loads none of its rows counts as a success.
    #[serde(default)]
    allow_all_rejected: bool,
    /// What happens to the second row of a key in a batch, for `upsert` and `insert_only`.
    duplicates: Option<Duplicates>,
    /// Rows are deleted and updated although a foreign key of another table cascades.
    #[serde(default)]
    allow_cascades: bool,
    /// The roles that may read a table that the loader creates.
    #[serde(default)]
    grants: Vec<String>,
    /// The comment of a table that the loader creates.
    comment: Option<String>,
    /// The tablespace of a table that the loader creates.
    tablespace: Option<String>,
    /// Refused with what to do instead.
    #[serde(default, alias = "partition_by", alias = "partitions")]
    #[schemars(skip)]
    partitioned_by: Option<serde::de::IgnoredAny>,
}

/// The JSON Schema of a job file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(JobFile).to_value()
}

impl Job {
    /// Reads the job `name` from a folder of jobs.
    pub fn read(folder: &Path, name: &str) -> Result<Self, JobError> {
        let path = folder.join(format!("{name}.toml"));
        let is_name = (1..=NAME_BYTES).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !is_name || !path.exists() {
            return Err(JobError::Unknown {
                known: Self::names(folder)?,
                name: name.to_owned(),
                folder: folder.to_owned(),
            });
        }
        let text = read_below(folder, Path::new(&format!("{name}.toml")))?;
        let file: JobFile = toml::from_str(&text).map_err(|problem| JobError::Syntax {
            path: path.clone(),
            problem: Box::new(problem),
        })?;
        let sql = read_below(folder, &file.source.sql)?;
        check(name, file, &sql).map_err(|problem| JobError::Invalid { path, problem })
    }

    /// The names of the jobs in a folder, sorted.
    pub fn names(folder: &Path) -> Result<Vec<String>, JobError> {
        let entries = fs::read_dir(folder).map_err(|source| JobError::NoFolder {
            folder: folder.to_owned(),
            source,
        })?;
        let mut names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Fills in the parameters: the values that a run sets, and the defaults of the others. [`Job::resolve`] comes before it.
    pub fn request(&self, set: &BTreeMap<String, String>) -> Result<Request, ParameterError> {
        let (sql, parameters) = render(&self.sql, &self.parameters, set)?;
        let mut spec = self.spec.clone();
        let window = spec.target.replace_where.as_ref();
        spec.target.replace_where = window.map(|window| window.filled(&parameters));
        spec.watermark = self.range(&parameters);
        for column in &mut spec.columns {
            if let Some(name) = &column.parameter
                && let (Some(value), Some(declared)) =
                    (parameters.get(name), self.parameters.get(name))
            {
                column.constant = Some(value.as_str().into());
                column
                    .pg_type
                    .get_or_insert(declared.parameter_type.pg_type());
            }
        }
        Ok(Request {
            sql,
            parameters,
            spec,
            read_on: None,
        })
    }

    /// The values of a request, with relative dates and times resolved in the job's time zone: as they are recorded of a run
    /// that was requested before, or by the time. Values that are set stay, and so do those that are not relative.
    pub fn resolve(
        &self,
        set: &BTreeMap<String, String>,
        recorded: Option<&BTreeMap<String, String>>,
        now: Timestamp,
    ) -> BTreeMap<String, String> {
        let now = now.to_zoned(self.timezone.clone());
        parameter::resolve(&self.parameters, set, recorded, &now)
    }

    /// Fills in the parameters for a check: one that is not set and has no default gets an example of its type. The columns
    /// of a query do not depend on the values.
    pub fn example(&self, set: &BTreeMap<String, String>) -> Result<Request, ParameterError> {
        let now = Timestamp::now();
        let values = self.resolve(set, None, now);
        let mut values = parameter::with_examples(&self.parameters, &values);
        // The values were checked when the file was read.
        let read_on = self.read_on(set, &mut values, None, false, now).ok();
        Ok(self.request(&values)?.reading_on(read_on.flatten()))
    }

    /// A hash of the whole job, in hex. Two runs with the same hash and the same parameters request the
    /// same. Comments and white space of the SQL are no part of it.
    pub fn hash(&self) -> String {
        let sql = statement::normalized(&self.sql);
        let all = serde_json::json!([self.source, self.spec, self.parameters, sql]);
        format!("{:x}", Sha256::digest(all.to_string()))
    }
}

/// Reads a regular file below a folder, and no other: what is read is shown and sent to Athena.
fn read_below(folder: &Path, file: &Path) -> Result<String, JobError> {
    let path = folder.join(file);
    let unreadable = |source| JobError::Unreadable {
        path: path.clone(),
        source,
    };
    let outside = || JobError::Outside {
        path: path.clone(),
        folder: folder.to_owned(),
    };
    let is_below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !file.components().all(is_below) {
        return Err(outside());
    }
    let real = path.canonicalize().map_err(unreadable)?;
    if !real.starts_with(folder.canonicalize().map_err(unreadable)?) {
        return Err(outside());
    }
    if !real.metadata().map_err(unreadable)?.is_file() {
        return Err(JobError::NotRegular { path });
    }
    let bytes = fs::read(real).map_err(unreadable)?;
    text(bytes).map_err(|encoding| JobError::Encoding { path, encoding })
}

/// UTF-8, without the mark that some editors put before it; or the name of what it seems to be.
fn text(bytes: Vec<u8>) -> Result<String, &'static str> {
    // Each character of ASCII has a zero byte in UTF-16.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.contains(&0) {
        return Err("UTF-16");
    }
    let text = String::from_utf8(bytes).map_err(|_| "neither UTF-8 nor UTF-16")?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// The end of the error about an unknown job.
fn there(known: &[String]) -> String {
    match known {
        [] => {
            "are no jobs at all; `etl init` writes one, or set ETL_JOBS to the folder of your jobs"
                .to_owned()
        }
        known => format!("are: {}", known.join(", ")),
    }
}

fn check(name: &str, file: JobFile, sql: &str) -> Result<Job, String> {
    check_names(&file)?;
    let notify = Notify::new(file.notify, file.warn_rejected, file.expected_every)?;
    let target = check_target(file.target, &file.columns, &file.parameters)?;
    let sql = statement::query(sql)?.to_owned();
    check_parameters(&file.parameters, &sql, &target, &file.columns)?;
    watermark::check(&file.parameters, target.mode, &file.columns)?;
    if sql.len() > SQL_BYTES {
        let length = sql.len();
        return Err(format!(
            "the SQL has {length} bytes; Athena takes at most {SQL_BYTES}"
        ));
    }
    let max_scanned_per_month = file.source.monthly_limit()?;
    let source = file.source.check()?;
    let timezone = file.timezone.as_deref().map_or(Ok(TimeZone::UTC), |name| {
        TimeZone::get(name).map_err(|_| {
            format!(
                "there is no time zone {name:?}; write one such as \"Europe/Amsterdam\" or \"UTC\""
            )
        })
    })?;
    let spec = JobSpec {
        name: name.to_owned(),
        target,
        columns: file.columns,
        watermark: None,
    };
    Ok(Job {
        description: file.description,
        source,
        max_scanned_per_month,
        spec,
        parameters: file.parameters,
        timezone,
        sql,
        notify,
    })
}

/// Refuses names that Postgres does not accept, and columns that are declared twice.
fn check_names(file: &JobFile) -> Result<(), String> {
    let identifier =
        |name: &str| check_identifier(name).map_err(|error: SchemaError| error.to_string());
    let table = &file.target.table;
    let (schema, table) = table.split_once('.').unwrap_or(("public", table));
    identifier(schema)?;
    identifier(table)?;
    for (index, column) in file.columns.iter().enumerate() {
        let name = column.target_name();
        column.check().map_err(|unfit| {
            let (setting, problem) = (unfit.setting, unfit.problem);
            let which = if name.is_empty() {
                format!("number {}", index + 1)
            } else {
                format!("{name:?}")
            };
            format!("the [[columns]] {which} cannot have this {setting}: {problem}")
        })?;
        identifier(name)?;
        let earlier = &file.columns[..index];
        if let Some(source) = &column.source
            && earlier.iter().any(|other| other.is_of(source))
        {
            return Err(format!(
                "two [[columns]] have the source {source:?}; remove one (Athena's names are the same in upper and lower case)"
            ));
        }
        if earlier.iter().any(|other| other.target_name() == name) {
            return Err(format!("two [[columns]] are named {name:?}; rename one"));
        }
    }
    Ok(())
}

/// Refuses a parameter that is used and not declared, and one that is declared and changes nothing: a misspelt one would be both.
fn check_parameters(
    declared: &BTreeMap<String, ParameterSpec>,
    sql: &str,
    target: &Target,
    columns: &[ColumnSpec],
) -> Result<(), String> {
    let in_sql = parameter::parameters_of(sql).map(|name| ("the SQL", name));
    let window = target.replace_where.iter();
    let in_window = window.flat_map(Window::parameters);
    let in_window = in_window.map(|name| ("replace_where", name));
    let in_columns = columns.iter().filter_map(|it| it.parameter.as_deref());
    let in_columns = in_columns.map(|name| ("a column", name));
    let used: Vec<_> = in_sql.chain(in_window).chain(in_columns).collect();
    for (place, name) in &used {
        if !declared.contains_key(*name) {
            return Err(format!(
                "{place} uses the parameter {name:?}, which the job does not declare; add it under [parameters]{}",
                did_you_mean(name, declared.keys())
            ));
        }
    }
    let is_used = |name: &str| used.iter().any(|(_, used)| *used == name);
    match declared.keys().find(|name| !is_used(name)) {
        None => Ok(()),
        Some(name) => Err(format!(
            "the parameter {name:?} is declared and never used: its value would change nothing; write :{name} in the SQL, or remove it from [parameters]"
        )),
    }
}

/// Refuses contradicting settings, with the line to change.
fn check_target(
    target: TargetTable,
    columns: &[ColumnSpec],
    parameters: &BTreeMap<String, ParameterSpec>,
) -> Result<Target, String> {
    let mode = target.mode;
    let is_replace = mode.replaces();
    check_created(&target)?;
    let belongs = |setting: &str, to: &str| {
        Err(format!(
            "{setting} belongs to mode = {to}, and the mode is \"{mode}\"; remove it or set the mode"
        ))
    };
    if mode.has_key() && target.key.is_empty() {
        return Err(format!(
            "mode = \"{mode}\" needs key = [...], the columns that make a row the same row"
        ));
    }
    if !mode.has_key() && !target.key.is_empty() {
        return belongs("key = [...]", "\"upsert\" or \"insert_only\"");
    }
    if !mode.has_key() && target.duplicates.is_some() {
        return belongs("duplicates", "\"upsert\" or \"insert_only\"");
    }
    if !is_replace && target.replace_where.is_some() {
        return belongs("replace_where", "\"replace\"");
    }
    if !is_replace && target.min_rows.is_some() {
        return belongs("min_rows", "\"replace\"");
    }
    if is_replace && target.commit == Some(Commit::Batch) {
        return Err(
            "mode = \"replace\" replaces all at once, which commit = \"batch\" contradicts; remove commit"
                .to_owned(),
        );
    }
    if target.max_rejected.is_some() && target.commit == Some(Commit::Batch) {
        return Err(
            "max_rejected holds a run before any of it is committed, which commit = \"batch\" contradicts; remove one of the two"
                .to_owned(),
        );
    }
    let is_whole = is_replace || target.max_rejected.is_some();
    let implied = if is_whole { Commit::Run } else { Commit::Batch };
    let condition = target.replace_where.as_deref();
    let window = condition.map(|condition| read_window(condition, columns, parameters));
    Ok(Target {
        table: target.table,
        mode,
        key: target.key,
        commit: target.commit.unwrap_or(implied),
        schema: target.schema,
        replace_where: window.transpose()?,
        min_rows: target.min_rows,
        max_rejected: target.max_rejected,
        allow_all_rejected: target.allow_all_rejected,
        duplicates: target.duplicates.unwrap_or_default(),
        allow_cascades: target.allow_cascades,
        grants: target.grants,
        comment: target.comment,
        tablespace: target.tablespace,
    })
}

/// Refuses what a created table cannot have.
fn check_created(target: &TargetTable) -> Result<(), String> {
    if target.partitioned_by.is_some() {
        return Err(format!(
            "the loader creates no partitioned tables; create it yourself, with its partitions or a DEFAULT one: CREATE TABLE {} (...) PARTITION BY ..., and remove the setting: rows are loaded into it like into any other table",
            target.table
        ));
    }
    for name in target.grants.iter().chain(&target.tablespace) {
        check_identifier(name).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn read_window(
    condition: &str,
    columns: &[ColumnSpec],
    parameters: &BTreeMap<String, ParameterSpec>,
) -> Result<Window, String> {
    let window = Window::parse(condition)?;
    window.check(|name| {
        let is_it = |column: &&ColumnSpec| column.target_name() == name;
        let column = columns.iter().find(is_it)?;
        let parameter = column.parameter.as_ref();
        let of_parameter = parameter.and_then(|name| parameters.get(name));
        column
            .declared_type()
            .or(of_parameter.map(|parameter| parameter.parameter_type.pg_type()))
    })?;
    Ok(window)
}

#[cfg(test)]
mod tests;
