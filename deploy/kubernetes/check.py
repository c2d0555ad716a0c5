"""Checks the manifests of this folder without a cluster.

    python check.py

Each object against the schemas of two versions of Kubernetes, strictly: a field that is not known is an error. KEDA's
against what its scaler of RabbitMQ reads. Then that the names agree with the program: every setting is one that this
program reads, every port is served, every probe is answered, every queue is there, every reference leads somewhere. Last,
and it runs the CronJob's script to check which run it requests.

It follows kustomize only as far as these files go. Where kubectl is installed, what it makes of the example is checked, too.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kubernetes_validate
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The oldest with everything that is used here (a CronJob's time zone, the label with a Job's name), and the newest known.
VERSIONS = ["1.28", "1.37"]
# Provided by the user, as base/kustomization.yaml says; those of PostgreSQL by the pods that use them.
DATABASE = {"etl-migrate": "etl-postgres-migrate", "etl-loader": "etl-postgres-loader", "etl-daily": "etl-postgres-command"}
SECRETS = {name: {"url"} for name in ("etl-rabbitmq", *DATABASE.values())}
# What a pod with these variables connects to, by TCP.
REACHES = {"ETL_AMQP_URL": {5671, 5672}, "ETL_DATABASE_URL": {5432}, "AWS_REGION": {443, 80}}
# Not settings of this project: the AWS SDK's, that of the script in daily.yaml, and what `extractor rds-token` has from libpq.
FOREIGN = {"AWS_REGION", "JOB_NAME", "PGHOST", "PGUSER"}
# KEDA's scaler for RabbitMQ with protocol amqp ("RabbitMQ Queue" in its documentation).
TRIGGER = {"protocol", "queueName", "mode", "value"}

problems: list[str] = []


def complain(where: str, what: str) -> None:
    problems.append(f"{where}: {what}")


def read(path: str) -> str:
    return (ROOT / path).read_text()


def collect(folder: Path) -> tuple[list[dict], dict[str, set[str]]]:
    """The objects that a kustomization lists, and the keys of the ConfigMaps that it generates."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects, maps = [], {}
    for entry in kustomization.get("resources", []) + kustomization.get("components", []):
        path = (folder / entry).resolve()
        if path.is_dir():
            inner, inner_maps = collect(path)
            objects += inner
            maps |= inner_maps
        else:
            objects += [found for found in yaml.safe_load_all(path.read_text()) if found]
    for generated in kustomization.get("configMapGenerator", []):
        keys = set(generated.get("files", [])) | {pair.split("=", 1)[0] for pair in generated.get("literals", [])}
        for file in generated.get("files", []):
            if not (folder / file).is_file():
                complain(str(folder), f"{file} is not there")
        maps[generated["name"]] = keys
    return objects, maps


def settings_of(program: str) -> set[str]:
    """The variables that a program reads, by the README's table of settings and by the code."""
    known = re.search(r"const KNOWN: &\[&str\] = &\[(.*?)\];", read("common/src/settings.rs"), re.S)
    in_code = {f"ETL_{name.upper()}" for name in re.findall(r'"(\w+)"', known[1])}
    for file in ROOT.glob("*/src/**/*.rs"):
        in_code |= set(re.findall(r'variable\("(ETL_\w+)"\)', file.read_text()))
    services = {"extractor", "transformer", "loader"}
    found = set()
    for name, readers in re.findall(r"^\| `(ETL_\w+)` \| ([^|]+) \|", read("README.md"), re.M):
        readers = {reader.strip() for reader in readers.split(",")}
        if program in readers or "all" in readers or ("services" in readers and program in services):
            found.add(name)
    return found & in_code


def pod_of(found: dict) -> dict | None:
    kind, spec = found["kind"], found.get("spec", {})
    if kind == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec["template"] if kind in ("Deployment", "Job", "CronJob") else None


def check_pod(where: str, template: dict, accounts: set[str], maps: dict[str, set[str]]) -> None:
    pod = template["spec"]
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        complain(where, "it may run as root, or without a seccomp profile")
    user = re.search(r"^USER (\d+):(\d+)$", read("deploy/Dockerfile"), re.M)
    if [str(security.get("runAsUser")), str(security.get("runAsGroup"))] != [user[1], user[2]]:
        complain(where, f"it does not run as the image's user {user[1]}:{user[2]}")
    if pod.get("serviceAccountName") not in accounts:
        complain(where, f"there is no service account {pod.get('serviceAccountName')!r}")
    if pod.get("automountServiceAccountToken") is not False:
        complain(where, "it has a Kubernetes token, which it does not need")
    for volume in pod.get("volumes", []):
        if "emptyDir" in volume:
            continue
        if (name := volume.get("configMap", {}).get("name")) not in maps:
            complain(where, f"the volume {volume['name']} refers to a ConfigMap that does not exist: {name}")
    mounted = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod.get("initContainers", []) + pod["containers"]:
        if strange := {mount["name"] for mount in container.get("volumeMounts", [])} - mounted:
            complain(where, f"{container['name']} mounts volumes that do not exist: {strange}")
        check_container(where, pod, template.get("metadata", {}), container, maps)


def check_container(where: str, pod: dict, metadata: dict, container: dict, maps: dict[str, set[str]]) -> None:
    program = re.sub(r"^.*/etl-|:.*$", "", container["image"]).removeprefix("etl-")
    targets = re.findall(r"^FROM \S+ AS (\w+)$", read("deploy/Dockerfile"), re.M)
    if program not in targets:
        complain(where, f"deploy/Dockerfile has no target {program!r} for the image {container['image']}")
    security = container.get("securityContext", {})
    if (
        security.get("allowPrivilegeEscalation") is not False
        or security.get("readOnlyRootFilesystem") is not True
        or security.get("capabilities") != {"drop": ["ALL"]}
    ):
        complain(where, "its container may do more than it needs")
    resources = container.get("resources", {})
    if set(resources.get("requests", {})) != {"cpu", "memory"} or "memory" not in resources.get("limits", {}):
        complain(where, "its requests and its limit of memory are not set")
    variables = check_variables(where, program, container, maps)
    service = program in ("extractor", "transformer", "loader") and not container.get("args")
    if not service:
        return
    needed = {"ETL_AMQP_URL", "ETL_HTTP_ADDR"} | ({"ETL_DATABASE_URL"} if program == "loader" else set())
    if missing := needed - set(variables):
        complain(where, f"{', '.join(sorted(missing))} is not set")
    check_ports(where, container, metadata, variables.get("ETL_HTTP_ADDR") or "")
    deadline = int((variables.get("ETL_SHUTDOWN_DEADLINE") or "20s").removesuffix("s"))
    if pod.get("terminationGracePeriodSeconds", 30) <= deadline:
        complain(where, f"it is killed before its shutdown deadline of {deadline} s")


def check_variables(where: str, program: str, container: dict, maps: dict[str, set[str]]) -> dict[str, str | None]:
    """Every variable is a setting of the program, and every reference leads somewhere. Returns the values known here."""
    variables: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        for pair in literals().get(name, []):
            variables[pair.split("=", 1)[0]] = pair.split("=", 1)[1]
        if name not in maps:
            complain(where, f"there is no ConfigMap {name}")
    for variable in container.get("env", []):
        variables[variable["name"]] = variable.get("value")
        source = variable.get("valueFrom", {})
        if secret := source.get("secretKeyRef"):
            if secret["key"] not in SECRETS.get(secret["name"], set()):
                complain(where, f"{variable['name']} is of a Secret that base/kustomization.yaml does not name: {secret}")
        if reference := source.get("configMapKeyRef"):
            if reference["key"] not in maps.get(reference["name"], set()):
                complain(where, f"{variable['name']} refers to a ConfigMap that does not exist: {reference}")
    for name in sorted(set(variables) - settings_of(program) - FOREIGN):
        complain(where, f"{program} does not read {name}, by the README and common/src/settings.rs")
    if "AWS_REGION" in variables and "AWS_REGION" not in read("extractor/src/aws.rs"):
        complain(where, "the extractor does not know AWS_REGION any more")
    return variables


def check_database(where: str, name: str, pod: dict) -> None:
    """Each pod has the role of its own part, and the Job gives those roles their privileges."""
    variables = [one for container in pod["containers"] for one in container.get("env", [])]
    secrets = [one["valueFrom"]["secretKeyRef"]["name"] for one in variables if one["name"] == "ETL_DATABASE_URL"]
    if secrets != [secret for pod, secret in DATABASE.items() if pod == name]:
        complain(where, f"it uses the Secrets {secrets}, and not {DATABASE.get(name)}")
    roles = {arg for container in pod["containers"] for arg in container.get("args", []) if arg.startswith("etl_")}
    created = set(re.findall(r"'(etl_\w+)'", read("deploy/postgres/roles.sql")))
    if name == "etl-migrate" and roles != created - {"etl_migrate"}:
        complain(where, f"it gives privileges to {sorted(roles)}; deploy/postgres/roles.sql creates {sorted(created)}")


def check_network(where: str, template: dict, policies: list[dict]) -> None:
    """What the NetworkPolicies let a pod connect to is what it needs, and only a namespace that they name gets in."""
    # As the kustomization adds it.
    labels = template["metadata"]["labels"] | {"app.kubernetes.io/part-of": "etl"}

    def selects(selector: dict) -> bool:
        is_in = [labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])]
        return selector.get("matchLabels", {}).items() <= labels.items() and all(is_in)

    mine = [policy for policy in policies if selects(policy["podSelector"])]
    if {kind for policy in mine for kind in policy["policyTypes"]} != {"Ingress", "Egress"}:
        complain(where, "no NetworkPolicy keeps others out")
    containers = template["spec"].get("initContainers", []) + template["spec"]["containers"]
    variables = {one["name"] for container in containers for one in container.get("env", [])}
    needed = {53}.union(*(REACHES[name] for name in variables & set(REACHES)))
    open_ports = {port["port"] for policy in mine for rule in policy.get("egress", []) for port in rule["ports"]}
    if open_ports != needed:
        complain(where, f"it may connect to the ports {sorted(open_ports)}, and needs {sorted(needed)}")
    served = {port["containerPort"] for container in containers for port in container.get("ports", [])}
    for rule in [rule for policy in mine for rule in policy.get("ingress", [])]:
        if not rule.get("from") or (served and {port["port"] for port in rule["ports"]} != served):
            complain(where, f"its ingress is open, or for other ports than {sorted(served)}")


def literals() -> dict[str, list[str]]:
    found = {}
    for file in HERE.glob("*/kustomization.yaml"):
        for generated in yaml.safe_load(file.read_text()).get("configMapGenerator", []):
            found[generated["name"]] = generated.get("literals", [])
    return found


def check_ports(where: str, container: dict, metadata: dict, address: str) -> None:
    """The port is that of the service, and the probes use it by name with the paths that it serves."""
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    if list(ports.values()) != [int(address.rpartition(":")[2] or 0)]:
        complain(where, f"its ports are {ports}, but ETL_HTTP_ADDR is {address!r}")
    served = set(re.findall(r'\.route\(\s*"(/\w+)"', read("common/src/lifecycle.rs")))
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        asked = container.get(probe, {}).get("httpGet", {})
        if asked.get("port") not in ports or asked.get("path") != path or path not in served:
            complain(where, f"its {probe} requests {asked} instead of {path} on the port http")
    annotations = metadata.get("annotations", {})
    scraped = [annotations.get(f"prometheus.io/{key}") for key in ("port", "path")]
    if scraped != [str(ports.get("http")), "/metrics"] or "/metrics" not in served:
        complain(where, f"Prometheus would scrape {scraped}")


def check_keda(where: str, found: dict, deployments: set[str], authentications: set[str]) -> None:
    spec = found["spec"]
    allowed = {"scaleTargetRef", "pollingInterval", "minReplicaCount", "maxReplicaCount", "advanced", "triggers"}
    if unknown := set(spec) - allowed:
        complain(where, f"unknown to this check: {', '.join(sorted(unknown))}")
    if spec["scaleTargetRef"] != {"name": found["metadata"]["name"]} or spec["scaleTargetRef"]["name"] not in deployments:
        complain(where, f"it scales {spec['scaleTargetRef']}, which is not the Deployment of its name")
    if not 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]:
        complain(where, "its minimum or maximum number of replicas is wrong")
    queues = set(re.findall(r'=> "(etl\.[\w.]+)"', read("common/src/message/queue_name.rs")))
    for trigger in spec["triggers"]:
        metadata = trigger["metadata"]
        if trigger["type"] != "rabbitmq" or set(metadata) != TRIGGER:
            complain(where, f"the trigger has unknown or missing fields: {trigger}")
        elif metadata["queueName"] not in queues:
            complain(where, f"there is no queue {metadata['queueName']}, only {', '.join(sorted(queues))}")
        elif (metadata["protocol"], metadata["mode"]) != ("amqp", "QueueLength") or not float(metadata["value"]) > 0:
            complain(where, f"KEDA would refuse {metadata}")
        if any(not isinstance(value, str) for value in metadata.values()):
            complain(where, "the metadata of a trigger are texts; put numbers in quotes")
        if trigger["authenticationRef"]["name"] not in authentications:
            complain(where, f"there is no TriggerAuthentication {trigger['authenticationRef']}")


def check_objects(objects: list[dict], maps: dict[str, set[str]], what: str) -> None:
    names = lambda kind: {found["metadata"]["name"] for found in objects if found["kind"] == kind}  # noqa: E731
    for found in objects:
        where = f"{what}: {found['kind']} {found['metadata']['name']}"
        if found["apiVersion"].startswith("keda.sh/"):
            if found["kind"] == "ScaledObject":
                check_keda(where, found, names("Deployment"), names("TriggerAuthentication"))
            else:
                for reference in found["spec"]["secretTargetRef"]:
                    if reference["key"] not in SECRETS.get(reference["name"], set()) or reference["parameter"] != "host":
                        complain(where, f"a reference that leads nowhere: {reference}")
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                complain(where, f"Kubernetes {version} would refuse it: {error.message} at {list(error.path)}")
        if template := pod_of(found):
            check_pod(where, template, names("ServiceAccount"), maps)
            check_database(where, found["metadata"]["name"], template["spec"])
            check_network(where, template, [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"])
    budgets = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "PodDisruptionBudget"}
    for found in objects:
        if found["kind"] == "Deployment":
            name = found["metadata"]["name"]
            wanted = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": found["spec"]["selector"]}
            if budgets.get(name) != wanted:
                complain(f"{what}: {name}", f"its PodDisruptionBudget is {budgets.get(name)}")


def check_jobs(maps: dict[str, set[str]]) -> None:
    there = {file.name for file in (ROOT / "jobs").iterdir() if file.suffix in (".toml", ".sql")}
    if maps.get("etl-jobs") != there:
        complain("jobs/kustomization.yaml", f"it lists {sorted(maps.get('etl-jobs', set()))}, the folder has {sorted(there)}")


def check_daily(objects: list[dict]) -> None:
    """Runs the CronJob's script with a fake etl that prints its arguments."""
    pod = next(pod_of(found) for found in objects if found["kind"] == "CronJob")["spec"]
    container = pod["containers"][0]
    # 2026-11-24T03:00Z: the requested day is the 23rd, however late the pod starts.
    minutes = 1795489200 // 60
    with tempfile.TemporaryDirectory() as folder:
        fake = Path(folder) / "etl"
        fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        fake.chmod(0o755)
        for job, day in ((f"etl-daily-{minutes}", "2026-11-23"), ("by-hand", None), ("again-2", None)):
            ran = subprocess.run(
                [*container["command"], *container["args"]],
                env={"PATH": f"{folder}:/usr/bin:/bin", "JOB_NAME": job}, capture_output=True, text=True,
            )
            asked = ran.stdout.split("\n")[:-1]
            day = day or asked[3].removeprefix("from=")
            wanted = ["run", "most_visited_url", "--set", f"from={day}", "--set", f"to={day}"]
            wanted += ["--run-id", f"most_visited_url-{day}", "--retry", "--follow"]
            if ran.returncode or asked != wanted or not re.fullmatch(r"20[0-9-]{8}", day):
                complain("CronJob etl-daily", f"as {job} it requests {asked} {ran.stderr}")


def merge(base: object, patch: object) -> object:
    """A strategic merge: the entries of a list are the same when their names are."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merge(base[key], value) if key in base else value for key, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and all(isinstance(one, dict) for one in base + patch):
        key = lambda one: one.get("mountPath") or one["name"]  # noqa: E731
        merged = {key(one): one for one in base}
        for one in patch:
            merged[key(one)] = merge(merged.get(key(one), {}), one)
        return list(merged.values())
    return patch


def check_rds(objects: list[dict], maps: dict[str, set[str]]) -> None:
    """The component rds-iam: its patches fit the base, and its script writes the file that the program reads."""
    folder = HERE / "rds-iam"
    # Of the overlay, as kustomization.yaml says.
    own_maps = {"etl-rds": {"host", "migrate-user", "loader-user", "command-user"}}
    objects = objects + [found for file in ["network.yaml"] for found in yaml.safe_load_all((folder / file).read_text())]
    patches = yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]
    patches = [yaml.safe_load((folder / patch["path"]).read_text()) for patch in patches]
    identity = lambda found: (found["kind"], found["metadata"]["name"])  # noqa: E731
    by_identity = {identity(found): found for found in objects}
    for patch in patches:
        if identity(patch) not in by_identity:
            complain("rds-iam", f"there is no {identity(patch)} to patch")
            continue
        by_identity[identity(patch)] = merge(by_identity[identity(patch)], patch)
        pod = pod_of(patch)["spec"]
        check_token_script(f"rds-iam: {identity(patch)}", pod["initContainers"][0], pod["containers"][0])
    check_objects(list(by_identity.values()), maps | own_maps, "rds-iam")


def check_token_script(where: str, sidecar: dict, program: dict) -> None:
    """Runs the sidecar's script with a fake extractor, which fails first, until the program's file is there."""
    (path,) = [one["value"] for one in program["env"] if one["name"] == "ETL_DATABASE_PASSWORD_FILE"]
    with tempfile.TemporaryDirectory() as folder:
        script = sidecar["args"][0].replace("/run/etl-password", folder).replace("pause=10\n", "pause=0\n")
        fake = Path(folder) / "extractor"
        fake.write_text(f'#!/bin/sh\n[ "$*" = rds-token ] && [ -e {folder}/tried ] && echo token && exit\n: >{folder}/tried\nexit 1\n')
        fake.chmod(0o755)
        ran = subprocess.Popen([*sidecar["command"], script], env={"PATH": f"{folder}:/usr/bin:/bin"}, start_new_session=True)
        file = Path(path.replace("/run/etl-password", folder))
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not file.exists() or file.read_text() != "token\n" or file.stat().st_mode & 0o077:
            complain(where, f"its script does not write {path}, for its own user alone")
        if sidecar["startupProbe"]["exec"]["command"] != ["test", "-s", path]:
            complain(where, f"the program does not wait for {path}")
        ran.terminate()
        if ran.wait(60) != 0:
            complain(where, "its script does not end by SIGTERM")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)  # the sleep that is left


def main() -> None:
    objects, maps = collect(HERE / "example")
    check_objects(objects, maps, "manifest")
    check_jobs(maps)
    check_daily(objects)
    check_rds(objects, maps)
    rendered = 0
    if kubectl := shutil.which("kubectl"):
        ran = subprocess.run([kubectl, "kustomize", str(HERE / "example")], capture_output=True, text=True)
        if ran.returncode:
            complain("kubectl kustomize", ran.stderr)
        else:
            made = list(yaml.safe_load_all(ran.stdout))
            made_maps = {f["metadata"]["name"]: set(f["data"]) for f in made if f["kind"] == "ConfigMap"}
            # Of its ConfigMaps, only the names are checked again.
            check_objects(made, made_maps, "rendered")
            rendered = len(made)
    if problems:
        sys.exit("kubernetes/check.py:\n  " + "\n  ".join(problems))
    print(
        f"kubernetes/check.py: {len(objects)} objects are valid in Kubernetes {' and '.join(VERSIONS)}"
        + (f", and so are the {rendered} that kubectl makes of them" if rendered else "; no kubectl here to render them")
    )


if __name__ == "__main__":
    main()
