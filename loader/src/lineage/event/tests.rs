//! Events against the schemas of the specification, and what they say.

use common::job::JobSpec;
use common::schema::ResultColumn;
use jsonschema::{Registry, options};
use ledger::RowCounts;
use serde_json::from_value;

use super::*;

/// The specification's schemas.
fn schemas() -> Vec<Value> {
    let texts = [
        include_str!("../../../tests/openlineage/OpenLineage.json"),
        include_str!("../../../tests/openlineage/ColumnLineageDatasetFacet.json"),
        include_str!("../../../tests/openlineage/DatasourceDatasetFacet.json"),
        include_str!("../../../tests/openlineage/DocumentationJobFacet.json"),
        include_str!("../../../tests/openlineage/ErrorMessageRunFacet.json"),
        include_str!("../../../tests/openlineage/ExternalQueryRunFacet.json"),
        include_str!("../../../tests/openlineage/JobTypeJobFacet.json"),
        include_str!("../../../tests/openlineage/OutputStatisticsOutputDatasetFacet.json"),
        include_str!("../../../tests/openlineage/SchemaDatasetFacet.json"),
        include_str!("../../../tests/openlineage/SQLJobFacet.json"),
    ];
    let schemas = texts.iter().map(|text| serde_json::from_str(text).unwrap());
    schemas.collect()
}

/// Why a value is not what a schema of the specification says.
fn problems(schema: &str, value: &Value) -> Vec<String> {
    let schemas = schemas();
    let registry = schemas.iter().fold(Registry::new(), |registry, schema| {
        registry
            .add(schema["$id"].as_str().unwrap(), schema)
            .unwrap()
    });
    let registry = registry.prepare().unwrap();
    let reference =
        json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": schema });
    let validator = options()
        .with_registry(&registry)
        .should_validate_formats(true)
        .build(&reference)
        .unwrap();
    let errors = validator.iter_errors(value);
    errors
        .map(|error| format!("{schema}: {} at {}", error, error.instance_path()))
        .collect()
}

/// Every facet of a value, with the name under which it is there.
fn facets<'v>(value: &'v Value, found: &mut Vec<(&'v str, &'v Value)>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        if value.get("_schemaURL").is_some() {
            found.push((key, value));
        }
        facets(value, found);
    }
    for value in value.as_array().into_iter().flatten() {
        facets(value, found);
    }
}

/// Refuses an event that the specification refuses, or whose facets are not what their schemas say.
#[track_caller]
fn check(event: &Value) {
    let schema = event["schemaURL"].as_str().unwrap();
    let mut problems_found = problems(schema, event);
    let mut all = Vec::new();
    facets(event, &mut all);
    for (name, facet) in &all {
        let schema = facet["_schemaURL"].as_str().unwrap();
        problems_found.extend(problems(schema, facet));
        // The specification's facets have the name that their schema says, below `properties` of what has them.
        let Some((file, _)) = schema
            .strip_prefix("https://openlineage.io/spec/facets/")
            .and_then(|rest| rest.split_once('#'))
        else {
            continue;
        };
        let of = schemas()
            .into_iter()
            .find(|of| of["$id"].as_str().is_some_and(|id| id.ends_with(file)));
        let of = of.unwrap_or_else(|| panic!("no schema {file}"));
        assert!(
            of["properties"].get(*name).is_some(),
            "{name} is not the name of {file}"
        );
    }
    assert!(
        !all.is_empty() && problems_found.is_empty(),
        "{problems_found:#?}\n{event:#}"
    );
}

fn names() -> Names {
    Names {
        namespace: "warehouse".into(),
        host: "db.example.com".into(),
        port: 5432,
        database: "analytics".into(),
    }
}

fn spec() -> JobSpec {
    from_value(json!({
        "name": "clicks",
        "target": { "table": "web.clicks", "mode": "append" },
        "columns": [
            {"source": "country", "name": "country_code", "type": "char(2)", "trim": true},
            {"source": "mail", "mask": "sha256"},
            {"name": "requested", "requested_at": true}
        ]
    }))
    .unwrap()
}

fn lineage(occurrence: Occurrence) -> Lineage {
    let columns = [
        ("url", "varchar"),
        ("country", "varchar"),
        ("mail", "varchar"),
        ("visits", "bigint"),
    ];
    let columns = columns.map(|(name, type_name)| ResultColumn {
        name: name.into(),
        type_name: type_name.into(),
    });
    Lineage {
        occurrence,
        at: "2026-11-30T10:00:12.5Z".parse().unwrap(),
        run_id: "daily".into(),
        run_no: 7,
        generation: 0,
        requested_at: "2026-11-30T10:00:00Z".parse().unwrap(),
        job: "clicks".into(),
        description: Some("Clicks of a day".into()),
        sql: "SELECT c.url, c.country, u.mail, count(*) AS visits FROM clicks c JOIN people.users u ON c.user_id = u.id GROUP BY 1, 2, 3".into(),
        catalog: None,
        database: Some("netflix".into()),
        region: Some("eu-central-1".into()),
        query_execution_id: Some("4bcb4933-3458-4a18-8ecc-9a59b114d0c5".into()),
        spec: spec(),
        result_columns: columns.into(),
        rows: RowCounts {
            extracted: 100,
            loaded: 97,
            deduplicated: 2,
            rejected: 3,
            dropped: 0,
        },
    }
}

#[test]
fn every_event_is_as_the_specification_says() {
    for occurrence in [
        Occurrence::Start,
        Occurrence::Complete,
        Occurrence::Fail,
        Occurrence::Abort,
    ] {
        check(&event(&lineage(occurrence), &names()));
        // A run of which nothing is known yet.
        let bare = Lineage {
            description: None,
            database: None,
            region: None,
            query_execution_id: None,
            result_columns: Vec::new(),
            ..lineage(occurrence)
        };
        check(&event(&bare, &names()));
    }
}

#[test]
fn schemas_refuse_what_they_should() {
    let good = event(&lineage(Occurrence::Complete), &names());
    let schema = good["schemaURL"].as_str().unwrap();
    for (path, value) in [
        ("/eventTime", json!("yesterday")),
        ("/eventType", json!("DONE")),
        ("/run/runId", json!("daily")),
        ("/producer", json!("no uri")),
        ("/job/name", json!(1)),
        ("/outputs/0/facets/schema", json!({})),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value;
        assert!(!problems(schema, &bad).is_empty(), "{path}");
    }
    let schema = "https://openlineage.io/spec/facets/1-0-2/ExternalQueryRunFacet.json#/$defs/ExternalQueryRunFacet";
    let mut facet = good["run"]["facets"]["externalQuery"].clone();
    assert!(problems(schema, &facet).is_empty());
    facet.as_object_mut().unwrap().remove("source");
    assert!(!problems(schema, &facet).is_empty());
}

#[test]
fn complete_event_has_tables_columns_and_counts() {
    let mut complete = event(&lineage(Occurrence::Complete), &names());
    // The version of the package.
    complete["producer"] = json!("pkg:generic/athena-to-postgresql");
    let mut text = serde_json::to_string_pretty(&complete).unwrap();
    text = text.replace(
        &format!("\"_producer\": \"{PRODUCER}\""),
        "\"_producer\": \"...\"",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn only_a_complete_run_says_how_many_rows_were_written() {
    for occurrence in [Occurrence::Start, Occurrence::Fail, Occurrence::Abort] {
        let event = event(&lineage(occurrence), &names());
        assert_eq!(
            event["outputs"][0].get("outputFacets"),
            None,
            "{occurrence:?}"
        );
    }
}

#[test]
fn each_attempt_and_each_replay_is_a_run_of_its_own() {
    let id = |change: fn(&mut Lineage)| {
        let mut lineage = lineage(Occurrence::Complete);
        change(&mut lineage);
        run_id(&lineage)
    };
    let first = id(|_| {});
    assert_eq!(first.get_version_num(), 7);
    assert_eq!(first, id(|lineage| lineage.occurrence = Occurrence::Start));
    let others = [
        id(|lineage| lineage.generation = 1),
        id(|lineage| lineage.run_no = 8),
        id(|lineage| lineage.run_id = "daily-2".into()),
        // The same name and number, given again by a ledger that was restored.
        id(|lineage| lineage.requested_at = "2026-11-30T10:00:00.000001Z".parse().unwrap()),
    ];
    let mut all = vec![first];
    all.extend(others);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 5);
}
