"""HAProxy's file and its servers, and that Serve's controller starts ours. `tests/parts/test_haproxy.py` runs it."""

import pytest
import ray
from ray._common.utils import import_attr
from ray.serve._private import controller, haproxy
from ray.serve._private.application_state import ApplicationState, ApplicationStateManager

from deployments.host import proxy
from deployments.host.environment import SERVING

FILE = """backend one
    option httpchk GET /-/healthz
    default-server fastinter 250ms fall 2 inter 5s check
    server a 127.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down
    server back 127.0.0.1:8500 check backup
backend two
    server a 127.0.0.1:30001"""


def test_the_servers_of_a_file_with_what_add_server_needs() -> None:
    file, servers = proxy.split(FILE)
    assert servers == {
        ("one", "a"): "127.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down fastinter 250ms fall 2 inter 5s",
        ("one", "back"): "127.0.0.1:8500 check backup fastinter 250ms fall 2 inter 5s",
        ("two", "a"): "127.0.0.1:30001",
    }
    assert "server a" not in file
    assert proxy.split(FILE.replace("30000", "30002").replace("server back", "server other"))[0] == file
    assert proxy.split(FILE.replace("5s", "6s"))[0] != file


@pytest.mark.parametrize(
    ("line", "leaves"),
    [
        ("4 one 1 a 127.0.0.1 2 0 1 1 12 6 3 4 6 0 0 0 - 30000 - 0 0 - - 0", False),
        ("4 one 2 b 127.0.0.1 0 1 1 1 12 1 0 0 14 0 0 0 - 30001 - 0 0 - - 0", True),
        ("1", False),
    ],
)
def test_which_servers_a_new_haproxy_is_not_told_of(line: str, leaves: bool) -> None:
    assert proxy._in_maintenance(line.split()) is leaves


def test_another_version_of_serves_template_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "use_backend successor if { stopping }" in proxy.template()
    monkeypatch.setattr(haproxy, "HAPROXY_CONFIG_TEMPLATE", "frontend http_frontend")
    with pytest.raises(ValueError, match=r"not that of Ray 2\.60\.0"):
        proxy.template()


def test_an_application_keeps_its_ingresses_while_it_is_built_anew() -> None:
    manager = object.__new__(ApplicationStateManager)
    app = object.__new__(ApplicationState)
    manager._application_states = {"default": app}
    for name, found in ((None, None), ("Ingress", "Ingress"), (None, "Ingress"), ("Other", "Other"), (None, "Other")):
        app._ingress_deployment_name = name
        assert proxy.ingress_deployment(manager, "default") == found
    manager._application_states = {"default": object.__new__(ApplicationState)}
    manager._application_states["default"]._ingress_deployment_name = None
    assert proxy.ingress_deployment(manager, "default") is None, "another application of that name"
    assert proxy.ingress_deployment(manager, "none") is None


def test_serves_controller_starts_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = controller.HAProxyManager
    monkeypatch.setattr(controller, "HAProxyManager", theirs)
    monkeypatch.setattr(ApplicationStateManager, "get_ingress_deployment_name", ApplicationStateManager.get_ingress_deployment_name)
    import_attr(SERVING["RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH"])()
    ours = controller.HAProxyManager
    assert ours is not theirs
    assert isinstance(ours, ray.actor.ActorClass)
    assert ApplicationStateManager.get_ingress_deployment_name is proxy.ingress_deployment
    assert issubclass(proxy.Manager, theirs.__ray_metadata__.modified_class.__ray_actor_class__)
