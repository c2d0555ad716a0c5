//! Which column of a result fills which column of the target, and with which type.
//!
//! The extractor resolves before the first batch, so that a run which cannot succeed fails at once.
//! The transformer resolves every batch, since a replay may bring another job. A column that the job
//! does not declare keeps its name and gets the default type, so that no column is lost.

use std::collections::HashSet;

use super::column::same_name;
use super::{ColumnSpec, Rule, Unfit};
use crate::schema::{
    AthenaType, ResultColumn, SchemaError, TargetColumn, check_identifier, default_type,
    is_lossless,
};

/// A target column and the origin of its values.
#[derive(Debug, Clone)]
pub struct ResolvedColumn {
    pub origin: Origin,
    pub target: TargetColumn,
    /// The job's settings; only the source for a column that the job does not declare.
    pub spec: ColumnSpec,
    /// The job's rules, and `required` for a key.
    pub rules: Vec<Rule>,
}

/// The origin of the values of a target column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A column of the result.
    Result {
        /// Its position, from 0.
        position: usize,
        athena_type: AthenaType,
    },
    /// The job: the same text for every row of a run.
    Job(String),
}

/// Resolves the columns of the target: those of the result in their order, then those that the job adds.
/// Key columns get the rule `required`.
pub fn resolve(
    declared: &[ColumnSpec],
    result: &[ResultColumn],
    key: &[String],
) -> Result<Vec<ResolvedColumn>, SchemaError> {
    check_sources(declared, result)?;
    let mut columns: Vec<ResolvedColumn> = Vec::with_capacity(result.len() + declared.len());
    for (position, from) in result.iter().enumerate() {
        let spec = declared.iter().find(|spec| spec.is_of(&from.name));
        columns.push(of_result(position, from, spec)?);
    }
    for spec in declared.iter().filter(|spec| spec.source.is_none()) {
        columns.push(of_job(spec)?);
    }
    let mut names = HashSet::new();
    for column in &mut columns {
        let name = &column.target.name;
        check_identifier(name)?;
        if !names.insert(name.clone()) {
            return Err(SchemaError::DuplicateTarget(name.clone()));
        }
        if key.contains(name) && !column.rules.contains(&Rule::Required(true)) {
            column.rules.insert(0, Rule::Required(true));
        }
    }
    match key.iter().find(|key| !names.contains(*key)) {
        Some(key) => Err(SchemaError::MissingKey {
            key: key.clone(),
            columns: columns.into_iter().map(|it| it.target.name).collect(),
        }),
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
            .any(|other| same_name(&other.name, &column.name))
        {
            return Err(SchemaError::DuplicateSource(column.name.clone()));
        }
    }
    let returns = |source: &str| result.iter().any(|column| same_name(&column.name, source));
    let missing = declared
        .iter()
        .filter_map(|spec| spec.source.as_deref())
        .find(|source| !returns(source));
    match missing {
        None => Ok(()),
        Some(source) => Err(SchemaError::MissingSource {
            source_name: source.to_owned(),
            returned: result.iter().map(|column| column.name.clone()).collect(),
        }),
    }
}

fn of_result(
    position: usize,
    from: &ResultColumn,
    spec: Option<&ColumnSpec>,
) -> Result<ResolvedColumn, SchemaError> {
    let (name, type_name) = (from.name.clone(), from.type_name.clone());
    let Ok(athena_type) = type_name.parse::<AthenaType>() else {
        return Err(SchemaError::UnknownType { name, type_name });
    };
    let Some(default) = default_type(athena_type) else {
        return Err(SchemaError::Unreadable { name, type_name });
    };
    let spec = spec.cloned().unwrap_or_else(|| ColumnSpec {
        source: Some(name.clone()),
        ..ColumnSpec::default()
    });
    let pg_type = spec.declared_type().unwrap_or(default);
    spec.check_types(Some(athena_type), Some(pg_type))
        .map_err(|unfit| unusable(&name, unfit))?;
    // `check_types` has decided which types `epoch` reads and writes.
    if spec.epoch.is_none() && !is_lossless(athena_type, pg_type, spec.round) {
        return Err(SchemaError::Lossy {
            name,
            type_name,
            pg_type,
            default,
        });
    }
    Ok(ResolvedColumn {
        origin: Origin::Result {
            position,
            athena_type,
        },
        target: TargetColumn {
            name: spec.target_name().to_owned(),
            pg_type,
            athena_type: type_name,
        },
        rules: spec.rules.clone(),
        spec,
    })
}

fn of_job(spec: &ColumnSpec) -> Result<ResolvedColumn, SchemaError> {
    let name = spec.target_name().to_owned();
    let (Some(value), Some(pg_type)) = (&spec.constant, spec.declared_type()) else {
        return Err(SchemaError::Unfilled(name));
    };
    Ok(ResolvedColumn {
        origin: Origin::Job(value.as_str().to_owned()),
        target: TargetColumn {
            name,
            pg_type,
            athena_type: String::new(),
        },
        rules: Vec::new(),
        spec: spec.clone(),
    })
}

fn unusable(name: &str, unfit: Unfit) -> SchemaError {
    SchemaError::Setting {
        name: name.to_owned(),
        setting: unfit.setting,
        problem: unfit.problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::PgType;

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
    fn undeclared_columns_keep_their_names_and_get_default_types() {
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
    fn declared_columns_are_renamed_and_keys_are_required() {
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
    fn names_of_athena_match_in_upper_and_lower_case() {
        let specs = declared("[[columns]]\nsource = \"country\"\ntype = \"char(2)\"\n");
        let columns = resolve(&specs, &result(&[("Country", "varchar")]), &[]).unwrap();
        assert_eq!(columns[0].target.name, "country");
        assert_eq!(columns[0].target.pg_type, PgType::Char(2));
        let twice = result(&[("day", "date"), ("Day", "date")]);
        assert!(matches!(
            resolve(&[], &twice, &[]),
            Err(SchemaError::DuplicateSource(_))
        ));
    }

    #[test]
    fn added_columns_come_last_and_may_be_keys() {
        let specs = declared(
            "[[columns]]\nname = \"tenant\"\nconstant = \"acme\"\n[[columns]]\nsource = \"n\"\ntype = \"numeric\"\n",
        );
        let key = ["tenant".to_owned(), "n".to_owned()];
        let columns = resolve(&specs, &result(&[("n", "bigint")]), &key).unwrap();
        assert_eq!(columns[1].origin, Origin::Job("acme".to_owned()));
        assert_eq!(columns[1].target.pg_type, PgType::Text);
        let taken = result(&[("tenant", "varchar"), ("n", "bigint")]);
        assert!(matches!(
            resolve(&specs, &taken, &[]),
            Err(SchemaError::DuplicateTarget(_))
        ));
    }

    #[test]
    fn misspelt_column_is_refused_with_the_one_that_is_meant() {
        let columns = result(&[("country_code", "varchar"), ("dt", "date")]);
        let specs = declared("[[columns]]\nsource = \"contry_code\"\n");
        let refused = resolve(&specs, &columns, &[]).unwrap_err().to_string();
        assert!(
            refused.contains("did you mean \"country_code\"?"),
            "{refused}"
        );
        let refused = resolve(&[], &columns, &["day".to_owned()]).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("among the columns (country_code, dt)"),
            "{refused}"
        );
        let refused = resolve(&[], &columns, &["country-code".to_owned()]).unwrap_err();
        assert!(
            refused
                .to_string()
                .ends_with("did you mean \"country_code\"?"),
            "{refused}"
        );
    }

    #[test]
    fn epoch_column_becomes_timestamptz() {
        let specs = declared("[[columns]]\nsource = \"t\"\nepoch = \"ms\"\n");
        let columns = resolve(&specs, &result(&[("t", "bigint")]), &[]).unwrap();
        assert_eq!(columns[0].target.pg_type, PgType::TimestampTz);
    }

    #[test]
    fn columns_that_cannot_be_loaded_are_refused_with_remedy() {
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
        for (settings, type_name, part) in [
            ("trim = true", "bigint", "cannot have trim"),
            ("case = \"upper\"", "json", "cannot have case"),
            ("epoch = \"ms\"", "boolean", "cannot have epoch"),
            ("epoch = \"ms\"", "real", "cannot have epoch"),
            ("round = true", "bigint", "cannot have round"),
            ("mask = \"sha256\"", "bigint", "type = \"text\""),
            (
                "type = \"date\"\nformat = \"%Y%m%d\"",
                "bigint",
                "cannot have format",
            ),
        ] {
            let specs = declared(&format!("[[columns]]\nsource = \"t\"\n{settings}\n"));
            let error = refused(&specs, &[("t", type_name)], &[]);
            assert!(error.contains(part), "{settings}: {error}");
        }
        let unfilled = declared("[[columns]]\nname = \"day\"\nparameter = \"from\"\n");
        assert!(refused(&unfilled, &[("t", "date")], &[]).contains("etl run"));
        assert!(refused(&lossy, &[("u", "bigint")], &[]).contains("does not return"));
        let twice = declared("[[columns]]\nsource = \"t\"\nname = \"u\"\n");
        assert!(refused(&twice, &[("t", "date"), ("u", "date")], &[]).contains("rename one"));
    }
}
