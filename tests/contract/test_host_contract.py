"""Pixeltable as the host: by SQL, through its public API alone, and with one table for all namespaces."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pixeltable as pxt
import pytest

from pixelmemory import Options
from pixelmemory.projection.contract import Capability, Host, ProjectionState
from pixelmemory.projection.pixeltable.host import PixeltableHost
from pixelmemory.projection.pixeltable.startup import start_pixeltable
from pixelmemory.projection.sql.physical import namespace_key

pytest.register_assert_rewrite("tests.contract.host_contract")
from tests.contract.host_contract import HostContract  # noqa: E402


class TestSql(HostContract):
    direct_sql = True

    def open(self, name: str, tables_id: uuid.UUID, state: ProjectionState, options: Options) -> Host:
        start_pixeltable(keep_http_server=False)
        options = msgspec.structs.replace(options, direct_sql=self.direct_sql)
        return PixeltableHost.open(name, tables_id, state, schema=None, embed_texts=None, options=options)

    def drop_table(self, host: Host, namespace: str) -> None:
        host.create(namespace)
        pxt.drop_table(host.table(namespace), force=True)

    def insert(self, host: Host, namespace: str, memory_id: str, content: str) -> None:
        row: dict[str, Any] = {"memory_id": uuid.uuid4(), "id_text": memory_id, "content": content}
        if self.layout == "shared":
            row |= {"namespace": namespace, "namespace_key": namespace_key(namespace)}
        host.create(namespace)
        host.table(namespace).insert([row])


class TestSharedTable(TestSql):
    layout = "shared"


class TestAutoLayout(TestSql):
    layout = "auto"


class TestPublicApi(TestSql):
    direct_sql = False
    lacks = frozenset({Capability.PURGE})
