//! `replace_where` on a row: rejects a row outside of what its run replaces, since it would stay when
//! the run is repeated.
//!
//! Values compare as in rules, and as in Postgres when it deletes. NULL is outside, as in Postgres.

use common::job::{Comparison, Window};
use common::message::Reject;
use common::schema::PgType;

use super::order::Bound;
use super::{PlanError, canonical};
use crate::convert::shown;

/// The name of the rule.
const WINDOW_RULE: &str = "replace_where";

/// A job's window, compiled for the columns of a plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inside {
    bounds: Vec<Compiled>,
    written: String,
}

#[derive(Debug, Clone)]
struct Compiled {
    /// The position among the target's columns.
    position: usize,
    column: String,
    op: Comparison,
    bound: Bound,
}

/// The position and type of a column, and whether it is masked.
pub(crate) struct Place {
    pub(crate) position: usize,
    pub(crate) pg_type: PgType,
    pub(crate) masked: bool,
}

impl Inside {
    /// Refuses a window whose column is missing, is masked, or is not of its bound's type.
    pub(crate) fn compile(
        window: Option<&Window>,
        place: impl Fn(&str) -> Option<Place>,
    ) -> Result<Self, PlanError> {
        let Some(window) = window else {
            return Ok(Self::default());
        };
        let mut bounds = Vec::with_capacity(window.bounds().len());
        for bound in window.bounds() {
            let column = &bound.column;
            let refused = |problem: String| PlanError::setting(column, WINDOW_RULE, problem);
            let place = place(column)
                .ok_or_else(|| refused("it is not among the columns of the target".to_owned()))?;
            if place.masked {
                return Err(refused(
                    "the column is masked, and a mask has no order".to_owned(),
                ));
            }
            let value = canonical(place.pg_type, &bound.value().into());
            bounds.push(Compiled {
                position: place.position,
                column: column.clone(),
                op: bound.op,
                bound: value
                    .and_then(|value| Bound::parse(place.pg_type, &value))
                    .map_err(refused)?,
            });
        }
        Ok(Self {
            bounds,
            written: window.to_string(),
        })
    }

    /// The reject of a row that is outside; None for a row that is inside.
    pub(crate) fn check<V: AsRef<str>>(&self, values: &[Option<V>]) -> Option<Reject> {
        let outside = |compiled: &&Compiled| match &values[compiled.position] {
            None => true,
            Some(value) => {
                let ordering = compiled.bound.compared(value.as_ref());
                !ordering.is_some_and(|ordering| compiled.op.holds(ordering))
            }
        };
        let Compiled {
            position, column, ..
        } = self.bounds.iter().find(outside)?;
        let value = values[*position]
            .as_ref()
            .map_or_else(|| "NULL".to_owned(), |value| shown(value.as_ref()));
        Some(Reject {
            column: Some(column.clone()),
            rule: WINDOW_RULE.to_owned(),
            reason: format!(
                "{value} is outside of what the run replaces: {}",
                self.written
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(condition: &str, pg_type: &str) -> Result<Inside, String> {
        let window = Window::parse(condition).unwrap();
        let pg_type = pg_type.parse().unwrap();
        let place = |name: &str| {
            (name != "other").then_some(Place {
                position: 0,
                pg_type,
                masked: name == "hidden",
            })
        };
        Inside::compile(Some(&window), place).map_err(|error| error.to_string())
    }

    #[test]
    fn window_compares_values_of_the_columns_type() {
        let week = "d between '2018-04-02' and '2018-04-08'";
        for (condition, pg_type, value, wanted) in [
            (week, "date", Some("2018-04-02"), true),
            (week, "date", Some("2018-04-08"), true),
            (week, "date", Some("2018-04-09"), false),
            (week, "date", Some("2018-04-02 BC"), false),
            (week, "date", Some("12018-04-02"), false),
            (week, "date", None, false),
            ("d < 10", "bigint", Some("9"), true),
            ("d < 10", "bigint", Some("10"), false),
            ("d > -1.5", "numeric", Some("-1.49"), true),
            ("d > -1.5", "numeric", Some("-1.50"), false),
            ("d > -1.5", "numeric", Some("NaN"), false),
            ("d = 'DE'", "text", Some("DE"), true),
            ("d = 'DE'", "text", Some("de"), false),
            (
                "d >= '2018-04-02 00:00:00+02'",
                "timestamptz",
                Some("2018-04-01 22:00:00+00"),
                true,
            ),
            (
                "d >= '2018-04-02 00:00:00'",
                "timestamp",
                Some("2018-04-01 23:59:59.999999"),
                false,
            ),
        ] {
            let broken = inside(condition, pg_type).unwrap().check(&[value]);
            assert_eq!(
                broken.is_none(),
                wanted,
                "{condition} {value:?}: {broken:?}"
            );
        }
        let reason = inside(week, "date").unwrap().check(&[Some("2018-05-01")]);
        assert_eq!(
            reason.unwrap().reason,
            r#""2018-05-01" is outside of what the run replaces: d >= '2018-04-02' and d <= '2018-04-08'"#
        );
    }

    #[test]
    fn window_that_does_not_fit_the_columns_is_refused() {
        for (condition, pg_type, part) in [
            ("n = 'x'", "bigint", "not an integer"),
            ("n = '2018-04-02'", "timestamptz", "not a timestamp"),
            ("other = 1", "bigint", "not among the columns"),
            ("hidden = 'x'", "text", "masked"),
        ] {
            let error = inside(condition, pg_type).unwrap_err();
            assert!(
                error.contains(part) && error.contains("replace_where"),
                "{error}"
            );
        }
        assert!(Inside::default().check::<String>(&[None]).is_none());
    }
}
