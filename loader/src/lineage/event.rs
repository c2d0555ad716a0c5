//! A run event of OpenLineage, from what the ledger knows of a run. Pure. It has names, counts and the SQL, and no value of a row.

use common::job::{ColumnSpec, Origin, ResolvedColumn, resolve};
use ledger::{Lineage, Occurrence};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

use super::query::{Place, Reads};

/// Who makes the events, as a package URL.
const PRODUCER: &str = concat!(
    "pkg:generic/athena-to-postgresql@",
    env!("CARGO_PKG_VERSION")
);

/// The version of the specification.
const SPECIFICATION: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json";

/// What an event has besides the ledger's facts.
#[derive(Debug, Clone)]
pub struct Names {
    /// The namespace of the jobs.
    pub namespace: String,
    /// The server and the database of the targets.
    pub host: String,
    pub port: u16,
    pub database: String,
}

/// The event of one occurrence.
pub fn event(lineage: &Lineage, names: &Names) -> Value {
    let reads = reads(lineage);
    json!({
        "eventType": match lineage.occurrence {
            Occurrence::Start => "START",
            Occurrence::Complete => "COMPLETE",
            Occurrence::Fail => "FAIL",
            Occurrence::Abort => "ABORT",
        },
        "eventTime": lineage.at.to_string(),
        "producer": PRODUCER,
        "schemaURL": format!("{SPECIFICATION}#/$defs/RunEvent"),
        "run": { "runId": run_id(lineage).to_string(), "facets": run_facets(lineage) },
        "job": { "namespace": names.namespace, "name": lineage.job, "facets": job_facets(lineage) },
        "inputs": inputs(lineage, &reads),
        "outputs": [output(lineage, names, &reads)],
    })
}

/// The same for all events of a generation, and another one for each other, also of a ledger that was restored: a UUID of version 7
/// with the time of the request, as OpenLineage's own clients make one from an instant and data.
fn run_id(lineage: &Lineage) -> Uuid {
    let Lineage {
        run_id,
        run_no,
        generation,
        requested_at,
        ..
    } = lineage;
    let of = format!("{run_id}/{run_no}/{generation}/{requested_at}");
    let hash = Sha256::digest(of);
    let mut rest = [0; 10];
    rest.copy_from_slice(&hash[..10]);
    let millis = u64::try_from(requested_at.as_millisecond()).unwrap_or_default();
    Builder::from_unix_timestamp_millis(millis, &rest).into_uuid()
}

/// A facet of this name and version in the specification.
fn facet(name: &str, version: &str, fields: Value) -> Value {
    let schema = format!("https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}");
    with_schema(&schema, fields)
}

fn with_schema(schema: &str, mut fields: Value) -> Value {
    fields["_producer"] = json!(PRODUCER);
    fields["_schemaURL"] = json!(schema);
    fields
}

fn run_facets(lineage: &Lineage) -> Map<String, Value> {
    let mut facets = Map::new();
    let Lineage {
        run_id, occurrence, ..
    } = lineage;
    if let Some(id) = &lineage.query_execution_id {
        let query = json!({ "externalQueryId": id, "source": "awsathena" });
        let query = facet("ExternalQueryRunFacet", "1-0-2", query);
        facets.insert("externalQuery".to_owned(), query);
    }
    if *occurrence == Occurrence::Fail {
        // The ledger's reason may quote a value.
        let message = format!("the run {run_id} failed; `etl status {run_id}` has the reason");
        let error = json!({ "message": message, "programmingLanguage": "RUST" });
        let error = facet("ErrorMessageRunFacet", "1-0-1", error);
        facets.insert("errorMessage".to_owned(), error);
    }
    // No facet of the specification counts rows that were not written.
    let own = json!({
        "runId": run_id,
        "runNo": lineage.run_no,
        "generation": lineage.generation,
        "rowsExtracted": lineage.rows.extracted,
        "rowsLoaded": lineage.rows.loaded,
        "rowsDeduplicated": lineage.rows.deduplicated,
        "rowsRejected": lineage.rows.rejected,
        "rowsDropped": lineage.rows.dropped,
    });
    let own = with_schema(&format!("{SPECIFICATION}#/$defs/RunFacet"), own);
    facets.insert("etl_ledger".to_owned(), own);
    facets
}

fn job_facets(lineage: &Lineage) -> Map<String, Value> {
    let kind = json!({ "processingType": "BATCH", "integration": "ETL", "jobType": "JOB" });
    let sql = json!({ "query": lineage.sql, "dialect": "athena" });
    let mut facets = Map::from_iter([
        (
            "jobType".to_owned(),
            facet("JobTypeJobFacet", "2-0-4", kind),
        ),
        ("sql".to_owned(), facet("SQLJobFacet", "1-1-0", sql)),
    ]);
    if let Some(description) = &lineage.description {
        let description = json!({ "description": description });
        let description = facet("DocumentationJobFacet", "1-1-0", description);
        facets.insert("documentation".to_owned(), description);
    }
    facets
}

fn reads(lineage: &Lineage) -> Reads {
    let place = lineage.database.as_deref().map(|database| Place {
        catalog: lineage.catalog.as_deref(),
        database,
    });
    place.map_or_else(Reads::default, |place| Reads::of(&lineage.sql, place))
}

/// The namespace of Athena's tables, once the region is known.
fn athena(lineage: &Lineage) -> Option<String> {
    let region = lineage.region.as_ref()?;
    Some(format!("awsathena://athena.{region}.amazonaws.com"))
}

fn inputs(lineage: &Lineage, reads: &Reads) -> Vec<Value> {
    let Some(namespace) = athena(lineage) else {
        return Vec::new();
    };
    let tables = reads.tables.iter();
    tables
        .map(|table| json!({ "namespace": namespace, "name": table }))
        .collect()
}

fn output(lineage: &Lineage, names: &Names, reads: &Reads) -> Value {
    let Names {
        host,
        port,
        database,
        ..
    } = names;
    let (schema, table) = lineage.spec.target.schema_and_table();
    let namespace = format!("postgres://{host}:{port}");
    let source = json!({ "name": namespace, "uri": format!("{namespace}/{database}") });
    let mut facets = Map::from_iter([(
        "dataSource".to_owned(),
        facet("DatasourceDatasetFacet", "1-0-1", source),
    )]);
    let columns = columns(lineage);
    if !columns.is_empty() {
        let schema = facet("SchemaDatasetFacet", "1-2-0", fields(&columns));
        facets.insert("schema".to_owned(), schema);
    }
    let origins = origins(lineage, &columns, reads);
    if !origins.is_empty() {
        let origins = facet(
            "ColumnLineageDatasetFacet",
            "1-2-0",
            json!({ "fields": origins }),
        );
        facets.insert("columnLineage".to_owned(), origins);
    }
    let mut output = json!({
        "namespace": namespace,
        "name": format!("{database}.{schema}.{table}"),
        "facets": facets,
    });
    if lineage.occurrence == Occurrence::Complete {
        let written = lineage.rows.loaded - lineage.rows.deduplicated;
        let written = json!({ "rowCount": written });
        let written = facet("OutputStatisticsOutputDatasetFacet", "1-0-2", written);
        output["outputFacets"] = json!({ "outputStatistics": written });
    }
    output
}

/// The columns of the target that the run fills; none before the result is known.
fn columns(lineage: &Lineage) -> Vec<ResolvedColumn> {
    let spec = lineage.spec.with_requested_at(lineage.requested_at);
    if lineage.result_columns.is_empty() {
        return Vec::new();
    }
    resolve(&spec.columns, &lineage.result_columns, &spec.target.key).unwrap_or_default()
}

/// Without their positions: those of a table that was there before are its own.
fn fields(columns: &[ResolvedColumn]) -> Value {
    let fields = columns.iter().map(|column| {
        let (name, pg_type) = (&column.target.name, column.target.pg_type.to_string());
        json!({ "name": name, "type": pg_type })
    });
    json!({ "fields": fields.collect::<Vec<_>>() })
}

/// The columns of the inputs that columns of the target are made of, where that is certain.
fn origins(lineage: &Lineage, columns: &[ResolvedColumn], reads: &Reads) -> Map<String, Value> {
    let Some(namespace) = athena(lineage) else {
        return Map::new();
    };
    let followed = columns.iter().filter_map(|column| {
        let Origin::Result { position, .. } = column.origin else {
            return None;
        };
        let result_column = &lineage.result_columns.get(position)?.name;
        let (table, field) = reads.origin(result_column)?;
        let transformation = json!({
            "type": "DIRECT",
            "subtype": if is_as_it_was(&column.spec) { "IDENTITY" } else { "TRANSFORMATION" },
            "masking": column.spec.mask.is_some(),
        });
        let from = json!({
            "namespace": namespace,
            "name": table,
            "field": field,
            "transformations": [transformation],
        });
        Some((column.target.name.clone(), json!({ "inputFields": [from] })))
    });
    followed.collect()
}

/// Whether the job leaves the values of a column as they are.
fn is_as_it_was(spec: &ColumnSpec) -> bool {
    let ColumnSpec {
        source: _,
        name: _,
        pg_type: _,
        rules: _,
        requested_at: _,
        parameter: _,
        constant: _,
        format,
        epoch,
        round,
        trim,
        null_if,
        case,
        mask,
    } = spec;
    let treatments = [
        format.is_some(),
        epoch.is_some(),
        *round,
        *trim,
        !null_if.is_empty(),
        case.is_some(),
        mask.is_some(),
    ];
    !treatments.contains(&true)
}

#[cfg(test)]
mod tests;
