//! Athena's part of the emulator: the operations that the extractor uses, with the rules of the API that matter to it
//! (Amazon Athena API Reference): idempotent tokens, workgroup settings, states, pages whose first row is the header.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::answer::{Answer, End, QueryState};
use super::fault::{Answered, ErrorAnswer, Op, invalid, not_found};
use super::pages;
use super::state::{Execution, State, Workgroup};

/// The longest query string, in bytes.
const LONGEST_SQL: usize = 262_144;

fn text<'a>(request: &'a Value, name: &str) -> Option<&'a str> {
    request.get(name).and_then(Value::as_str)
}

/// Serves one request.
pub(crate) fn serve(state: &mut State, op: Op, request: &Value) -> Answered {
    match op {
        Op::StartQueryExecution => start(state, request),
        Op::GetQueryExecution => get(state, request),
        Op::BatchGetQueryExecution => Ok(batch_get(state, request)),
        Op::StopQueryExecution => stop(state, request),
        Op::GetQueryResults => pages::results(state, request),
        Op::GetWorkGroup => get_workgroup(state, request),
        Op::GetObject | Op::HeadObject | Op::PutObject => unreachable!("an operation of S3"),
        Op::AssumeRole | Op::GetCallerIdentity => unreachable!("an operation of STS"),
    }
}

fn start(state: &mut State, request: &Value) -> Answered {
    let sql = text(request, "QueryString").unwrap_or_default();
    if sql.trim().is_empty() || sql.len() > LONGEST_SQL {
        return Err(invalid(format!(
            "queryString has {} bytes; it must have 1 to {LONGEST_SQL}",
            sql.len()
        )));
    }
    let token = text(request, "ClientRequestToken").map(str::to_owned);
    if token
        .as_ref()
        .is_some_and(|t| !(32..=128).contains(&t.len()))
    {
        return Err(invalid("clientRequestToken must have 32 to 128 characters"));
    }
    let mut same = request.clone();
    if let Some(fields) = same.as_object_mut() {
        fields.remove("ClientRequestToken");
    }
    if let Some(earlier) = state
        .executions
        .iter()
        .find(|e| token.is_some() && e.token == token)
    {
        return if earlier.request == same {
            Ok(json!({ "QueryExecutionId": earlier.id }))
        } else {
            Err(invalid("Idempotent parameters do not match"))
        };
    }
    let workgroup = workgroup(state, text(request, "WorkGroup").unwrap_or("primary"))?;
    let id = execution_id(state.executions.len());
    let output = output_location(&workgroup, request, &id)?;
    if let Some(earlier) = reusable(state, request, &workgroup) {
        let (output, answer) = (earlier.output.clone(), earlier.answer.clone());
        let answer = answer.scanned(0).polls(&[]);
        let mut again = execution(&id, token, same, &workgroup, output, answer);
        again.reused = true;
        state.executions.push(again);
        return Ok(json!({ "QueryExecutionId": id }));
    }
    let answer = state.answer_to(sql).ok_or_else(|| {
        invalid("the emulator has no answer for this query: set one with Cloud::answer or Cloud::otherwise")
    })?;
    if let End::Refused(message) = &answer.end {
        return Err(invalid(message));
    }
    state
        .executions
        .push(execution(&id, token, same, &workgroup, output, answer));
    Ok(json!({ "QueryExecutionId": id }))
}

/// An earlier execution whose result the request may reuse, of any age.
fn reusable<'a>(state: &'a State, request: &Value, workgroup: &Workgroup) -> Option<&'a Execution> {
    let reuse = request.pointer("/ResultReuseConfiguration/ResultReuseByAgeConfiguration/Enabled");
    (reuse == Some(&json!(true))).then_some(())?;
    state.executions.iter().find(|earlier| {
        earlier.state == QueryState::Succeeded
            && earlier.workgroup.name == workgroup.name
            && text(&earlier.request, "QueryString") == text(request, "QueryString")
    })
}

fn execution(
    id: &str,
    token: Option<String>,
    request: Value,
    workgroup: &Workgroup,
    output: Option<String>,
    answer: Answer,
) -> Execution {
    let execution = Execution {
        id: id.to_owned(),
        token,
        request,
        workgroup: workgroup.clone(),
        output,
        reused: false,
        polls: answer.polls.iter().copied().collect(),
        answer,
        state: QueryState::Queued,
        reason: None,
        was_running: false,
        started: Instant::now(),
        submitted: SystemTime::now(),
        completed: None,
    };
    if execution.output.is_some() && execution.writes_ahead() {
        let result = execution.answer.result.clone();
        // Not a task: only polls wait for it, and they check whether the file exists.
        std::thread::spawn(move || result.spool().size);
    }
    execution
}

/// The same ids in every process, one after the other, in the form of a UUID.
fn execution_id(count: usize) -> String {
    format!("00000000-0000-4000-8000-{:012x}", count + 1)
}

fn workgroup(state: &State, name: &str) -> Result<Workgroup, ErrorAnswer> {
    let found = state
        .workgroups
        .get(name)
        .ok_or_else(|| invalid(format!("WorkGroup {name} is not found.")))?;
    if found.enabled {
        Ok(found.clone())
    } else {
        Err(invalid(format!("WorkGroup {name} is disabled.")))
    }
}

/// The result's location: none with managed results, the workgroup's when it is enforced, else the client's.
fn output_location(
    workgroup: &Workgroup,
    request: &Value,
    id: &str,
) -> Result<Option<String>, ErrorAnswer> {
    let wanted = request
        .pointer("/ResultConfiguration/OutputLocation")
        .and_then(Value::as_str);
    if workgroup.managed_results {
        return if wanted.is_some() {
            Err(invalid(
                "ResultConfiguration cannot be specified when the WorkGroup has managed query results enabled",
            ))
        } else {
            Ok(None)
        };
    }
    let own = workgroup.output_location.as_deref();
    let folder = if workgroup.enforced {
        own
    } else {
        wanted.or(own)
    };
    let folder = folder.ok_or_else(|| {
        invalid("No output location provided. An output location is required either through the Workgroup result configuration setting or as an API input.")
    })?;
    Ok(Some(format!("{}/{id}.csv", folder.trim_end_matches('/'))))
}

fn get(state: &mut State, request: &Value) -> Answered {
    let id = text(request, "QueryExecutionId").unwrap_or_default();
    let execution = state.poll(id).ok_or_else(|| not_found(id))?;
    Ok(json!({ "QueryExecution": describe(execution) }))
}

fn batch_get(state: &mut State, request: &Value) -> Value {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for id in request
        .get("QueryExecutionIds")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let id = id.as_str().unwrap_or_default();
        match state.poll(id) {
            Some(execution) => found.push(describe(execution)),
            None => missing.push(json!({ "QueryExecutionId": id, "ErrorCode": "INVALID_INPUT", "ErrorMessage": "not found" })),
        }
    }
    json!({ "QueryExecutions": found, "UnprocessedQueryExecutionIds": missing })
}

fn stop(state: &mut State, request: &Value) -> Answered {
    let id = text(request, "QueryExecutionId").unwrap_or_default();
    let execution = state.execution(id).ok_or_else(|| not_found(id))?;
    execution.cancel("Query cancelled by user".to_owned());
    Ok(json!({}))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn describe(execution: &Execution) -> Value {
    let mut status = json!({
        "State": execution.state.name(),
        "SubmissionDateTime": seconds(execution.submitted),
    });
    if let Some(reason) = &execution.reason {
        status["StateChangeReason"] = json!(reason);
    }
    if let Some(completed) = execution.completed {
        status["CompletionDateTime"] = json!(seconds(completed));
    }
    if let (QueryState::Failed, End::Failed(error)) = (execution.state, &execution.answer.end) {
        status["AthenaError"] = json!({
            "ErrorCategory": error.category,
            "ErrorType": error.error_type,
            "Retryable": error.retryable,
            "ErrorMessage": error.message,
        });
    }
    let result = result_configuration(execution.output.as_deref(), &execution.workgroup);
    let took = execution
        .started
        .elapsed()
        .max(Duration::from_millis(1))
        .as_millis();
    json!({
        "QueryExecutionId": execution.id,
        "Query": execution.request["QueryString"],
        "StatementType": "DML",
        "SubstatementType": execution.answer.substatement,
        "WorkGroup": execution.workgroup.name,
        "EngineVersion": { "SelectedEngineVersion": "AUTO", "EffectiveEngineVersion": "Athena engine version 3" },
        "QueryExecutionContext": execution.request.get("QueryExecutionContext").unwrap_or(&json!({})),
        "ResultConfiguration": result,
        "ManagedQueryResultsConfiguration": { "Enabled": execution.workgroup.managed_results },
        "Status": status,
        "Statistics": {
            "DataScannedInBytes": execution.scanned(),
            "EngineExecutionTimeInMillis": took,
            "TotalExecutionTimeInMillis": took,
            "QueryQueueTimeInMillis": 1,
            "ResultReuseInformation": { "ReusedPreviousResult": execution.reused },
        },
    })
}

fn result_configuration(location: Option<&str>, workgroup: &Workgroup) -> Value {
    let mut result = match location {
        Some(location) => json!({ "OutputLocation": location }),
        None => json!({}),
    };
    if workgroup.client_encrypted {
        result["EncryptionConfiguration"] =
            json!({ "EncryptionOption": "CSE_KMS", "KmsKey": "key" });
    }
    result
}

fn get_workgroup(state: &mut State, request: &Value) -> Answered {
    let name = text(request, "WorkGroup").unwrap_or_default();
    let found = state
        .workgroups
        .get(name)
        .ok_or_else(|| invalid(format!("WorkGroup {name} is not found.")))?;
    let location = found.output_location.as_deref();
    let result = result_configuration(location.filter(|_| !found.managed_results), found);
    Ok(json!({ "WorkGroup": {
        "Name": found.name,
        "State": if found.enabled { "ENABLED" } else { "DISABLED" },
        "Configuration": {
            "EnforceWorkGroupConfiguration": found.enforced,
            "ResultConfiguration": result,
            "ManagedQueryResultsConfiguration": { "Enabled": found.managed_results },
            "EngineVersion": { "SelectedEngineVersion": "AUTO", "EffectiveEngineVersion": "Athena engine version 3" },
        },
    } }))
}
