//! Which column of a result fills which column of the target, and as what.
//!
//! Both sides of the queue call it: the extractor before the first batch, so that a run which
//! cannot succeed fails at once, and the transformer on every batch, since a replay brings another
//! job along. Declared columns refine; a column that is not declared keeps its name and gets the
//! default type, so that no column is lost for want of a line in the job.

use super::{AthenaType, PgType, ResultColumn, TargetColumn};
use crate::job::{ColumnSpec, Rule};

/// Postgres cuts identifiers beyond this many bytes, silently (`NAMEDATALEN` - 1).
const IDENTIFIER_BYTES: usize = 63;

/// The column that every target gets: which batch a row came from.
pub const BATCH_COLUMN: &str = "_batch";

/// A target column and where its values come from.
#[derive(Debug, Clone)]
pub struct ResolvedColumn {
    /// The position of the source among the result's columns, from 0.
    pub source: usize,
    pub source_name: String,
    pub athena_type: AthenaType,
    pub target: TargetColumn,
    pub rules: Vec<Rule>,
}

/// Why a result cannot be loaded as a job says. Each says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "the job declares a column with source {source_name:?}, which the query does not return (it returns {returned}); correct the job or the SELECT"
    )]
    MissingSource {
        source_name: String,
        returned: String,
    },
    #[error(
        "the query returns two columns named {0:?}; give one of them an alias: SELECT ... AS another_name"
    )]
    DuplicateSource(String),
    #[error("column {0} of the query has no name; give it an alias: SELECT ... AS some_name")]
    EmptySource(usize),
    #[error("two columns of the job are named {0:?} in the target; rename one")]
    DuplicateTarget(String),
    #[error("the column {name:?} has the Athena type {type_name}, whose text form cannot be read back; write CAST({quoted} AS JSON) AS {quoted} in the SELECT", quoted = super::quoted(name))]
    Unreadable { name: String, type_name: String },
    #[error(
        "the column {name:?} has the Athena type {type_name}, which is not known here; CAST it to varchar in the SELECT"
    )]
    UnknownType { name: String, type_name: String },
    #[error(
        "the column {name:?} of Athena type {type_name} cannot become {pg_type} without loss; use {default} in the job, or CAST it in the SELECT"
    )]
    Lossy {
        name: String,
        type_name: String,
        pg_type: PgType,
        default: PgType,
    },
    #[error("the key column {0:?} is not among the columns; correct target.key")]
    MissingKey(String),
    #[error(
        "the name {name:?} {problem}; choose another (AS ... in the SELECT, or name = ... in the job)"
    )]
    Identifier { name: String, problem: &'static str },
}

/// Refuses what cannot be a table's or a column's name: empty, too long for Postgres, with a NUL,
/// or the name that the loader uses for itself.
pub fn check_identifier(name: &str) -> Result<(), SchemaError> {
    let problem = match name {
        "" => "is empty",
        _ if name.len() > IDENTIFIER_BYTES => {
            "is longer than the 63 bytes that Postgres keeps of a name"
        }
        _ if name.contains('\0') => "has a NUL character",
        BATCH_COLUMN => "is kept for the loader's own column",
        // System columns: CREATE TABLE refuses them.
        "tableoid" | "xmin" | "cmin" | "xmax" | "cmax" | "ctid" => "is a system column of Postgres",
        _ => return Ok(()),
    };
    Err(SchemaError::Identifier {
        name: name.to_owned(),
        problem,
    })
}

/// The target's columns in the order of the result's. Key columns are `required`.
pub fn resolve(
    declared: &[ColumnSpec],
    result: &[ResultColumn],
    key: &[String],
) -> Result<Vec<ResolvedColumn>, SchemaError> {
    check_sources(declared, result)?;
    let mut columns = Vec::with_capacity(result.len());
    for (source, from) in result.iter().enumerate() {
        let spec = declared.iter().find(|spec| spec.source == from.name);
        columns.push(resolve_one(source, from, spec, key)?);
    }
    for (index, column) in columns.iter().enumerate() {
        if columns[..index]
            .iter()
            .any(|other| other.target.name == column.target.name)
        {
            return Err(SchemaError::DuplicateTarget(column.target.name.clone()));
        }
    }
    match key
        .iter()
        .find(|key| !columns.iter().any(|column| column.target.name == **key))
    {
        Some(key) => Err(SchemaError::MissingKey(key.clone())),
        None => Ok(columns),
    }
}

fn check_sources(declared: &[ColumnSpec], result: &[ResultColumn]) -> Result<(), SchemaError> {
    for (index, column) in result.iter().enumerate() {
        if column.name.is_empty() {
            return Err(SchemaError::EmptySource(index + 1));
        }
        if result[..index]
            .iter()
            .any(|other| other.name == column.name)
        {
            return Err(SchemaError::DuplicateSource(column.name.clone()));
        }
    }
    match declared
        .iter()
        .find(|spec| !result.iter().any(|column| column.name == spec.source))
    {
        None => Ok(()),
        Some(spec) => Err(SchemaError::MissingSource {
            source_name: spec.source.clone(),
            returned: result
                .iter()
                .map(|column| column.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn resolve_one(
    source: usize,
    from: &ResultColumn,
    spec: Option<&ColumnSpec>,
    key: &[String],
) -> Result<ResolvedColumn, SchemaError> {
    let (name, type_name) = (from.name.clone(), from.type_name.clone());
    let Ok(athena_type) = type_name.parse::<AthenaType>() else {
        return Err(SchemaError::UnknownType { name, type_name });
    };
    let Some(default) = default_type(athena_type) else {
        return Err(SchemaError::Unreadable { name, type_name });
    };
    let pg_type = spec.and_then(|spec| spec.pg_type).unwrap_or(default);
    if !is_lossless(athena_type, pg_type) {
        return Err(SchemaError::Lossy {
            name,
            type_name,
            pg_type,
            default,
        });
    }
    let target_name = spec
        .and_then(|spec| spec.name.clone())
        .unwrap_or_else(|| name.clone());
    check_identifier(&target_name)?;
    let mut rules = spec.map(|spec| spec.rules.clone()).unwrap_or_default();
    if key.contains(&target_name) && !rules.contains(&Rule::Required(true)) {
        rules.insert(0, Rule::Required(true));
    }
    let target = TargetColumn {
        name: target_name,
        pg_type,
        athena_type: type_name,
    };
    Ok(ResolvedColumn {
        source,
        source_name: name,
        athena_type,
        target,
        rules,
    })
}

/// The Postgres type that holds every value of an Athena type; none where the text form that
/// Athena returns cannot be read back.
fn default_type(athena: AthenaType) -> Option<PgType> {
    Some(match athena {
        AthenaType::Boolean => PgType::Boolean,
        AthenaType::TinyInt | AthenaType::SmallInt => PgType::SmallInt,
        AthenaType::Integer => PgType::Integer,
        AthenaType::BigInt => PgType::BigInt,
        AthenaType::Real => PgType::Real,
        AthenaType::Double => PgType::Double,
        AthenaType::Decimal(precision, scale) => PgType::Numeric(Some((precision, scale))),
        AthenaType::Char | AthenaType::Varchar => PgType::Text,
        // Not jsonb, which drops duplicate keys and cannot hold \u0000.
        AthenaType::Json => PgType::Json,
        AthenaType::Date => PgType::Date,
        AthenaType::Time => PgType::Time,
        AthenaType::Timestamp => PgType::Timestamp,
        AthenaType::TimestampTz => PgType::TimestampTz,
        AthenaType::Varbinary => PgType::Bytea,
        AthenaType::Uuid => PgType::Uuid,
        AthenaType::IpAddress => PgType::Inet,
        AthenaType::IntervalDayToSecond | AthenaType::IntervalYearToMonth => PgType::Interval,
        AthenaType::Array | AthenaType::Map | AthenaType::Row => return None,
    })
}

/// Whether every value of the Athena type either becomes the same value in the Postgres type or is
/// refused row by row; never rounded, cut or stripped of its zone.
fn is_lossless(athena: AthenaType, postgres: PgType) -> bool {
    use AthenaType as A;
    use PgType as P;
    let is_text = matches!(postgres, P::Text | P::Varchar(_) | P::Char(_));
    let is_integer = matches!(postgres, P::SmallInt | P::Integer | P::BigInt);
    match athena {
        A::Char | A::Varchar => true,
        A::Boolean => is_text || postgres == P::Boolean,
        A::TinyInt | A::SmallInt => {
            is_text || is_integer || matches!(postgres, P::Numeric(_) | P::Real | P::Double)
        }
        A::Integer => is_text || is_integer || matches!(postgres, P::Numeric(_) | P::Double),
        A::BigInt | A::Decimal(..) => is_text || is_integer || matches!(postgres, P::Numeric(_)),
        A::Real => is_text || matches!(postgres, P::Real | P::Double | P::Numeric(None)),
        A::Double => is_text || matches!(postgres, P::Double | P::Numeric(None)),
        A::Json => is_text || matches!(postgres, P::Json | P::Jsonb),
        A::Date => is_text || postgres == P::Date,
        A::Time => is_text || postgres == P::Time,
        A::Timestamp => is_text || postgres == P::Timestamp,
        A::TimestampTz => is_text || postgres == P::TimestampTz,
        A::Varbinary => is_text || postgres == P::Bytea,
        A::Uuid => is_text || postgres == P::Uuid,
        A::IpAddress => is_text || postgres == P::Inet,
        A::IntervalDayToSecond | A::IntervalYearToMonth => is_text || postgres == P::Interval,
        A::Array | A::Map | A::Row => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(columns: &[(&str, &str)]) -> Vec<ResultColumn> {
        columns
            .iter()
            .map(|(name, type_name)| ResultColumn {
                name: (*name).into(),
                type_name: (*type_name).into(),
            })
            .collect()
    }

    fn declared(toml: &str) -> Vec<ColumnSpec> {
        #[derive(serde::Deserialize)]
        struct Columns {
            columns: Vec<ColumnSpec>,
        }
        toml::from_str::<Columns>(toml).unwrap().columns
    }

    #[test]
    fn without_declarations_names_and_types_are_the_querys() {
        let columns = resolve(
            &[],
            &result(&[("a", "varchar"), ("b", "decimal(38,2)")]),
            &[],
        )
        .unwrap();
        let seen: Vec<_> = columns
            .iter()
            .map(|c| (c.target.name.as_str(), c.target.pg_type.to_string()))
            .collect();
        assert_eq!(
            seen,
            [("a", "text".to_owned()), ("b", "numeric(38,2)".to_owned())]
        );
    }

    #[test]
    fn declarations_rename_and_retype_and_keys_are_required() {
        let specs = declared("[[columns]]\nsource = \"dt\"\nname = \"day\"\ntype = \"date\"\n");
        let columns = resolve(
            &specs,
            &result(&[("n", "bigint"), ("dt", "varchar")]),
            &["day".to_owned()],
        )
        .unwrap();
        assert_eq!(columns[1].target.name, "day");
        assert_eq!(columns[1].target.pg_type, PgType::Date);
        assert_eq!(columns[1].rules, [Rule::Required(true)]);
        assert_eq!(columns[0].target.pg_type, PgType::BigInt);
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_with_what_to_write() {
        let refused = |specs: &[ColumnSpec], columns: &[(&str, &str)], key: &[&str]| {
            let key: Vec<_> = key.iter().map(|k| (*k).to_owned()).collect();
            resolve(specs, &result(columns), &key)
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused(&[], &[("tags", "array(varchar)")], &[]).contains(r#"CAST("tags" AS JSON)"#)
        );
        assert!(refused(&[], &[("a", "bigint"), ("a", "bigint")], &[]).contains("alias"));
        assert!(refused(&[], &[("", "bigint")], &[]).contains("alias"));
        assert!(refused(&[], &[("a", "hologram")], &[]).contains("not known"));
        assert!(refused(&[], &[("a", "bigint")], &["b"]).contains("target.key"));
        assert!(refused(&[], &[(&"x".repeat(64), "bigint")], &[]).contains("63 bytes"));
        assert!(refused(&[], &[("_batch", "bigint")], &[]).contains("loader's own"));
        let lossy = declared("[[columns]]\nsource = \"t\"\ntype = \"timestamp\"\n");
        assert!(
            refused(&lossy, &[("t", "timestamp with time zone")], &[]).contains("without loss")
        );
        assert!(refused(&lossy, &[("u", "bigint")], &[]).contains("does not return"));
        let twice = declared("[[columns]]\nsource = \"t\"\nname = \"u\"\n");
        assert!(refused(&twice, &[("t", "date"), ("u", "date")], &[]).contains("rename one"));
    }
}
