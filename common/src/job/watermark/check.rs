//! The settings of a watermark that a job file may have.

use std::collections::BTreeMap;

use super::{ParameterSpec, ParameterType, Watermark, watermark};
use crate::job::{ColumnSpec, Mode};

/// Refuses settings of a watermark that contradict each other or the mode, with what to change.
pub(in crate::job) fn check(
    declared: &BTreeMap<String, ParameterSpec>,
    mode: Mode,
    columns: &[ColumnSpec],
) -> Result<(), String> {
    let marked = declared.iter().filter(|(_, spec)| spec.watermark.is_some());
    let marked: Vec<_> = marked.map(|(name, _)| name).collect();
    if let [first, second, ..] = marked[..] {
        return Err(format!(
            "the parameters {first:?} and {second:?} both have a watermark, and a job has one"
        ));
    }
    for (name, spec) in declared {
        check_parameter(name, spec, &marked)?;
    }
    let Some(one) = watermark(declared) else {
        return Ok(());
    };
    check_type(&one, mode)?;
    let is_masked = |column: &ColumnSpec| column.is_of(one.column) && column.mask.is_some();
    if columns.iter().any(is_masked) {
        return Err(format!(
            "the column {:?} has a mask and the watermark, which the ledger shows; remove one of them",
            one.column
        ));
    }
    if mode.adds() && one.spec.lag.is_none() {
        return Err(format!(
            "in mode append the parameter {:?} needs lag = ...: rows that appear later than that are not read; \"0s\" if none is ever late",
            one.parameter
        ));
    }
    let initial = one.initial()?;
    check_end(declared, &one, mode)?;
    one.lagging(&initial, &initial).map(drop)
}

fn check_parameter(name: &str, spec: &ParameterSpec, marked: &[&String]) -> Result<(), String> {
    if let Some(of) = &spec.end_of
        && !marked.contains(&of)
    {
        return Err(format!(
            "the parameter {name:?} has end_of = {of:?}, which is no parameter with a watermark"
        ));
    }
    let is_marked = spec.watermark.is_some();
    if !is_marked && (spec.initial.is_some() || spec.lag.is_some()) {
        return Err(format!(
            "the parameter {name:?} has initial or lag, which belong to one with watermark = \"...\", the column of the result"
        ));
    }
    if spec.default.is_some() && (is_marked || spec.end_of.is_some()) {
        return Err(format!(
            "the parameter {name:?} has a default, and its value comes from the watermark; remove the default"
        ));
    }
    Ok(())
}

/// Refuses an end that the mode has no use for, and one that is missing or of another type.
fn check_end(
    declared: &BTreeMap<String, ParameterSpec>,
    one: &Watermark<'_>,
    mode: Mode,
) -> Result<(), String> {
    let ends = declared.iter().filter(|(_, spec)| spec.end_of.is_some());
    let ends: Vec<_> = ends.collect();
    match (mode.adds(), &ends[..]) {
        (true, []) => {
            return Err(format!(
                "in mode append a run reads from the watermark up to an end, so that no row is there twice; declare a parameter with end_of = {:?} and type = \"{}\", and compare with < in the SQL",
                one.parameter, one.spec.parameter_type
            ));
        }
        (true, [(name, spec)]) if spec.parameter_type != one.spec.parameter_type => {
            return Err(format!(
                "the parameter {name:?} is the end of {:?} and has another type",
                one.parameter
            ));
        }
        (true, [_]) | (false, []) => {}
        (true, [_, (name, _), ..]) => {
            return Err(format!(
                "the parameter {name:?} is a second end; a range has one"
            ));
        }
        (false, [(name, _), ..]) => {
            return Err(format!(
                "in mode {mode} a run reads from the watermark on without an end, since the rows of a key are merged; remove the parameter {name:?}"
            ));
        }
    }
    Ok(())
}

fn check_type(one: &Watermark<'_>, mode: Mode) -> Result<(), String> {
    let (name, kind) = (one.parameter, one.spec.parameter_type);
    if mode.replaces() {
        return Err(format!(
            "the parameter {name:?} has a watermark, and mode = \"replace\" replaces what was read before; use append, upsert or insert_only"
        ));
    }
    match kind {
        ParameterType::Date | ParameterType::Timestamp => Ok(()),
        ParameterType::Integer | ParameterType::Decimal if !mode.adds() => Ok(()),
        ParameterType::Integer | ParameterType::Decimal => Err(format!(
            "in mode append a watermark is a date or a timestamp, since a range has to end before now; with {} {kind} use mode upsert or insert_only with a key",
            kind.article()
        )),
        ParameterType::Text | ParameterType::Boolean => Err(format!(
            "the parameter {name:?} has a watermark and is {} {kind}; only a date, a timestamp, an integer or a decimal grows",
            kind.article()
        )),
    }
}
