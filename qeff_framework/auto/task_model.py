"""What the classes of all tasks share beside `QEFFBaseModel`."""

from __future__ import annotations

from qeff_framework.auto.dispatch import check_task
from qeff_framework.model import QEFFBaseModel
from qeff_framework.sources import ModelSource


class TaskModel(QEFFBaseModel):
    """A class for one task. A checkpoint that was saved with the head of another one is refused before its weights are read."""

    @classmethod
    def _check_architecture(cls, source: ModelSource) -> None:
        check_task(source, cls.task)
