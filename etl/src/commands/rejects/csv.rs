//! Rejected rows as CSV (RFC 4180). NULL is an empty field and every value is in quotes, so that the
//! empty string is `""`: what Postgres' `COPY ... (FORMAT csv)` means by the two.

use std::fmt;

use anyhow::{Context, anyhow};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use ledger::QuarantinedRow;

/// The columns before the raw values.
const FIXED: [&str; 7] = [
    "run_id",
    "generation",
    "first_row",
    "row_number",
    "column_name",
    "rule",
    "reason",
];

/// The header of an export with these raw columns.
pub(super) fn header(columns: &[String]) -> String {
    let fixed = FIXED.map(str::to_owned).into_iter();
    let raw = columns.iter().map(|name| format!("raw.{name}"));
    line(fixed.chain(raw).map(Some))
}

/// A rejected row as a line. Values that were pruned are NULL.
pub(super) fn row(columns: &[String], row: &QuarantinedRow) -> anyhow::Result<String> {
    let raw = row.raw.as_ref().map(|raw| values(raw.0.get()));
    let mut raw = raw.transpose()?.unwrap_or_default();
    let mut cells = vec![
        Some(row.run_id.clone()),
        Some(row.generation.to_string()),
        Some(row.first_row.to_string()),
        Some(row.row_number.to_string()),
        row.column_name.clone(),
        Some(row.rule.clone()),
        Some(row.reason.clone()),
    ];
    for column in columns {
        let place = raw.iter().position(|(name, _)| name == column);
        cells.push(place.and_then(|place| raw.swap_remove(place).1));
    }
    match raw.first() {
        None => Ok(line(cells)),
        Some((name, _)) => Err(anyhow!(
            "row {} of {} has the column {name:?}, which no other rejected row has; --export json writes the rows as they are",
            row.row_number,
            row.run_id
        )),
    }
}

fn line(cells: impl IntoIterator<Item = Option<String>>) -> String {
    let quoted = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
    let cells = cells
        .into_iter()
        .map(|cell| cell.map_or_else(String::new, quoted));
    cells.collect::<Vec<_>>().join(",") + "\n"
}

/// The names and values of a raw row, in their order.
pub(super) fn values(json: &str) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let Values(values) = serde_json::from_str(json)
        .context("the raw values of a rejected row are not a JSON object of texts")?;
    Ok(values)
}

struct Values(Vec<(String, Option<String>)>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

/// A map would lose the order.
struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts and nulls")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
        let mut values = Vec::new();
        while let Some(entry) = map.next_entry()? {
            values.push(entry);
        }
        Ok(Values(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::types::Json;

    fn sample(raw: Option<&str>) -> QuarantinedRow {
        QuarantinedRow {
            run_id: "daily".into(),
            generation: 0,
            first_row: 2_196,
            row_number: 7,
            column_name: None,
            rule: "type".into(),
            reason: "no \"date\"".into(),
            raw: raw
                .map(|raw| Json(serde_json::value::RawValue::from_string(raw.to_owned()).unwrap())),
        }
    }

    #[test]
    fn null_differs_from_the_empty_string_and_quotes_are_doubled() {
        let columns = ["z".into(), "a,b".into(), "c".into()];
        let wanted = r#""run_id","generation","first_row","row_number","column_name","rule","reason","raw.z","raw.a,b","raw.c""#;
        assert_eq!(header(&columns), format!("{wanted}\n"));
        let raw = r#"{"c":"line\none, \"two\"","z":null,"a,b":""}"#;
        assert_eq!(
            row(&columns, &sample(Some(raw))).unwrap(),
            "\"daily\",\"0\",\"2196\",\"7\",,\"type\",\"no \"\"date\"\"\",,\"\",\"line\none, \"\"two\"\"\"\n"
        );
        assert_eq!(
            row(&columns, &sample(None)).unwrap(),
            "\"daily\",\"0\",\"2196\",\"7\",,\"type\",\"no \"\"date\"\"\",,,\n"
        );
    }

    #[test]
    fn value_without_a_column_is_an_error() {
        let refused = row(&["a".into()], &sample(Some(r#"{"a":"1","b":"2"}"#))).unwrap_err();
        assert!(refused.to_string().contains("--export json"), "{refused}");
    }

    #[test]
    fn raw_values_keep_their_order() {
        let read = values(r#"{"z":"1","a":null,"z":"2"}"#).unwrap();
        let wanted = [("z", Some("1")), ("a", None), ("z", Some("2"))];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(read, wanted);
        assert!(values("[1]").is_err());
    }
}
