"""Optuna's storage in a database, adding a record with few statements."""

from __future__ import annotations

import json
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages._rdb.models import TrialSystemAttributeModel, TrialUserAttributeModel
    from sqlalchemy.orm import Session

RACES = 10  # attempts to make the tables that another process is making too


class Database(RDBStorage):
    """Records are added whole, in one transaction: a kill leaves all of a record or nothing.

    Optuna asks the database up to two questions for every parameter and attribute of a new trial: whether the trial
    may still be changed, and what was there before. A ledger knows the answers, and a network has many groups. It
    never changes an attribute of a record, which this storage could not do.
    """

    def _set_trial_param_without_commit(
        self,
        session: Session,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        from optuna.storages._rdb.models import TrialParamModel

        session.add(
            TrialParamModel(
                trial_id=trial_id,
                param_name=param_name,
                param_value=param_value_internal,
                distribution_json=distribution_to_json(distribution),
            )
        )

    def _set_trial_attr_without_commit(
        self,
        session: Session,
        model_cls: type[TrialUserAttributeModel | TrialSystemAttributeModel],
        trial_id: int,
        key: str,
        value: Any,
    ) -> None:
        session.add(model_cls(trial_id=trial_id, key=key, value_json=json.dumps(value)))


def open_database(url: str, options: dict[str, Any]) -> Database:
    """The storage at a URL; its tables are made if they are missing, maybe by another process at the same moment."""
    from sqlalchemy.exc import DBAPIError, IntegrityError

    # It announces studies, and shows a statement that failed before it raises.
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
    for attempt in range(1, RACES + 1):
        try:
            return Database(url, engine_kwargs=options)
        except DBAPIError as error:
            if attempt == RACES or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(random.uniform(0.0, 0.2))
    raise AssertionError
