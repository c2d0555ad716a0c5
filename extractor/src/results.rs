//! Where a run reads its result from: decided here for the run, and for `extractor check`, which says it before.

use common::job::{Results, Source};

use crate::athena::Workgroup;

/// Where the result of a query is to be read, before a request to S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice<'a> {
    /// The pages of `GetQueryResults`, and why.
    Pages(&'static str),
    /// The object in S3 at this location; the pages where S3 refuses it, if that is permitted.
    Object { at: &'a str, or_pages: bool },
}

/// Chooses for a query that wrote its result to `output`; managed query results have no such place. An object that is
/// encrypted before S3 gets it (`CSE_KMS`) can be read by Athena alone. `auto` prefers the object.
pub(crate) fn choose(
    results: Results,
    output: Option<&str>,
    is_client_encrypted: bool,
) -> Result<Choice<'_>, &'static str> {
    match (results, output) {
        (Results::Api, _) => Ok(Choice::Pages("the job says results = \"api\"")),
        (Results::Auto, None) => Ok(Choice::Pages(
            "the query has no output location (managed query results)",
        )),
        (Results::S3, None) => Err(
            "the job says results = \"s3\", and the workgroup keeps results itself (managed query results); set results = \"auto\" or \"api\"",
        ),
        (Results::Auto, Some(_)) if is_client_encrypted => Ok(Choice::Pages(
            "only Athena can decrypt its object (CSE_KMS)",
        )),
        (Results::S3, Some(_)) if is_client_encrypted => Err(
            "the job says results = \"s3\", and the result is encrypted by Athena before S3 gets it (CSE_KMS), so that only Athena can read it; set results = \"auto\" or \"api\"",
        ),
        (Results::Auto | Results::S3, Some(at)) => Ok(Choice::Object {
            at,
            or_pages: results == Results::Auto,
        }),
    }
}

/// Where Athena will write a result of this source in this workgroup: nowhere with managed query results. An error is what
/// `StartQueryExecution` refuses, and the remedy.
pub(crate) fn output_location<'a>(
    workgroup: &'a Workgroup,
    source: &'a Source,
) -> Result<Option<&'a str>, (String, &'static str)> {
    let name = &workgroup.name;
    let (own, of_workgroup) = (&source.output_location, &workgroup.output_location);
    let place = match (workgroup.managed_results, workgroup.enforced) {
        (true, _) if own.is_some() => {
            return Err((
                format!(
                    "the workgroup {name} has managed query results, and refuses the job's output_location"
                ),
                "remove output_location from the job's [source]",
            ));
        }
        (true, _) => return Ok(None),
        // It ignores the job's without a word.
        (false, true) => of_workgroup.as_ref(),
        (false, false) => own.as_ref().or(of_workgroup.as_ref()),
    };
    match place {
        Some(place) => Ok(Some(place)),
        None if workgroup.enforced && own.is_some() => Err((
            format!("the workgroup {name} has none, and its settings override the job's"),
            "set an output location in the workgroup, or let it not override client-side settings",
        )),
        None => Err((
            format!("neither the workgroup {name} nor the job has one"),
            "set output_location in the job's [source], or in the workgroup",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn place_of_the_result_is_the_workgroups_where_it_decides() {
        let source = |own: Option<&str>| Source {
            database: "d".into(),
            workgroup: None,
            catalog: None,
            output_location: own.map(str::to_owned),
            results: Results::Auto,
            max_scanned: None,
            timeout: Duration::from_mins(1),
            ..Source::default()
        };
        let workgroup = |place: Option<&str>, enforced, managed_results| Workgroup {
            name: "w".into(),
            enabled: true,
            output_location: place.map(str::to_owned),
            enforced,
            managed_results,
            is_client_encrypted: false,
            scan_limit: None,
        };
        let (job, of_group) = (Some("s3://job/"), Some("s3://group/"));
        for (own, place, enforced, managed, wanted) in [
            (None, of_group, false, false, Some(of_group)),
            (job, of_group, false, false, Some(job)),
            (job, of_group, true, false, Some(of_group)),
            (job, None, false, false, Some(job)),
            (job, None, true, false, None),
            (None, None, false, false, None),
            (None, None, false, true, Some(None)),
            (job, None, false, true, None),
        ] {
            let (source, workgroup) = (source(own), workgroup(place, enforced, managed));
            let found = output_location(&workgroup, &source);
            assert_eq!(found.ok(), wanted, "{source:?} {workgroup:?}");
        }
    }

    #[test]
    fn result_is_an_object_where_there_is_one_that_can_be_read() {
        let place = Some("s3://b/k");
        let pages = |chosen| matches!(chosen, Ok(Choice::Pages(_)));
        assert!(pages(choose(Results::Auto, None, false)));
        assert!(pages(choose(Results::Api, place, false)));
        assert!(pages(choose(Results::Auto, place, true)));
        let object = |or_pages| Choice::Object {
            at: "s3://b/k",
            or_pages,
        };
        assert_eq!(choose(Results::Auto, place, false), Ok(object(true)));
        assert_eq!(choose(Results::S3, place, false), Ok(object(false)));
        assert!(choose(Results::S3, None, false).is_err());
        assert!(choose(Results::S3, place, true).is_err());
    }
}
