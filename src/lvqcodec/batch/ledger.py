# SPDX-License-Identifier: Apache-2.0
"""Which files of a destination batches have written: these may be replaced, and no others."""

from __future__ import annotations

import os

from lvqcodec.batch.records import Log, Record
from lvqcodec.batch.store import Store
from lvqcodec.files import FileInTheWay


class Ledger:
    """The journal of a destination; only through it are outputs written. For several threads.

    A file is a batch's own if the journal has a record of this name and these very bytes.
    overwrite: whether others are replaced too. Raises UsageError if the journal cannot be read.
    """

    def __init__(self, destination: Store, *, overwrite: bool = False) -> None:
        self._destination = destination
        self._overwrite = overwrite
        self._journal = Log(destination, "journal.jsonl", Record, _key)
        self._outputs = {record.output for record in self._journal.lines()}

    def find(self, output: str) -> Record | None:
        """Return the record of an output that is there, None if it is not or is to be replaced.

        Raises FileInTheWay if what is there must not be replaced, and UsageError for a name that
        leads out of the destination.
        """
        if not self._destination.exists(output):
            return None
        if output in self._outputs:  # else the bytes, maybe many, say nothing
            known = self._journal.get((output, self._destination.digest(output)))
            if known is not None:
                return known
        if self._overwrite:
            return None
        raise FileInTheWay(
            f"{output} is in its place and was not written by lvq batch: it is left as it is; "
            "give --overwrite to replace it"
        )

    def put(
        self, record: Record, data: bytes, *, like: os.stat_result | None, preserve: bool
    ) -> None:
        """Write an output; raises FileInTheWay, UsageError and OSError.

        Its record is written before it: whenever the batch is killed, the next one knows its own.
        """
        assert record.output is not None
        replace = self._overwrite or self.find(record.output) is not None
        self._journal.add(record)
        self._outputs.add(record.output)
        self._destination.write(record.output, data, replace=replace, like=like, preserve=preserve)

    def flush(self) -> None:
        """Put what is held back where the next batch finds it."""
        self._destination.flush()


def _key(record: Record) -> tuple[object, object]:
    return record.output, record.output_sha256
