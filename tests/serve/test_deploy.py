"""The recipes of docs/deploy.md are true: their options exist, their ports and paths agree, and what can be run is run.

nginx and systemd-analyze are used where they are installed; the schemas of Kubernetes where `kubernetes-validate` is.
"""

from __future__ import annotations

import http.client
import io
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from qalign_fast.cli.app import make_app as make_command
from qalign_fast.serve import ray_serve
from qalign_fast.serve.app import make_app
from qalign_fast.serve.settings import Settings
from support.goldens import ROOT
from support.pictures import random_picture
from support.servers import free_port, running_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own models
TEXT = (ROOT / "docs/deploy.md").read_text("utf-8")
IMAGE = (ROOT / "docs/Containerfile.serve").read_text("utf-8")
LAST = 10  # seconds that a server needs after its grace period, at most
VARIABLE = re.compile(r"\bQALIGN_[A-Z_]+")
GONE = '{"error": "the server cannot be reached", "error_type": "Unhealthy"}'


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


@cache
def command() -> Any:
    group = typer.main.get_command(make_command(["serve"]))
    return group.commands["serve"]  # type: ignore[attr-defined]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command makes of its arguments. Raises for an option that it does not have."""
    return dict(command().make_context("serve", list(arguments)).params)


def routes() -> set[str]:
    return set(make_app(Settings()).openapi()["paths"]) | {"/metrics"}


def objects() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with Ray")
    return [each for block in blocks("yaml") for each in yaml.safe_load_all(block)]


def of_kind(kind: str) -> dict[str, Any]:
    [found] = [each for each in objects() if each.get("kind") == kind]
    return found


def pods() -> list[dict[str, Any]]:
    """The specifications of pods: the Deployment's and KServe's."""
    return [of_kind("Deployment")["spec"]["template"]["spec"], of_kind("InferenceService")["spec"]["predictor"]]


def test_every_variable_is_one_of_the_server() -> None:
    known = {parameter.envvar for parameter in command().params}
    assert {name for name in VARIABLE.findall(TEXT + IMAGE) if name not in known} == set()


def test_every_option_that_is_named_is_one_of_the_server() -> None:
    known = {option for parameter in command().params for option in parameter.opts}
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert {option for option in re.findall(r"`(--[a-z-]+)", prose) if option not in known} == set()


def unit() -> ConfigParser:
    [text] = blocks("ini")
    found = ConfigParser(strict=False, interpolation=None, comment_prefixes="#")
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(text)
    return found


def test_systemd_starts_the_server_and_waits_longer_for_its_end_than_it_takes() -> None:
    service = unit()["Service"]
    program, name, *arguments = service["ExecStart"].split()
    assert (Path(program).name, name) == ("qalign-fast", "serve")
    assert float(service["TimeoutStopSec"]) > parsed(arguments)["grace"] + LAST
    assert service["KillMode"] == "mixed"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    [text] = blocks("ini")
    path = tmp_path / "qalign-fast.service"
    path.write_text(text.replace("/opt/qalign-fast/bin/qalign-fast", sys.executable))
    run = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    if "Failed to" in run.stderr and path.name not in run.stderr:
        pytest.skip(run.stderr.splitlines()[0])
    assert (run.returncode, run.stderr) == (0, "")


def test_containers_ask_for_what_the_server_has() -> None:
    for pod in pods():
        [container] = pod["containers"]
        options = parsed(container["args"])
        assert options["host"] == "0.0.0.0"  # else no probe reaches it
        [port] = container["ports"]
        assert port["containerPort"] == options["port"]
        for probe in (container[name] for name in container if name.endswith("Probe")):
            assert probe["httpGet"]["path"] in routes()
            assert probe["httpGet"]["port"] in (port["name"], port["containerPort"])
        assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
        assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] > sleep + options["grace"] + LAST


def test_kubernetes_objects_belong_together() -> None:
    deployment, service = of_kind("Deployment"), of_kind("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    [port] = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert service["spec"]["selector"] == labels
    assert [each["targetPort"] for each in service["spec"]["ports"]] == [port["name"]]
    monitor = of_kind("PodMonitor")["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert [(each["port"], each["path"]) for each in monitor["podMetricsEndpoints"]] == [(port["name"], "/metrics")]
    scaler = of_kind("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    metrics = make_app(Settings()).state.service.metrics
    metrics.of_model("m", {"family": "", "precision": "", "engine": ""})
    assert f"# TYPE {scaler['metrics'][0]['pods']['metric']['name']} gauge".encode() in metrics.text()


def test_kserve_finds_the_model_by_the_services_name() -> None:
    service = of_kind("InferenceService")
    [container] = service["spec"]["predictor"]["containers"]
    options = parsed(container["args"])
    assert container["name"] == "kserve-container"
    assert options["name"] == [f"{service['metadata']['name']}=/mnt/models"]
    assert f"/v2/models/{service['metadata']['name']}/infer" in TEXT
    assert "/v2/models/{model}/infer" in routes()


def test_kubernetes_takes_the_objects() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for kind in ("Deployment", "Service", "HorizontalPodAutoscaler"):
        validator.validate(of_kind(kind), validator.latest_version(), strict=True)


def test_ray_takes_the_configuration() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the extra `ray` has it")
    from ray.serve.schema import ServeDeploySchema

    [config] = [each for each in objects() if "applications" in each]
    [application] = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "qalign_fast.serve.ray_serve:app"
    assert application.route_prefix == "/"
    made = ray_serve.app(dict(application.args))
    assert made._bound_deployment.num_replicas == application.args["num_replicas"]
    [shell] = [block for block in blocks("sh") if "serve run" in block]
    given = [word.split("=", 1) for word in shell.splitlines()[0].split() if "=" in word]
    assert ray_serve.app(dict(given))._bound_deployment.ray_actor_options["num_gpus"] == 1


def test_pythons_example_makes_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = pytest.importorskip("ray.serve", reason="Ray is not installed: the extra `ray` has it")
    [code] = blocks("py")
    ran: list[Any] = []
    monkeypatch.setattr(serve, "run", ran.append)
    exec(compile(code, "deploy.md", "exec"), {})
    assert ran[0]._bound_deployment.ray_actor_options["num_gpus"] == 1


def test_the_image_starts_the_server() -> None:
    assert 'ENTRYPOINT ["/app/bin/qalign-fast", "serve"]' in IMAGE
    port = int(re.search(r"QALIGN_PORT=(\d+)", IMAGE)[1])  # type: ignore[index]
    assert f"EXPOSE {port}\n" in IMAGE
    assert "QALIGN_HOST=0.0.0.0" in IMAGE
    assert IMAGE.index("USER 65534") < IMAGE.index("ENTRYPOINT")


def site(upstream: int, port: int, certificate: Path) -> str:
    """The document's text for nginx, at other ports of this machine and without TLS' name."""
    [text] = blocks("nginx")
    for old, new in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};"),
        ("/etc/nginx/tls/scores.pem", f"{certificate}"),
        ("/etc/nginx/tls/scores.key", f"{certificate}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(upstream: int, folder: Path) -> Iterator[int]:
    """nginx before a port of this machine, as the document has it; its own port."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    certificate = make_certificate(folder)
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in places)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{site(upstream, port, certificate)}}}\n"
    )
    arguments = [program, "-p", folder, "-e", folder / "error.log", "-c", config]
    checked = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(arguments)
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def make_certificate(folder: Path) -> Path:
    """A certificate and its key in one file, for the document's lines about TLS."""
    path = folder / "tls.pem"
    made = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=scores.example.org"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run([*made, "-keyout", path, "-out", folder / "crt.pem"], capture_output=True, check=True)
    path.write_text(path.read_text() + (folder / "crt.pem").read_text())
    return path


def wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=20).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.02)


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


KEY = {"authorization": "Bearer sesame"}


def test_nginx_passes_on_what_the_server_says(tmp_path: Path) -> None:
    """A body of 10 MB, the server's refusals, ids; and an answer of the same form where the server is away."""
    large = io.BytesIO()
    random_picture(np.random.default_rng(0), 1920, 1800).save(large, "BMP")
    picture = (ROOT / "samples/coffee.jpg").read_bytes()
    with running_server(environment={"QALIGN_API_KEY": "sesame"}) as server, nginx(server.port, tmp_path) as port:
        assert len(large.getvalue()) > 10_000_000
        assert ask(port, "POST", "/v1/score", large.getvalue(), content_type="image/bmp", **KEY)[0] == 200
        status, headers, text = ask(port, "POST", "/v1/score", picture, content_type="image/jpeg", **KEY)
        assert (status, len(headers["x-request-id"])) == (200, 32)  # nginx has given it
        assert "x-inference-time" in headers
        assert '"error":null' in text
        for answer, expected in (
            (ask(port, "POST", "/v1/score", picture, content_type="image/jpeg"), 401),
            (ask(port, "GET", "/nowhere", **KEY), 404),
            (ask(port, "POST", "/v1/score", b"x", content_type="image/png", **KEY), 422),
        ):
            assert (answer[0], answer[2].startswith('{"error"')) == (expected, True)
        assert ask(port, "GET", "/metrics")[0] == 403  # from this address
        too_large = ask(port, "POST", "/v1/score", b"\0" * (66 << 20), content_type="image/png", **KEY)
        assert (too_large[0], too_large[2][:9]) == (413, '{"error":')
        server.stop()
        status, headers, text = ask(port, "GET", "/v1/models", **KEY)
        assert (status, headers["retry-after"], text) == (503, "2", GONE)


def test_nginx_passes_on_rows_one_by_one(tmp_path: Path) -> None:
    """A row is sent when the client has the one before: a proxy that keeps rows back would wait for ever."""
    has_row = threading.Semaphore(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/x-ndjson")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for i in range(4):
                self.wfile.write(b'9\r\n{"i": %d}\n\r\n' % i)
                assert has_row.acquire(timeout=20)
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=upstream.serve_forever)
    thread.start()
    try:
        with nginx(upstream.server_address[1], tmp_path) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/v1/score")
            answer = connection.getresponse()
            for i in range(4):
                assert answer.readline() == b'{"i": %d}\n' % i
                has_row.release()
            assert answer.read() == b""
            connection.close()
    finally:
        upstream.shutdown()
        thread.join()
        upstream.server_close()
