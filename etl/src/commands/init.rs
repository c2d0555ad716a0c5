//! `etl init`: writes a job file, with the columns of its query.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use common::command::{assignment, assignments, jobs_folder};
use common::job::{Job, ParameterType, parameters_of, resolve};
use common::schema::{ResultColumn, TargetColumn};
use serde_json::json;

use super::Command;
use crate::Failure;
use crate::extractor::Extractor;
use crate::output::show;

/// Write a job file with comments and, by --from-query, its columns.
///
/// Loads nothing and overwrites nothing. --from-query runs the query with a LIMIT of 0, which scans nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl init\n  etl init daily_clicks --from-query clicks.sql --database netflix --set day=2018-04-02"
)]
pub struct Arguments {
    /// The job's name, and that of its table; by default that of the query's file.
    pub name: Option<String>,
    /// The file of the query. `:name` in it is a parameter.
    #[arg(long, value_name = "FILE")]
    pub from_query: Option<PathBuf>,
    /// The Glue database.
    #[arg(long, default_value = "default")]
    pub database: String,
    /// The workgroup; by default Athena's own.
    #[arg(long)]
    pub workgroup: Option<String>,
    /// Columns that identify a row, separated by commas: then the mode is upsert, else append.
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    pub key: Vec<String>,
    /// The default of a parameter of the query; its type follows from the value.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment, requires = "from_query")]
    pub set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The query of a job that is written without one.
const SQL: &str = "SELECT *\nFROM my_table\nWHERE day BETWEEN :from AND :to\n";
const FROM: &str = "2018-04-02";

/// The two files of a job.
struct Files {
    toml: String,
    sql: String,
}

impl Arguments {
    fn name(&self) -> String {
        let stem = self.from_query.as_deref().and_then(Path::file_stem);
        let stem = stem.and_then(|stem| stem.to_str());
        self.name.as_deref().or(stem).unwrap_or("my_job").to_owned()
    }

    /// The job with the columns of its query, or with a query to be replaced.
    async fn files(&self, name: &str) -> Result<Files, Failure> {
        let Some(file) = &self.from_query else {
            let dates = ["from", "to"].map(|name| (name.to_owned(), FROM.to_owned()));
            return Ok(Files {
                toml: self.toml(name, &dates.into(), &[], &[]),
                sql: SQL.to_owned(),
            });
        };
        let sql = fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))
            .map_err(Failure::Usage)?;
        let values = values(&sql, assignments(&self.set)?)?;
        let columns = self.columns(name, &sql, &values).await?;
        let cannot = "cannot write a job for this query";
        let resolved = resolve(&[], &columns, &self.key).context(cannot)?;
        let types: Vec<_> = resolved.into_iter().map(|column| column.target).collect();
        Ok(Files {
            toml: self.toml(name, &values, &columns, &types),
            sql,
        })
    }

    /// The columns of the query, of a job that exists for this question only.
    async fn columns(
        &self,
        name: &str,
        sql: &str,
        values: &BTreeMap<String, String>,
    ) -> Result<Vec<ResultColumn>, Failure> {
        let extractor = Extractor::find()?;
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let files = Files {
            toml: self.toml(name, values, &[], &[]),
            sql: sql.to_owned(),
        };
        files.write(folder.path(), name)?;
        // What is wrong with the query or a value, before anything is sent.
        Job::read(folder.path(), name).map_err(Failure::usage)?;
        extractor.ask(folder.path(), &["columns", name]).await
    }

    /// The job file.
    fn toml(
        &self,
        name: &str,
        values: &BTreeMap<String, String>,
        columns: &[ResultColumn],
        types: &[TargetColumn],
    ) -> String {
        let parameters = values.iter().map(|(parameter, value)| {
            let (kind, value) = (ParameterType::of(value), quoted(value));
            format!("{parameter} = {{ type = \"{kind}\", default = {value} }}\n")
        });
        let mut parameters = parameters.collect::<String>();
        if !parameters.is_empty() {
            parameters = format!(
                "[parameters]                     # :name in the SQL; a run sets them with --set, and without a default it must\n# The defaults are the values of --set: remove one that each run has to give, or write one such as \"yesterday\".\n{parameters}\n"
            );
        }
        let workgroup = match &self.workgroup {
            Some(workgroup) => format!("workgroup = {}", quoted(workgroup)),
            None => "# workgroup = \"primary\"".to_owned(),
        };
        let key: Vec<_> = self.key.iter().map(|column| quoted(column)).collect();
        let (mode, key) = match &key[..] {
            [] => ("append", "# key = [\"...\"]                  # the columns that identify a row, for upsert and insert_only".to_owned()),
            key => ("upsert", format!("key   = [{}]", key.join(", "))),
        };
        let (database, table) = (quoted(&self.database), quoted(&name.replace('-', "_")));
        format!(
            r#"#:schema ./job.schema.json
# The job {name}. `etl schema > job.schema.json` in this folder lets editors complete and check it.
#
#   etl validate {name} --connected    checks it against Athena and PostgreSQL, and loads nothing
#   etl run {name} --follow            loads the result of the query

description = ""

[source]
database = {database}
sql = "{name}.sql"               # in this folder
{workgroup}
# output_location = "s3://bucket/prefix/"   # where the workgroup has none
# max_scanned = "10 GB"          # a query that scans more is stopped, and the run fails

{parameters}[target]
table = {table}
mode  = "{mode}"                 # append | upsert | insert_only | replace
{key}
# max_rejected = "1%"            # a run with more rejected rows is held until somebody decides

{}"#,
            column_tables(columns, types)
        )
    }
}

/// `[[columns]]` for each column of the query, or how to write one.
fn column_tables(columns: &[ResultColumn], types: &[TargetColumn]) -> String {
    if columns.is_empty() {
        return "# Every column of the query is loaded. A column that needs a type, another name or rules is declared:\n#\n\
                # [[columns]]\n# source = \"country\"\n# type   = \"char(2)\"\n# rules  = [{ not_empty = true }, { none_of = [\"A1\"] }]\n"
            .to_owned();
    }
    let about = "# The columns of the query, with the PostgreSQL types that hold every value of their Athena types. A column that is removed\n\
                 # here is still loaded. Rules: required, not_empty, one_of, none_of, min, max, max_length, pattern.\n";
    let tables = columns.iter().zip(types).map(|(column, target)| {
        let (source, pg_type) = (quoted(&column.name), quoted(&target.pg_type.to_string()));
        let from = &column.type_name;
        format!(
            "\n[[columns]]\nsource = {source}\ntype   = {pg_type}    # of {from}\n# rules = [{{ required = true }}]\n"
        )
    });
    about.to_owned() + &tables.collect::<String>()
}

/// A text in TOML: a string of JSON is one.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// The values of the query's parameters. One that is not set has no type.
fn values(
    sql: &str,
    mut set: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    for name in parameters_of(sql) {
        if let Some(value) = set.remove(name) {
            values.insert(name.to_owned(), value);
        } else if !values.contains_key(name) {
            return Err(Failure::usage(anyhow!(
                "the query has the parameter :{name}; give it a value, from which its type follows: --set {name}=2018-04-02"
            )));
        }
    }
    match set.into_keys().next() {
        None => Ok(values),
        Some(name) => Err(Failure::usage(anyhow!(
            "the query has no parameter :{name}; write :{name} into it, or leave --set {name} out"
        ))),
    }
}

impl Files {
    /// Writes both files into a folder, and overwrites none. A query that is there already stays.
    fn write(&self, folder: &Path, name: &str) -> Result<(), Failure> {
        let create = |end: &str, text: &str| -> anyhow::Result<()> {
            let path = folder.join(format!("{name}.{end}"));
            let mut file = fs::File::create_new(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
            Ok(file.write_all(text.as_bytes())?)
        };
        let sql = fs::read_to_string(folder.join(format!("{name}.sql")));
        create("toml", &self.toml)?;
        if sql.ok().as_ref() != Some(&self.sql) {
            create("sql", &self.sql)?;
        }
        Ok(())
    }
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let name = self.name();
        let folder = jobs_folder()?;
        let path = folder.join(format!("{name}.toml"));
        if path.exists() {
            return Err(Failure::usage(anyhow!(
                "{} exists, and is not overwritten; choose another name",
                path.display()
            )));
        }
        let files = self.files(&name).await?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        files.write(&folder, &name)?;
        Job::read(&folder, &name).map_err(Failure::usage)?;
        show(
            self.json,
            &json!({ "job": name, "file": path, "toml": files.toml }),
            |_| next(&path, &name, self.from_query.is_some()),
        )?;
        Ok(true)
    }
}

/// What was written, and what comes next.
fn next(path: &Path, name: &str, has_query: bool) -> String {
    let edit = if has_query {
        ""
    } else {
        "\nWrite the query into the .sql file beside it, then:"
    };
    format!(
        "{} is written.{edit}\n  etl validate {name} --connected    checks it against Athena and PostgreSQL, and loads nothing\n  etl run {name} --follow            loads the result",
        path.display()
    )
}
