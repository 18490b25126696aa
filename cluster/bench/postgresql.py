"""A PostgreSQL server for a test or a bench: its own folder, on a Unix socket alone."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

USER = "nobody"
"""Who runs it where the caller is root: PostgreSQL refuses to be."""


def folder_of_programs() -> Path | None:
    """Return where its programs are. Debian has them in no folder of PATH."""
    found = shutil.which("initdb")
    return Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class PostgreSQL:
    """A server, once it is started. `binaries` is where its programs are."""

    def __init__(self, binaries: Path) -> None:
        self._binaries, self.folder = binaries, Path(tempfile.mkdtemp(prefix="postgresql-"))
        self._as: dict[str, str] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": USER}
        self._run("initdb", "--username=satori", "--auth=trust", "--no-sync", "-D", str(self.folder / "data"))
        self.url = f"postgresql://satori@/postgres?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._as)  # type: ignore[call-overload]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-k {self.folder} -c listen_addresses="
        self._run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def close(self) -> None:
        """Stop it, and remove all of it."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)
