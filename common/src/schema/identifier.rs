//! Names of tables and columns.

use super::SchemaError;

/// Postgres truncates a longer identifier without an error (`NAMEDATALEN` - 1).
const IDENTIFIER_BYTES: usize = 63;

/// The column that the loader adds to every target: the batch that a row came from.
pub const BATCH_COLUMN: &str = "_batch";

/// Refuses a name that a table or a column cannot have: an empty one, one too long for Postgres, one
/// with a NUL, a system column, and the loader's own column.
pub fn check_identifier(name: &str) -> Result<(), SchemaError> {
    let problem = match name {
        "" => "is empty",
        _ if name.len() > IDENTIFIER_BYTES => {
            "is longer than the 63 bytes that Postgres keeps of a name"
        }
        _ if name.contains('\0') => "has a NUL character",
        BATCH_COLUMN => "is reserved for the loader's own column",
        // System columns: CREATE TABLE refuses them.
        "tableoid" | "xmin" | "cmin" | "xmax" | "cmax" | "ctid" => "is a system column of Postgres",
        _ => return Ok(()),
    };
    Err(SchemaError::Identifier {
        name: name.to_owned(),
        problem,
    })
}
