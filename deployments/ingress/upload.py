"""A multipart form with one file, read as it comes: the file's bytes can be taken out while more of them arrive.

python-multipart does the parsing; its own forms, and Starlette's, keep a file in memory or in /tmp.
"""

import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from deployments.errors import OutOfBoundsError

FILE = "file"
FIELDS, FIELD_BYTES, NAME_CHARACTERS = 16, 1024, 255
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a file's name is kept without; PostgreSQL takes no NUL."""


class Form:
    """The parts of a form: small `fields`, and the bytes of the part `file` that have arrived and were not taken yet (`data`).

    Raises OutOfBoundsError for what is no such form.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise OutOfBoundsError(None, "the body is not a form; allowed: multipart/form-data, with `purpose` and `file`")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.data = bytearray()
        self.ended = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._part = ""
        self._field = bytearray()
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._head,
                    "on_headers_finished": self._named,
                    "on_part_data": self._take,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _wrong(error) from error

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _wrong(error) from error

    def _begin(self) -> None:
        self._disposition, self._part = b"", ""
        self._field.clear()
        if len(self.fields) >= FIELDS:
            raise OutOfBoundsError(None, f"the form has more than {FIELDS} parts")

    def _head(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _named(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode(errors="replace")[:NAME_CHARACTERS]
        if self._part == FILE:
            if self.filename is not None:
                raise OutOfBoundsError(FILE, "the form has more than one")
            name = CONTROL.sub("", options.get(b"filename", b"").decode(errors="replace"))
            self.filename = name[:NAME_CHARACTERS] or "upload.jsonl"

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._part == FILE:
            self.data += data[start:end]
        elif len(self._field) + end - start > FIELD_BYTES:
            raise OutOfBoundsError(self._part or None, f"a field of the form has more than {FIELD_BYTES} bytes")
        else:
            self._field += data[start:end]

    def _end_part(self) -> None:
        if self._part != FILE:
            self.fields[self._part] = self._field.decode(errors="replace")

    def _end(self) -> None:
        self.ended = True


def _wrong(error: FormParserError) -> OutOfBoundsError:
    return OutOfBoundsError(None, f"the body is not a form as its Content-Type says ({type(error).__name__})")
