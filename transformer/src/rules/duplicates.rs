//! `duplicates = "reject"`: only the first row of a key in a batch is valid. Batches are not compared
//! with each other: each is transformed by itself.

use std::collections::HashSet;
use std::fmt::Write as _;

use common::job::{Duplicates, Target};
use common::message::Reject;
use common::schema::{PgType, TargetColumn};

use super::order::key;

/// The rule's name.
const DUPLICATE_RULE: &str = "duplicate_key";

/// The columns of the key, for a job that rejects a second row with the same values.
#[derive(Debug, Clone)]
pub(crate) struct KeyColumns(Vec<(usize, PgType)>);

/// The keys of a batch so far.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashSet<String>);

impl KeyColumns {
    /// None when the job accepts duplicates.
    pub(crate) fn new(target: &Target, columns: &[TargetColumn]) -> Option<Self> {
        let position = |name: &String| {
            let position = columns.iter().position(|column| column.name == *name)?;
            Some((position, columns[position].pg_type))
        };
        let is_wanted = target.duplicates == Duplicates::Reject && !target.key.is_empty();
        is_wanted.then(|| Self(target.key.iter().filter_map(position).collect()))
    }

    /// Rejects a row whose key an earlier row has.
    pub(crate) fn check<T: AsRef<str>>(
        &self,
        seen: &mut Seen,
        values: &[Option<T>],
    ) -> Option<Reject> {
        let mut all = String::new();
        for (position, pg_type) in &self.0 {
            // A NULL in the key breaks the rule `required`.
            let value = values.get(*position)?.as_ref()?.as_ref();
            let value = key(*pg_type, value);
            // Postgres ignores the blanks at the end of a char(n).
            let value = match pg_type {
                PgType::Char(_) => value.trim_end_matches(' '),
                _ => &value,
            };
            // The length keeps two different keys apart. Writing to a String cannot fail.
            write!(all, "{}:{value}", value.len()).ok();
        }
        if seen.0.insert(all) {
            return None;
        }
        Some(Reject {
            column: None,
            rule: DUPLICATE_RULE.to_owned(),
            reason: "a row before it in the same batch has the same key".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use common::job::Mode;

    use super::*;

    fn verdicts(
        types: &[&str],
        duplicates: Duplicates,
        rows: &[&[Option<&str>]],
    ) -> Option<Vec<bool>> {
        let columns: Vec<_> = types
            .iter()
            .enumerate()
            .map(|(index, pg_type)| TargetColumn {
                name: format!("c{index}"),
                pg_type: pg_type.parse().unwrap(),
                athena_type: "varchar".into(),
            })
            .collect();
        let target = Target {
            mode: Mode::Upsert,
            key: columns.iter().map(|column| column.name.clone()).collect(),
            duplicates,
            ..Target::default()
        };
        let key = KeyColumns::new(&target, &columns)?;
        let mut seen = Seen::default();
        let verdicts = rows.iter().map(|row| key.check(&mut seen, row).is_none());
        Some(verdicts.collect())
    }

    #[test]
    fn only_later_rows_of_a_key_are_rejected() {
        let rows: &[&[Option<&str>]] = &[
            &[Some("1"), Some("23")],
            &[Some("12"), Some("3")],
            &[Some("1"), Some("23")],
            &[Some("1"), None],
            &[Some("1"), None],
            &[Some("1:2"), Some("3")],
        ];
        assert_eq!(verdicts(&["text", "text"], Duplicates::Last, rows), None);
        assert_eq!(
            verdicts(&["text", "text"], Duplicates::Reject, rows),
            Some(vec![true, true, false, true, true, true])
        );
    }

    #[test]
    fn keys_are_equal_as_in_postgres() {
        let twice = |pg_type: &str, one: &str, other: &str| {
            let rows: &[&[Option<&str>]] = &[&[Some(one)], &[Some(other)]];
            verdicts(&[pg_type], Duplicates::Reject, rows)
        };
        assert_eq!(twice("numeric", "1.50", "1.5"), Some(vec![true, false]));
        let day = |time: &str| format!("2018-04-02 {time}");
        for (one, other) in [("09:00:00.000", "09:00:00"), ("09:00:00.500", "09:00:00.5")] {
            assert_eq!(twice("time", one, other), Some(vec![true, false]));
            let (one, other) = (day(one), day(other));
            assert_eq!(twice("timestamp", &one, &other), Some(vec![true, false]));
        }
        assert_eq!(twice("char(3)", "a", "a "), Some(vec![true, false]));
        assert_eq!(twice("text", "a", "a "), Some(vec![true, true]));
    }
}
