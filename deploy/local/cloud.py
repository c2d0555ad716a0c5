"""Runs MiniStack as `python -m ministack` does, with two of Athena's promises that the pipeline relies on.

    python cloud.py

- ClientRequestToken: a StartQueryExecution with a known token returns the execution that the first one started, and is
  refused when the rest of the request differs. An extractor that takes over from a dead one starts its query again.
  MiniStack ignores the token.
- The result file: Athena writes it to the OutputLocation that GetQueryExecution reports, quotes every value, and writes
  nothing for NULL. MiniStack writes to another key, and an empty field for NULL and for the empty string alike.
"""

import json
import sys
from importlib.metadata import version
from urllib.parse import urlparse

# The order matters: the import of main sets up what the services need.
from ministack.app import main
from ministack.services import athena, s3


def original(name: str, caller: object):
    """The function of MiniStack that `caller` calls by this name. Another version may not have it: ends the program then,
    since a replacement would have no effect. seed.py proves at each start that the replacements are in use."""
    if not hasattr(athena, name) or name not in caller.__code__.co_names:
        sys.exit(f"cloud.py: MiniStack {version('ministack')} has no athena.{name}, or does not call it where 1.5.33 does")
    return getattr(athena, name)


def honour_tokens() -> None:
    start = original("_start_query_execution", athena.handle_request)
    known = {}  # By token: the request, and the id of its execution.

    # MiniStack calls it from its event loop and it awaits nothing, so calls never overlap.
    def start_once(request):
        token = request.get("ClientRequestToken")
        if token in known:
            earlier, query = known[token]
            if request != earlier:
                return athena.error_response_json("InvalidRequestException", "Idempotent parameters do not match", 400)
            return athena.json_response({"QueryExecutionId": query})
        answer = start(request)
        status, _, body = answer
        if token and status == 200:
            known[token] = request, json.loads(body)["QueryExecutionId"]
        return answer

    athena._start_query_execution = start_once


def record(values) -> str:
    """A line of a result file."""
    quoted = ("" if value is None else '"' + athena._datum_text(value).replace('"', '""') + '"' for value in values)
    return ",".join(quoted) + "\n"


def write_results_as_athena_does() -> None:
    original("_save_query_results", athena._execute_query)

    # It awaits nothing, so that the object is there before a client can see the state SUCCEEDED.
    async def save(query):
        execution = athena._executions[query]
        results = execution["_results"]
        place = urlparse(execution["ResultConfiguration"]["OutputLocation"])
        body = "".join([record(results["columns"]), *map(record, results["rows"])]).encode()
        headers = {"content-type": "binary/octet-stream", "content-length": str(len(body))}
        answer = s3._put_object(place.netloc, place.path.lstrip("/"), body, headers)
        if isinstance(answer, tuple) and answer[0] >= 300:
            execution["Status"] |= {"State": "FAILED", "StateChangeReason": f"cannot write the result: {answer[2]!r}"}

    athena._save_query_results = save


honour_tokens()
write_results_as_athena_does()
main()
