//! Reads a job from its folder: `NAME.toml` and the SQL file that it names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::parameter::render;
use super::source::SourceTable;
use super::{
    ColumnSpec, Commit, Duplicates, JobSpec, MaxRejected, Mode, ParameterError, ParameterSpec,
    Request, SchemaContract, Source, Target, Window, statement,
};
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
    /// The SQL, with `:name` for parameters.
    pub sql: String,
}

/// Why a job cannot be used. Each error names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("there is no job {name:?} in {}; there {known}", folder.display())]
    Unknown {
        name: String,
        folder: PathBuf,
        known: String,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    #[serde(default)]
    description: String,
    source: SourceTable,
    #[serde(default)]
    parameters: BTreeMap<String, ParameterSpec>,
    target: TargetTable,
    #[serde(default)]
    columns: Vec<ColumnSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetTable {
    table: String,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    key: Vec<String>,
    commit: Option<Commit>,
    #[serde(default)]
    schema: SchemaContract,
    replace_where: Option<String>,
    min_rows: Option<u64>,
    max_rejected: Option<MaxRejected>,
    #[serde(default)]
    allow_all_rejected: bool,
    duplicates: Option<Duplicates>,
    #[serde(default)]
    allow_cascades: bool,
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
            let (name, folder) = (name.to_owned(), folder.to_owned());
            return Err(JobError::Unknown {
                known: known_jobs(&folder),
                name,
                folder,
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

    /// Fills in the parameters: the values that a run sets, and the defaults of the others.
    pub fn request(&self, set: &BTreeMap<String, String>) -> Result<Request, ParameterError> {
        let (sql, parameters) = render(&self.sql, &self.parameters, set)?;
        let mut spec = self.spec.clone();
        let window = spec.target.replace_where.as_ref();
        spec.target.replace_where = window.map(|window| window.filled(&parameters));
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
        })
    }

    /// A hash of the whole job, in hex. Two runs with the same hash and the same parameters request the
    /// same.
    pub fn hash(&self) -> String {
        let all = serde_json::json!([self.source, self.spec, self.parameters, self.sql]);
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

/// `are: a, b, c`, for the error about an unknown name.
fn known_jobs(folder: &Path) -> String {
    let Ok(entries) = fs::read_dir(folder) else {
        return "is no such folder; set ETL_JOBS to the folder of your jobs".to_owned();
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        "are no jobs at all; set ETL_JOBS to the folder of your jobs".to_owned()
    } else {
        format!("are: {}", names.join(", "))
    }
}

fn check(name: &str, file: JobFile, sql: &str) -> Result<Job, String> {
    check_names(&file)?;
    let target = check_target(file.target, &file.columns, &file.parameters)?;
    let sql = statement::query(sql)?.to_owned();
    if sql.len() > SQL_BYTES {
        let length = sql.len();
        return Err(format!(
            "the SQL has {length} bytes; Athena takes at most {SQL_BYTES}"
        ));
    }
    let max_scanned_per_month = file.source.monthly_limit()?;
    let source = file.source.check()?;
    let spec = JobSpec {
        name: name.to_owned(),
        target,
        columns: file.columns,
    };
    Ok(Job {
        description: file.description,
        source,
        max_scanned_per_month,
        spec,
        parameters: file.parameters,
        sql,
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
        if let Some(parameter) = &column.parameter
            && !file.parameters.contains_key(parameter)
        {
            return Err(format!(
                "the [[columns]] {name:?} wants the parameter {parameter:?}, which the job does not declare; add it under [parameters]"
            ));
        }
    }
    Ok(())
}

/// Refuses contradicting settings, with the line to change.
fn check_target(
    target: TargetTable,
    columns: &[ColumnSpec],
    parameters: &BTreeMap<String, ParameterSpec>,
) -> Result<Target, String> {
    let mode = target.mode;
    let is_replace = mode.replaces();
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
    })
}

fn read_window(
    condition: &str,
    columns: &[ColumnSpec],
    parameters: &BTreeMap<String, ParameterSpec>,
) -> Result<Window, String> {
    let window = Window::parse(condition)?;
    window.check(parameters, |name| {
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
