"""Which store an admission process keeps its state in."""

from policies.admission.fairness import FairQueue
from services.admission.embedded_store import EmbeddedStore
from services.admission.redis_store import RedisStore
from services.admission.shared_counters import SharedCounters
from services.admission.store import Answer, Store
from services.settings import EMBEDDED_STORE, Deployment
from services.troubles import Troubles


def store_of(deployment: Deployment, instance: str, answer: Answer, queue: FairQueue, troubles: Troubles) -> Store:
    """The one that the deployment names, as this instance of admission has it; `queue` is whose counters are shared.

    Raises:
        StartError: its address or password file cannot be used.
    """
    if deployment.store == EMBEDDED_STORE:
        return EmbeddedStore(deployment.data, answer)
    return RedisStore(deployment, instance, answer, SharedCounters(queue), troubles)
