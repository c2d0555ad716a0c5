"""Checks the dashboard and the alerts against the program.

    python check.py PROMTOOL

Every metric that they name is in docs/metrics.md, with the labels that they use. The dashboard is one that
Grafana can load: JSON with panels that do not overlap, each with a data source that is provisioned, expressions that promtool
can read, and variables that are there. Every section of docs/operations.md that an alert names exists, too.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The series of a histogram.
SUFFIXES = ("_sum", "_count", "_bucket")
# The label of all metrics of a service, and those that Prometheus adds.
LABELS_OF_ALL = {"service", "instance"}
OF_PROMETHEUS = {"ALERTS"}

problems: list[str] = []


def counted() -> dict[str, set[str]]:
    """The metrics of docs/metrics.md, which a test of the services compares with what they export, with their labels."""
    page = (ROOT / "docs/metrics.md").read_text()
    found: dict[str, set[str]] = {}
    for name, kind, labels in re.findall(r"^\| `(etl_\w+)` \| (\w+) \| ([^|]*)\|", page, re.M):
        for suffix in SUFFIXES if kind == "histogram" else ("",):
            found[name + suffix] = set(re.findall(r"`(\w+)`", labels))
    return found


def check_expression(where: str, expression: str, known: dict[str, set[str]]) -> None:
    names = set(re.findall(r"\betl_[a-z_]+", expression))
    if not names and not any(name in expression for name in OF_PROMETHEUS):
        problems.append(f"{where}: it uses no metric of the services: {expression}")
    for name in sorted(names):
        if name not in known:
            problems.append(f"{where}: docs/metrics.md has no {name}")
            continue
        asked = set()
        for selector in re.findall(rf"\b{name}\{{([^}}]*)\}}", expression):
            asked |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        # A grouping uses the labels of the expression behind it.
        for labels, grouped in re.findall(r"by \(([^)]*)\)\s*\((?:\w+\()*\(?(etl_[a-z_]+)", expression):
            if grouped == name:
                asked |= {label.strip() for label in labels.split(",")}
        if unknown := asked - known[name] - LABELS_OF_ALL:
            problems.append(f"{where}: {name} has no label {', '.join(sorted(unknown))}, only {sorted(known[name])}")


def alerts() -> list[tuple[str, str]]:
    groups = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    tested = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    fired = {
        test["alertname"]
        for case in tested
        for test in case.get("alert_rule_test", [])
        if test["exp_alerts"]
    }
    headings = set(re.findall(r"^## (.*)$", (ROOT / "docs/operations.md").read_text(), re.M))
    for rule in rules:
        if rule["alert"] not in fired:
            problems.append(f"{rule['alert']}: no test in alerts_test.yml makes it fire")
        for section in re.findall(r"See '(.*?)'|see '(.*?)'", rule["annotations"]["description"]):
            if not any(heading.startswith("".join(section)) for heading in headings):
                problems.append(f"{rule['alert']}: docs/operations.md has no section '{''.join(section)}'")
    return [(rule["alert"], rule["expr"]) for rule in rules]


def overlap(one: dict, other: dict) -> bool:
    a, b = one["gridPos"], other["gridPos"]
    return a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def check_panel(panel: dict, sources: set[str]) -> list[tuple[str, str]]:
    where = f"panel '{panel['title']}'"
    grid = panel["gridPos"]
    if not (0 <= grid["x"] and grid["x"] + grid["w"] <= 24 and grid["h"] > 0 and grid["y"] >= 0):
        problems.append(f"{where}: it is not within the 24 columns: {grid}")
    if panel["type"] == "row":
        return []
    if panel["type"] not in ("timeseries", "stat"):
        problems.append(f"{where}: its type {panel['type']} is unknown to this check")
    references = [target["refId"] for target in panel["targets"]]
    if not references or len(set(references)) != len(references):
        problems.append(f"{where}: its targets are {references}")
    for user in [panel, *panel["targets"]]:
        if user["datasource"].get("uid") not in sources:
            problems.append(f"{where}: its data source {user['datasource']} is not provisioned")
    return [(where, target["expr"]) for target in panel["targets"]]


def dashboards() -> list[tuple[str, str]]:
    sources = {
        source["uid"]
        for file in (HERE / "grafana/provisioning/datasources").glob("*.yml")
        for source in yaml.safe_load(file.read_text())["datasources"]
    }
    expressions = []
    for file in (HERE / "grafana/dashboards").glob("*.json"):
        dashboard = json.loads(file.read_text())
        if not dashboard.get("uid") or not dashboard.get("title") or dashboard.get("schemaVersion", 0) < 36:
            problems.append(f"{file.name}: it has no uid, no title, or the form of a Grafana before 9")
        panels = dashboard["panels"]
        numbers = [panel["id"] for panel in panels]
        if len(set(numbers)) != len(numbers):
            problems.append(f"{file.name}: two panels have one id")
        for index, panel in enumerate(panels):
            expressions += check_panel(panel, sources)
            for other in panels[:index]:
                if overlap(panel, other):
                    problems.append(f"{file.name}: '{panel['title']}' lies over '{other['title']}'")
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        for variable in dashboard["templating"]["list"]:
            expressions.append((f"variable {variable['name']}", variable["definition"]))
        for annotation in dashboard["annotations"]["list"]:
            expressions.append((f"annotation {annotation['name']}", annotation["expr"]))
        for where, expression in expressions:
            for used in re.findall(r"\$(\w+)", expression):
                if used not in variables and not used.startswith("__"):
                    problems.append(f"{where}: there is no variable ${used}")
    if not expressions:
        problems.append("there is no dashboard")
    return expressions


def check_syntax(promtool: str, expressions: list[tuple[str, str]]) -> None:
    """As recording rules, since that is what promtool can check."""
    rules = []
    for index, (_, expression) in enumerate(expressions):
        if not expression.startswith("label_values("):
            plain = re.sub(r"\$__\w+", "5m", expression).replace("$job", "x")
            rules.append({"record": f"check:{index}", "expr": plain})
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "check", "rules": rules}]}, file)
        file.flush()
        ran = subprocess.run([promtool, "check", "rules", file.name], capture_output=True, text=True)
        if ran.returncode:
            problems.append(f"promtool cannot read an expression of the dashboard:\n{ran.stdout}{ran.stderr}")


def main() -> None:
    known = counted()
    of_alerts, of_dashboards = alerts(), dashboards()
    for where, expression in [*of_alerts, *of_dashboards]:
        check_expression(where, expression, known)
    check_syntax(sys.argv[1], of_dashboards)
    if problems:
        sys.exit("observability/check.py:\n  " + "\n  ".join(problems))
    print(
        f"observability/check.py: {len(of_alerts)} alerts and {len(of_dashboards)} expressions of the dashboard "
        f"use metrics that the services have"
    )


if __name__ == "__main__":
    main()
