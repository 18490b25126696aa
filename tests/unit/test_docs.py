"""The documents are true: their links lead somewhere, their commands run, and what they name exists."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from deployments import engine_arguments, settings
from deployments.autoscaling.policy import Reason
from deployments.errors import CODES
from deployments.observability import metrics
from deployments.settings import Settings
from tests.support.documents import Document, documents, walk
from tests.support.paths import ROOT

README_BYTES = 12_000
HISTORY = {"CHANGELOG.md", "dev/LOG.md"}
"""They tell of what was: names in them may be old ones. Their links hold."""
WITHOUT_LINKS = {"CHANGELOG.md", "dev/LOG.md", "findings/README.md", "models/nano/README.md", "models/recipe/card.md"}
TEMPLATES = {"models/recipe/card.md"}
ROOMS = ["deployments", "cluster", *(f"cluster/{name}" for name in "bench check evaluate plan simulate".split())]
ROOMS += ["monitoring", "models", "ui"]
NOT_OURS = {"config.json", "environment.sh", "keys.yaml", "first.json", "second.json"}
"""Files that documents name and that are not the repository's."""
SUFFIXES = {".py", ".yaml", ".yml", ".json", ".sh", ".js", ".md", ".toml", ".txt", ".png"}
OF_REQUESTS = {"coat.vote", "coat.eta_s"}
"""Fields of requests whose names look like settings."""
OF_PRESETS = {"preset", "model", "served_model_name"}

DOCUMENTS = documents()
TRUE_NOW = [document for document in DOCUMENTS if document.name not in HISTORY]
LISTING = [document for document in DOCUMENTS if document.listed]
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"simulation"}
COMMAND = re.compile(r"(?:python3?|\$\(RUN\)) -m ((?:deployments|cluster|models|monitoring|ui|tests)(?:\.\w+)*)([^\n#`]*)")
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(TOP)})/[\w./-]+\.(?:{'|'.join(suffix[1:] for suffix in SUFFIXES)}))\b")
MAKE = re.compile(r"\bmake(?: [A-Z]+=\S+)* ([\w.][\w./-]*)(?: ARGS=(\"[^\"]*\"|\S+))?")
SETTING = rf"(?:{'|'.join(Settings.model_fields.keys() - OF_PRESETS)})(?:\.\w+)+"
ASSIGNED = re.compile(rf"(?<![\w./-])({SETTING}|{'|'.join(OF_PRESETS)})=([^\s\"'`|,;)]+)")


def named(document: Document) -> str:
    return document.name


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_there_are_documents() -> None:
    names = {document.name for document in DOCUMENTS}
    assert names >= {"README.md", "CONTRIBUTING.md", "docs/settings.md", "docs/api.md"} | HISTORY | WITHOUT_LINKS | TEMPLATES
    assert names >= {f"{room}/README.md" for room in ROOMS}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def local(document: Document) -> list[tuple[str, Path, str]]:
    """Return the links of a document within the repository: as written, the path and the anchor."""
    parts = [(link, *link.partition("#")[::2]) for link in document.links if not re.match(r"https?:", link)]
    return [(link, (document.path.parent / path).resolve() if path else document.path, anchor) for link, path, anchor in parts]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Document) -> None:
    anchors = {other.path: other.anchors for other in DOCUMENTS}
    assert document.links or document.name in WITHOUT_LINKS
    assert [link for link, path, _ in local(document) if not path.exists() or not path.is_relative_to(ROOT)] == []
    assert [link for link, path, anchor in local(document) if anchor and anchor not in anchors.get(path, ())] == []


def test_the_readme_leads_to_every_document() -> None:
    links = {document.path: {path for _, path, _ in local(document)} for document in DOCUMENTS}
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {path for one in new for path in links.get(one, ())} - reached
    assert {document.name for document in DOCUMENTS if document.path not in reached} == TEMPLATES


def source(module: str) -> Path:
    """Return the file that `python -m MODULE` runs; it may not exist."""
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def runs(module: str) -> bool:
    """Return whether `python -m MODULE` does anything."""
    path = source(module)
    return path.exists() and (path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text())


def run_by_make() -> dict[str, str]:
    """Return which module each of make's targets runs, of those that take ARGS."""
    found, target = {}, ""
    for line in text("Makefile").splitlines():
        target = heading[1] if (heading := re.match(r"(\w+):", line)) else target
        if "$(ARGS)" in line and (command := COMMAND.search(line)):
            found[target] = command[1]
    return found


def commands() -> dict[str, set[str]]:
    """Return the modules that documents say to run, with the options that they give."""
    of_make, found = run_by_make(), dict[str, set[str]]()
    for line in (line for document in TRUE_NOW for line in document.code):
        given = COMMAND.findall(line) + [(of_make[target], words) for target, words in MAKE.findall(line) if target in of_make]
        for module, words in given:
            found.setdefault(module, set()).update(re.findall(r"--[a-z][a-z-]*", words))
    return found


COMMANDS = commands()


# Runs each module as `python -m MODULE --help` does, in one process: by themselves, they would import torch and vLLM a dozen times.
ASK_ALL = """
import contextlib, io, json, runpy, sys, traceback

said = {}
for module in sys.argv[1:]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv[:] = [module, "--help"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    said[module] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str, str]]:
    """The status, output and errors of each command that is asked for help."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_ALL, *filter(runs, COMMANDS)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {module: (code, out, err) for module, (code, out, err) in json.loads(done.stdout.splitlines()[-1]).items()}


def test_documents_say_how_to_run_things() -> None:
    assert COMMANDS.keys() >= {"cluster.bench", "cluster.simulate.compare", "deployments.access", "monitoring.report", "ui"}
    assert "--measuring" in COMMANDS["cluster.bench"], "given by way of make"


@pytest.mark.timeout(600)  # the first one waits for all commands
@pytest.mark.parametrize("module", COMMANDS)
def test_commands_run_and_have_the_options_they_are_given(module: str, helped: dict[str, tuple[int, str, str]]) -> None:
    assert runs(module)
    code, out, err = helped[module]
    assert code == 0, err
    assert out.startswith("usage: ")
    assert {option for option in COMMANDS[module] - {"--help"} if f'"{option}"' not in source(module).read_text()} == set()


def told_by_files(pattern: re.Pattern[str]) -> set[tuple[str, str]]:
    """Return the first group of what matches in the repository's files, each with the file; history is left out."""
    files = [path for path in walk() if path.suffix in SUFFIXES - {".png"} or path.name in ("Makefile", "Dockerfile")]
    found = {(str(path.relative_to(ROOT)), match[1]) for path in files for match in pattern.finditer(path.read_text())}
    return {(file, word) for file, word in found if file not in HISTORY}


def test_modules_that_any_file_says_to_run_can_be_run() -> None:
    told = told_by_files(COMMAND)
    assert len(told) > 30
    assert [(file, module) for file, module in sorted(told) if not runs(module)] == []


def test_paths_that_any_file_names_exist() -> None:
    told = told_by_files(PATH)
    assert len(told) > 30
    assert [(file, path) for file, path in sorted(told) if not (ROOT / path).exists() and not Path(path).stem.isupper()] == []


def test_targets_of_make_exist() -> None:
    known: set[str] = set()
    for extra in ("cpu", "gpu"):
        told = subprocess.run(["make", "-pqr", f"EXTRA={extra}"], cwd=ROOT, capture_output=True, text=True).stdout
        known.update(re.findall(r"^([^\s#:=%]+):(?!=)", told, re.MULTILINE))
    asked = {target for document in TRUE_NOW for line in document.code for target, _ in MAKE.findall(line)}
    assert asked >= {"serve", "test", "bench", "chaos"}
    assert asked - known == set()


def defaults(section: type[BaseModel] = Settings, before: str = "") -> dict[str, Any]:
    """Return all settings of ours by their paths, with their defaults."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= defaults(field.annotation, f"{name}.")
        elif name not in ("engine", "api"):
            found[before + name] = None if before + name in OF_PRESETS else field.default
    return found


def test_each_setting_is_documented_with_its_default() -> None:
    table = re.findall(r"^\| `([\w.]+)` \| (?:`(.+?)`|none|–) \| ", text("docs/settings.md"), re.MULTILINE)
    assert {name: yaml.safe_load(default) for name, default in table} == defaults()


@pytest.mark.parametrize("document", TRUE_NOW, ids=named)
def test_settings_exist_and_take_the_values_given(document: Document) -> None:
    catalogue, ours = engine_arguments._catalogue(), defaults()
    for span in document.inline:
        if re.fullmatch(SETTING, span) and span not in OF_REQUESTS and Path(span).suffix not in SUFFIXES:
            section, _, name = span.partition(".")
            assert name in catalogue[section] if section in catalogue else span in ours, span
    for line in document.code:
        given = {name: value for name, value in ASSIGNED.findall(line) if name != "access.keys"}  # of a file that is not here
        if given.keys() - OF_PRESETS:
            settings.load({"preset": "satori-7b-4090"} | given)


def is_path(word: str) -> bool:
    """Whether a word in code is meant as a path of the repository."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)*/?", word):
        return False
    first, slash, _ = word.partition("/")
    return (slash and first in TOP) or (Path(word).suffix in SUFFIXES and word not in NOT_OURS)


@pytest.mark.parametrize("document", TRUE_NOW, ids=named)
def test_paths_exist(document: Document) -> None:
    in_blocks = {word for _, block in document.blocks for word in block.split() if "/" in word and word.split("/")[0] in TOP}
    paths = [word for word in {*document.inline, *in_blocks} if is_path(word)]
    assert [path for path in paths if not (ROOT / path).exists() and not (document.path.parent / path).exists()] == []


def test_rooms_list_their_files() -> None:
    assert {document.name for document in LISTING} == {"README.md", *(f"{room}/README.md" for room in ROOMS)}


@pytest.mark.parametrize("document", LISTING, ids=named)
def test_files_listed_are_those_there_are(document: Document) -> None:
    room = document.path.parent
    assert [path for path in document.listed if (room / path).is_dir() != path.endswith("/") or not (room / path).exists()] == []
    if room == ROOT:
        assert {f"{name}/" for name in TOP} <= document.listed
        return
    others = [ROOT / other for other in ROOMS if (ROOT / other).is_relative_to(room) and ROOT / other != room]
    modules = [path for path in walk(room) if path.suffix == ".py" and path.name != "__init__.py"]
    ours = [path for path in modules if not any(path.is_relative_to(other) for other in others)]
    assert [str(path.relative_to(room)) for path in ours if str(path.relative_to(room)) not in document.listed] == []


def first_column(name: str) -> set[str]:
    """Return the names that begin the rows of a document's tables."""
    cells = re.findall(r"^\| (`[\w-]+`(?:, `[\w-]+`)*) \|", text(name), re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"[\w-]+", cell)}


def test_reasons_codes_and_presets_are_those_there_are() -> None:
    assert first_column("docs/autoscaling.md") == {str(reason) for reason in Reason}
    assert first_column("docs/api.md") >= CODES
    assert {word for word in first_column("docs/settings.md") if "-" in word} == set(settings.presets())


def test_metrics_exist() -> None:
    told = {word for document in TRUE_NOW for span in document.inline for word in re.findall(r"\bsatori_[a-z_]+\b", span)}
    assert "satori_refusals_total" in told
    assert told - {metric.name for metric in metrics.ALL} == set()
