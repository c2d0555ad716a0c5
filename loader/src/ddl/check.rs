//! Whether an existing table accepts the rows of a job, and whether a role may write them. Pure.

use common::job::{Target, Window};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, quoted};

use super::contract::Known;
use super::{
    Access, Cascade, ExistingColumn, ExistingTable, Generated, MAX_COLUMNS, Refusal, RowChange,
    TableAccess, TableName, list,
};

/// What speaks against an existing table for every role. Additional columns are allowed if Postgres can fill
/// them.
pub(crate) fn check_table(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    found: &ExistingTable,
) -> Vec<Refusal> {
    let table = name.sql();
    if let Err(refusal) = check_kind(name, found) {
        return vec![refusal];
    }
    let mut refusals = Vec::new();
    if !found.unlogged.is_empty() {
        refusals.push(Refusal::Unlogged {
            tables: found.unlogged.clone(),
        });
    }
    refusals.extend(
        found
            .foreign_partition
            .clone()
            .map(|partition| Refusal::ForeignPartition {
                table: table.clone(),
                partition: partition.name,
                detach: partition.detach,
            }),
    );
    if found.has_no_partition {
        let default = TableName {
            schema: name.schema.clone(),
            table: lengthened(&name.table, "_default"),
        };
        refusals.push(Refusal::NoPartition {
            table: table.clone(),
            default: default.sql(),
        });
    }
    refusals.extend(found.rule.clone().map(|rule| Refusal::Rule {
        table: table.clone(),
        rule,
    }));
    refusals.extend(check_updates(&table, target, columns, found));
    refusals.extend(check_columns(&table, target, columns, known, found));
    refusals
}

/// What speaks against creating the table as the job wants it.
pub(super) fn check_created(name: &TableName, target: &Target, access: &Access) -> Vec<Refusal> {
    let tablespace = target.tablespace.iter().filter(|_| !access.uses_tablespace);
    let refused = tablespace.map(|tablespace| Refusal::MayNotUseTablespace {
        tablespace: tablespace.clone(),
        role: access.role.clone(),
    });
    let unknown = access
        .unknown_roles
        .iter()
        .map(|role| Refusal::UnknownRole {
            table: name.sql(),
            role: role.clone(),
        });
    refused.chain(unknown).collect()
}

/// Rows are loaded into tables only.
fn check_kind(name: &TableName, found: &ExistingTable) -> Result<(), Refusal> {
    let (article, word) = match found.kind.as_str() {
        "r" | "p" => return Ok(()),
        "v" => ("a view", "VIEW"),
        "m" => ("a materialized view", "MATERIALIZED VIEW"),
        "f" => ("a foreign table", "FOREIGN TABLE"),
        "S" => ("a sequence and not a table", "SEQUENCE"),
        "i" | "I" => ("an index and not a table", "INDEX"),
        _ => ("a type and not a table", "TYPE"),
    };
    Err(Refusal::NotATable {
        table: name.sql(),
        article,
        rename: format!(
            "ALTER {word} {} RENAME TO {}",
            name.sql(),
            quoted(&lengthened(&name.table, "_old"))
        ),
    })
}

/// A name with an end, in the 63 bytes that a name may have.
fn lengthened(name: &str, end: &str) -> String {
    let mut length = name.len().min(63 - end.len());
    while !name.is_char_boundary(length) {
        length -= 1;
    }
    format!("{}{end}", &name[..length])
}

/// What speaks against overwriting rows, in the modes that do.
fn check_updates(
    table: &str,
    target: &Target,
    columns: &[TargetColumn],
    found: &ExistingTable,
) -> Vec<Refusal> {
    if !target.mode.has_key() {
        return Vec::new();
    }
    let is_updated = |column: &String| {
        !target.key.contains(column) && columns.iter().any(|one| one.name == *column)
    };
    let cascades = |one: &&Cascade| one.on_update && one.columns.iter().any(is_updated);
    let cascade = found.cascades.iter().find(cascades);
    let cascade = cascade.filter(|_| !target.allow_cascades);
    let mut refusals: Vec<_> = cascade
        .map(|cascade| cascades_refusal(table, cascade, RowChange::Update))
        .into_iter()
        .collect();
    let published = found.unidentified.iter().find(|one| one.on_update);
    refusals.extend(published.map(|one| Refusal::NoReplicaIdentity {
        table: one.table.clone(),
        publication: one.publication.clone(),
        change: RowChange::Update,
    }));
    refusals
}

/// What speaks against deleting rows: in mode `replace`, and in the others at a replay and an undo.
pub(super) fn check_deletes(
    name: &TableName,
    target: &Target,
    found: &ExistingTable,
    access: &Access,
) -> Vec<Refusal> {
    let table = name.sql();
    let mut refusals = Vec::new();
    let rights = access.table.as_ref();
    if let Some(rights) = rights
        && (!rights.deletes || !rights.no_select.is_empty())
    {
        refusals.push(Refusal::MayNotWrite {
            table: table.clone(),
            role: access.role.clone(),
            privileges: "SELECT, DELETE".to_owned(),
        });
    }
    let cascade = found.cascades.iter().find(|one| one.on_delete);
    if let Some(cascade) = cascade.filter(|_| !target.allow_cascades) {
        refusals.push(cascades_refusal(&table, cascade, RowChange::Delete));
    }
    let published = found.unidentified.iter().find(|one| one.on_delete);
    refusals.extend(published.map(|one| Refusal::NoReplicaIdentity {
        table: one.table.clone(),
        publication: one.publication.clone(),
        change: RowChange::Delete,
    }));
    refusals
}

pub(crate) fn cascades_refusal(table: &str, cascade: &Cascade, change: RowChange) -> Refusal {
    Refusal::Cascades {
        table: table.to_owned(),
        constraint: cascade.constraint.clone(),
        change,
        alter: cascade.alter.clone(),
    }
}

/// Whether PostgreSQL has room for the columns that the table lacks.
pub(super) fn check_room(
    table: &str,
    columns: &[TargetColumn],
    found: &ExistingTable,
) -> Result<(), Refusal> {
    let is_missing = |name: &&str| found.columns.iter().all(|one| one.name != **name);
    let names = columns.iter().map(|column| column.name.as_str());
    let added = names.chain([BATCH_COLUMN]).filter(is_missing).count();
    if added > 0 && found.places + added > MAX_COLUMNS {
        return Err(Refusal::TableTooWide {
            table: table.to_owned(),
            places: found.places,
            added,
        });
    }
    Ok(())
}

fn check_columns(
    table: &str,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    found: &ExistingTable,
) -> Vec<Refusal> {
    let mut refusals: Vec<_> = columns
        .iter()
        .chain([&batch_column()])
        .filter_map(|column| check_column(table, column, target, found).err())
        .collect();
    let is_filled =
        |name: &str| name == BATCH_COLUMN || columns.iter().any(|one| one.name == *name);
    let needs_value = |one: &&ExistingColumn| {
        one.not_null && !one.has_default && one.generated.is_none() && !is_filled(&one.name)
    };
    // The query may return a column that the job does not declare.
    let needy = found
        .columns
        .iter()
        .filter(needs_value)
        .filter(|_| known == Known::All);
    refusals.extend(needy.map(|one| Refusal::NeedsValue {
        table: table.to_owned(),
        column: one.name.clone(),
    }));
    let has_key = |unique: &Vec<String>| {
        unique.len() == target.key.len() && target.key.iter().all(|key| unique.contains(key))
    };
    if target.mode.has_key() && !found.unique.iter().any(has_key) {
        refusals.push(Refusal::NoUniqueKey {
            table: table.to_owned(),
            key: list(&target.key),
        });
    }
    refusals
}

/// The column that the loader adds to every target.
fn batch_column() -> TargetColumn {
    TargetColumn {
        name: BATCH_COLUMN.to_owned(),
        pg_type: PgType::BigInt,
        athena_type: String::new(),
    }
}

fn check_column(
    table: &str,
    wanted: &TargetColumn,
    target: &Target,
    found: &ExistingTable,
) -> Result<(), Refusal> {
    let (table, column) = (table.to_owned(), wanted.name.clone());
    let wanted_name = wanted.pg_type.to_string();
    let Some(one) = found.columns.iter().find(|one| one.name == column) else {
        return Err(Refusal::MissingColumn {
            table,
            evolves: column != BATCH_COLUMN,
            column,
            type_name: wanted_name,
        });
    };
    if let Some(generated) = one.generated {
        return Err(Refusal::Generated {
            table,
            column,
            wanted: wanted_name,
            is_virtual: generated == Generated::Virtual,
        });
    }
    if one.identity_always {
        return Err(Refusal::Identity { table, column });
    }
    let bounds = target.replace_where.iter().flat_map(Window::bounds);
    let mut compared = bounds
        .map(|bound| &bound.column)
        .chain(target.key.iter().filter(|_| target.mode.has_key()));
    if one.compares_otherwise && compared.any(|compared| *compared == one.name) {
        let because = ", and rows are found by it, which such a type compares in its own way";
        return Err(other_type(table, one, wanted, because));
    }
    if !is_same_or_wider(wanted.pg_type, &one.takes) {
        return Err(other_type(table, one, wanted, ""));
    }
    Ok(())
}

/// The type to declare is one that the job can have with this column of the query.
pub(super) fn other_type(
    table: String,
    column: &ExistingColumn,
    wanted: &TargetColumn,
    because: &'static str,
) -> Refusal {
    let takes: Option<PgType> = column.takes.parse().ok();
    let (from, wanted) = (wanted, wanted.pg_type);
    Refusal::OtherType {
        table,
        column: column.name.clone(),
        found: column.type_name.clone(),
        wanted,
        because,
        declare: takes.filter(|takes| *takes != wanted && from.may_become(*takes)),
        through_text: wanted != PgType::Text
            && !column
                .type_name
                .parse()
                .is_ok_and(|found| has_cast(found, wanted)),
    }
}

/// Whether PostgreSQL casts values of one type to the other.
fn has_cast(from: PgType, to: PgType) -> bool {
    use PgType as P;
    let is_text = |one| matches!(one, P::Text | P::Varchar(_) | P::Char(_));
    let is_number = |one| {
        matches!(
            one,
            P::SmallInt | P::Integer | P::BigInt | P::Real | P::Double | P::Numeric(_)
        )
    };
    let is_moment = |one| matches!(one, P::Date | P::Timestamp | P::TimestampTz);
    let is_json = |one| matches!(one, P::Json | P::Jsonb);
    is_text(from)
        || is_text(to)
        || (is_number(from) && is_number(to))
        || (is_moment(from) && is_moment(to))
        || (is_json(from) && is_json(to))
}

/// Whether every value of the job's type is the same value in the type of the table.
fn is_same_or_wider(wanted: PgType, found: &str) -> bool {
    use PgType as P;
    let Ok(found) = found.parse::<PgType>() else {
        return false;
    };
    match (wanted, found) {
        (P::SmallInt, P::Integer | P::BigInt)
        | (P::Integer, P::BigInt)
        | (P::Numeric(_), P::Numeric(None))
        | (P::Varchar(_), P::Text | P::Varchar(None))
        | (P::Text, P::Varchar(None)) => true,
        (P::Varchar(Some(wanted)), P::Varchar(Some(found))) => found >= wanted,
        (wanted, found) => wanted == found,
    }
}

/// What the role lacks to write rows in the job's mode, to a table that is there.
pub(super) fn check_access(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    access: &Access,
) -> Vec<Refusal> {
    let Some(rights) = &access.table else {
        return Vec::new();
    };
    let (table, role) = (name.sql(), access.role.clone());
    let mut refusals: Vec<_> = check_schema(name, access).into_iter().collect();
    let is_staged = target.is_staged(0);
    let privileges = missing(target, columns, rights, is_staged);
    if !privileges.is_empty() {
        refusals.push(Refusal::MayNotWrite {
            table: table.clone(),
            role: role.clone(),
            privileges: privileges.join(", "),
        });
    }
    let is_filled = |name: &String| columns.iter().any(|column| column.name == *name);
    let unfilled = rights
        .no_sequence
        .iter()
        .filter(|(name, _)| !is_filled(name));
    refusals.extend(
        unfilled.map(|(column, sequence)| Refusal::MayNotUseSequence {
            table: table.clone(),
            column: column.clone(),
            sequence: sequence.clone(),
            role: role.clone(),
        }),
    );
    if rights.has_policies {
        refusals.push(Refusal::RowSecurity { table, role });
    }
    refusals
}

/// The privileges on the table that the mode needs, if one of them is missing.
fn missing(
    target: &Target,
    columns: &[TargetColumn],
    rights: &TableAccess,
    is_staged: bool,
) -> Vec<&'static str> {
    let reads = target.mode.has_key() || target.mode.replaces() || is_staged;
    let is_written =
        |name: &String| name == BATCH_COLUMN || columns.iter().any(|column| column.name == *name);
    let lacks = |of: &[String]| of.iter().any(is_written);
    let needs = [
        ("SELECT", reads, lacks(&rights.no_select)),
        ("INSERT", true, lacks(&rights.no_insert) || !rights.locks),
        (
            "UPDATE",
            target.mode.has_key(),
            rights
                .no_update
                .iter()
                .any(|name| is_written(name) && !target.key.contains(name)),
        ),
        ("DELETE", target.mode.replaces(), !rights.deletes),
    ];
    if !needs
        .iter()
        .any(|(_, is_needed, lacks)| *is_needed && *lacks)
    {
        return Vec::new();
    }
    let needed = needs.into_iter().filter(|(_, is_needed, _)| *is_needed);
    needed.map(|(privilege, ..)| privilege).collect()
}

/// What the role lacks for the tables in which the rows of this generation of a run wait.
pub(super) fn check_surroundings(
    target: &Target,
    generation: u32,
    access: &Access,
) -> Option<Refusal> {
    let role = access.role.clone();
    if target.is_staged(generation) {
        return (!access.stages).then_some(Refusal::MayNotStage { role });
    }
    let database = access.database.clone();
    (target.mode.has_key() && !access.makes_temporary)
        .then_some(Refusal::MayNotMakeTemporary { database, role })
}

pub(super) fn check_schema(name: &TableName, access: &Access) -> Option<Refusal> {
    (!access.uses_schema).then(|| Refusal::MayNotUseSchema {
        schema: name.schema.clone(),
        role: access.role.clone(),
    })
}
