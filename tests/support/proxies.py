"""The proxies that people put in front: real ones with TLS, on a port of this machine."""

import contextlib
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.programs import require
from tests.support.until import until

NGINX = """
{user}
pid {folder}/nginx.pid;
error_log stderr;
daemon off;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
CADDY = """{{
    admin off
    auto_https disable_redirects
    local_certs
    skip_install_trust
    storage file_system {folder}/storage
}}
"""
SIMPLE_CADDY = """
chat.example.com {
    encode gzip
    reverse_proxy 127.0.0.1:8000
}
"""
"""What somebody writes who has read nothing of ours."""
PREFIX = "/satori"
NGINX_BELOW = {
    "location / {": "location /satori/ {",
    "\n        proxy_pass http://127.0.0.1:8000;": "",
    "# proxy_pass http://127.0.0.1:8000/;": "proxy_pass http://127.0.0.1:8000/;",
    "# proxy_set_header X-Forwarded-Prefix": "proxy_set_header X-Forwarded-Prefix",
}
CADDY_BELOW = {
    "\treverse_proxy 127.0.0.1:8000 {": "\thandle_path /satori/* {\n\treverse_proxy 127.0.0.1:8000 {",
    "# header_up": "header_up",
    "\n\t}\n}": "\n\t}\n\t}\n}",
}
"""What they say of a path, done."""
DOCUMENTED = ("nginx", "caddy")
"""Those that docs/proxies configures."""
PROXIES = (*DOCUMENTED, "simple caddy")


def replaced(text: str, **changes: str) -> str:
    """Return a text with each of these replaced by its value. Raises AssertionError where it has none."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def _nginx(folder: Path, port: int, behind: str, below: bool) -> list[str]:
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    certificate += ["-subj", "/CN=localhost", "-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    subprocess.run(certificate, check=True, capture_output=True)
    changes = {
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/ssl/chat.example.com.pem": str(folder / "certificate"),
        "/etc/ssl/chat.example.com.key": str(folder / "key"),
        "server_name chat.example.com": "server_name localhost",
        "127.0.0.1:8000": behind,
    }
    site = (ROOT / "docs/proxies/nginx.conf").read_text()
    if below:
        site = replaced(site, **NGINX_BELOW)
    (folder / "site.conf").write_text(replaced(site, **changes))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user="" if os.getuid() else "user root;"))
    return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def _caddy(folder: Path, port: int, behind: str, below: bool, site: str | None = None) -> list[str]:
    changes = {"\nchat.example.com ": f"\nhttps://localhost:{port} ", "127.0.0.1:8000": behind}
    site = site or (ROOT / "docs/proxies/Caddyfile").read_text()
    site = replaced(replaced(site, **CADDY_BELOW) if below else site, **changes)
    (folder / "Caddyfile").write_text(CADDY.format(folder=folder) + site)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def _simple_caddy(folder: Path, port: int, behind: str, below: bool) -> list[str]:
    return _caddy(folder, port, behind, below, SIMPLE_CADDY)


def _answers(port: int) -> bool:
    """Return whether there is TLS on a port. Caddy listens before it has made its certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain, server_hostname="localhost"):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def in_front(name: str, folder: Path, behind: str, below: bool = False) -> Iterator[str]:
    """Run one of `PROXIES` in front of the address `behind`; yield the URL of what is there. Skips where the program is not here.

    With `below`, it is below the path `PREFIX`, as docs/proxies says.
    """
    require(name.rpartition(" ")[2], *(["openssl"] if name == "nginx" else []))
    (port,) = free_ports(1)
    command = {"nginx": _nginx, "caddy": _caddy, "simple caddy": _simple_caddy}[name](folder, port, behind, below)
    home = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, env=home, stdout=output, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or _answers(port), f"{name} answers")
            output.seek(0)
            assert process.poll() is None, output.read()
            yield f"https://localhost:{port}{PREFIX * below}"
        finally:
            process.terminate()
            process.wait(30)
