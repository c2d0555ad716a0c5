"""Runs MiniStack as `python -m ministack` does, with an Athena that honours ClientRequestToken.

    python cloud.py

Athena answers a StartQueryExecution whose token it has seen with the execution of then, and refuses it when anything else
in the request differs. The pipeline relies on it: whoever takes over from an extractor that died asks for the query again.
MiniStack ignores the token and starts another query, whose result is another one.
"""

import json
import sys
from importlib.metadata import version

# The order matters: this one sets up what the services find.
from ministack.app import main
from ministack.services import athena


def honour_tokens() -> None:
    """Wraps what MiniStack calls for StartQueryExecution, and ends the program where another version has no such function.
    seed.py proves at each start that the wrapped one is what answers."""
    name = "_start_query_execution"
    if not hasattr(athena, name) or name not in athena.handle_request.__code__.co_names:
        sys.exit(f"cloud.py: MiniStack {version('ministack')} does not start queries by athena.{name}; look for what does")
    start = getattr(athena, name)
    asked = {}  # By token: the request, and the id that it was answered with.

    # Never called twice at the same time: MiniStack calls it from its event loop, and it awaits nothing.
    def start_once(request):
        token = request.get("ClientRequestToken")
        if token in asked:
            earlier, query = asked[token]
            if request != earlier:
                return athena.error_response_json("InvalidRequestException", "Idempotent parameters do not match", 400)
            return athena.json_response({"QueryExecutionId": query})
        answer = start(request)
        status, _, body = answer
        if token and status == 200:
            asked[token] = request, json.loads(body)["QueryExecutionId"]
        return answer

    setattr(athena, name, start_once)


honour_tokens()
main()
