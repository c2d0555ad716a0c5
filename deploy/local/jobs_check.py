#!/usr/bin/env python3
"""Checks the JSON Schema of job files (jobs/job.schema.json): it accepts the jobs of jobs/ and those that the pages print, and
refuses them with a mistake that an editor should mark.

    deploy/local/jobs_check.py
"""

import json
import re
import sys
from pathlib import Path

import jsonschema

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

# A part of a job, and what takes its place.
MISTAKES = [
    ("[source]", "[sauce]"),
    ("database", "data_base"),
    ('type = "date"', 'type = "day"'),
    ("mode", "mod"),
    ('mode  = "append"', 'mode  = "apend"'),
    ("not_empty = true", "not_emty = true"),
    ('type   = "char(2)"', 'type   = "chr"'),
    ("rules  = [{", "rules  = [{ required = 1 }, {"),
]


def printed():
    """The jobs of the pages."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for job in re.finditer(r"<!-- test: job (\w+) -->\n```toml\n(.*?)```", page.read_text(), re.DOTALL):
            yield f"{page.name}: {job[1]}", job[2]


def main():
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "jobs/job.schema.json").read_text()))
    jobs = [(path.name, path.read_text()) for path in sorted((ROOT / "jobs").glob("*.toml"))] + list(printed())
    problems = []
    for name, text in jobs:
        # As editors see them, dates without quotes are strings.
        job = json.loads(json.dumps(tomllib.loads(text), default=str))
        problems += [f"{name}: {error.message}" for error in validator.iter_errors(job)]
    name, text = next(job for job in jobs if job[0].startswith("README.md"))
    for right, wrong in MISTAKES:
        if right not in text:
            problems.append(f"{name} has no {right!r} any more, which this check changes")
        elif validator.is_valid(tomllib.loads(text.replace(right, wrong, 1))):
            problems.append(f"the schema accepts {wrong!r}")
    if problems:
        sys.exit("\n".join(f"jobs_check.py: {problem}" for problem in problems))
    print(f"jobs_check.py: {len(jobs)} jobs are valid, and {len(MISTAKES)} mistakes are not")


if __name__ == "__main__":
    main()
