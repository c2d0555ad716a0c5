//! The windows of a `replace` as SQL, and whether two of them overlap. Pure; PostgreSQL compares the values by their
//! types.

use common::job::{Bound, Comparison, Window};
use common::schema::{PgType, TargetColumn};
use serde::{Deserialize, Serialize};

use crate::ddl::literal;

/// A bound with the type of its value, as the ledger stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TypedBound {
    pg_type: PgType,
    #[serde(flatten)]
    bound: Bound,
}

/// The bounds of a window; none for the whole table.
pub(super) fn typed(window: Option<&Window>, columns: &[TargetColumn]) -> Vec<TypedBound> {
    let bounds = window.map(Window::bounds).unwrap_or_default().iter();
    let typed = bounds.map(|bound| {
        let column = columns.iter().find(|column| column.name == bound.column);
        TypedBound {
            pg_type: column.map_or(PgType::Text, |column| column.pg_type),
            bound: bound.clone(),
        }
    });
    typed.collect()
}

/// A condition on constants: whether a row could be in both windows. Each lower bound of a column must be below each
/// upper bound, of either window. A column whose type has changed is ignored, so that the windows count as overlapping.
pub(super) fn overlap(one: &[TypedBound], other: &[TypedBound]) -> String {
    let all: Vec<&TypedBound> = one.iter().chain(other).collect();
    let mut conditions = vec!["true".to_owned()];
    for lower in all.iter().filter(|bound| is_lower(bound)) {
        let of_column = all.iter().filter(|bound| {
            bound.bound.column == lower.bound.column && bound.pg_type == lower.pg_type
        });
        for upper in of_column.filter(|bound| is_upper(bound)) {
            let is_strict =
                lower.bound.op == Comparison::Greater || upper.bound.op == Comparison::Less;
            let (pg_type, sign) = (lower.pg_type, if is_strict { "<" } else { "<=" });
            conditions.push(format!(
                "{}::{pg_type}{} {sign} {}::{pg_type}",
                literal(lower.bound.value()),
                collation(pg_type),
                literal(upper.bound.value())
            ));
        }
    }
    conditions.join(" AND ")
}

fn is_lower(bound: &TypedBound) -> bool {
    match bound.bound.op {
        Comparison::Equal | Comparison::Greater | Comparison::AtLeast => true,
        Comparison::Less | Comparison::AtMost => false,
    }
}

fn is_upper(bound: &TypedBound) -> bool {
    match bound.bound.op {
        Comparison::Equal | Comparison::Less | Comparison::AtMost => true,
        Comparison::Greater | Comparison::AtLeast => false,
    }
}

/// Text is compared by its bytes, as in the transformer, whatever the database's collation.
fn collation(pg_type: PgType) -> &'static str {
    match pg_type {
        PgType::Text | PgType::Varchar(_) | PgType::Char(_) => " COLLATE pg_catalog.\"C\"",
        _ => "",
    }
}

/// A window as SQL: quoted names, and literals of the columns' types. It means the same with any `search_path`.
pub(super) fn condition(
    window: &Window,
    columns: &[TargetColumn],
    shown: impl Fn(&str) -> String,
) -> String {
    let bounds = window.bounds().iter().map(|bound| {
        let column = columns.iter().find(|column| column.name == bound.column);
        let pg_type = column.map_or(PgType::Text, |column| column.pg_type);
        let collation = collation(pg_type);
        format!(
            "{}{collation} OPERATOR(pg_catalog.{}) {}::{}",
            shown(&bound.column),
            bound.op.sign(),
            literal(bound.value()),
            pg_type.qualified()
        )
    });
    bounds.collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(condition: &str, pg_type: &str) -> Vec<TypedBound> {
        let column = |name: &str, pg_type: &str| TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: String::new(),
        };
        let window = Window::parse(condition).unwrap();
        typed(Some(&window), &[column("d", pg_type), column("s", "text")])
    }

    #[test]
    fn overlap_compares_each_lower_bound_with_each_upper_bound_of_its_column() {
        let week = bounds("d between '1' and '7' and s = 'x'", "integer");
        let later = bounds("d > '7'", "integer");
        assert_eq!(
            overlap(&week, &later),
            "true AND '1'::integer <= '7'::integer AND 'x'::text COLLATE pg_catalog.\"C\" <= 'x'::text AND '7'::integer < '7'::integer"
        );
        assert_eq!(overlap(&[], &later), "true");
        // Another type: not comparable.
        assert_eq!(overlap(&bounds("d < '1'", "date"), &later), "true");
        let json = serde_json::to_string(&later).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<TypedBound>>(&json).unwrap(),
            later
        );
    }
}
