"""Who has the engine next, and what becomes of a request that finds it busy. Knows no threads."""

from collections.abc import Iterator
from dataclasses import dataclass
import itertools

from flash_llm_ros.engine import Generation, Suspended
from flash_llm_ros.node.work.request import Request
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

WHEN_BUSY = ('queue', 'keep_last', 'reject', 'interrupt')
MOST_SET_ASIDE = 4      # each keeps some memory of its own, and a thread of the executor


@dataclass(eq=False)
class Job:
    """One request on its way through the engine; set aside, it has a generation and waits."""

    request: Request
    order: int                              # among requests of one priority, the least goes first
    generation: Generation | None = None
    pieces: Iterator[str] | None = None
    suspended: Suspended | None = None
    unpaid_work: float = 0.0                # s, that it need not rest for
    stands_back: bool = True                # False where it could not be set aside

    @property
    def rank(self) -> tuple[int, int]:
        """What jobs are sorted by."""
        return -self.request.priority, self.order

    @property
    def session(self) -> str:
        """The conversation that it belongs to; '' for none."""
        return self.request.generation.session_id


class Scheduler:
    """The jobs that wait, bounded. Its owner sees to it that one thread at a time calls."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def waiting(self) -> list[Job]:
        """Jobs that have not begun, in their order."""
        return sorted((job for job in self._jobs if job.generation is None
                       and not job.request.ended), key=lambda job: job.rank)

    @property
    def set_aside(self) -> list[Job]:
        """Turns that have begun and wait for those of a higher priority."""
        return [job for job in self._jobs if job.generation is not None]

    def admit(self, request: Request, running: Job | None, size: int,
              when_busy: str) -> list[Request]:
        """Let a request wait for the engine; returns those whose place it takes, to be ended.

        `running` has the engine. `size` requests may wait; one that goes first at once, since its
        priority is the highest, needs no place. Raises FlashLlmError(QUEUE_FULL).
        """
        waiting = self.waiting
        engaged = [job for job in (running, *waiting, *self.set_aside)
                   if job is not None and not job.request.ended]
        order = next(self._numbers)
        replaced: list[Request] = []
        if not engaged:
            pass
        elif when_busy == 'interrupt' and request.priority >= engaged[0].request.priority:
            replaced, order = [engaged[0].request], -order      # it also overtakes its equals
        elif self._goes_first(request, running):
            pass
        elif when_busy == 'reject':
            raise _refusal('The engine is busy and `requests.when_busy` is reject')
        elif when_busy == 'keep_last':
            if waiting and waiting[0].request.priority > request.priority:
                raise _refusal('`requests.when_busy` is keep_last and what waits has a higher '
                               'priority')
            replaced = [job.request for job in waiting]
        elif len(waiting) >= size:
            raise _refusal(f'A request runs and {len(waiting)} wait, which is all that '
                           '`requests.queue_size` allows')
        self._drop_ended()
        self._jobs.append(Job(request, order))
        return replaced

    def must_stand_back(self, running: Job) -> bool:
        """Whether one of a higher priority waits and what runs can be set aside."""
        return (running.stands_back and len(self.set_aside) < MOST_SET_ASIDE
                and any(job.request.priority > running.request.priority
                        and not self._is_blocked(job, running) for job in self.waiting))

    def put_back(self, job: Job) -> None:
        """Let one that was set aside wait for the engine again."""
        self._jobs.append(job)

    def take(self) -> Job | None:
        """Remove and return the next job, which may have ended if it was set aside."""
        self._drop_ended()
        if not self._jobs:
            return None
        job = min((job for job in self._jobs if not self._is_blocked(job)),
                  key=lambda job: job.rank)
        self._jobs.remove(job)
        return job

    def take_ended(self) -> list[Job]:
        """Remove and return those that were set aside and have ended meanwhile."""
        ended = [job for job in self.set_aside if job.request.ended]
        for job in ended:
            self._jobs.remove(job)
        return ended

    def requests(self) -> list[Request]:
        """Every request that waits."""
        return [job.request for job in self._jobs]

    def _goes_first(self, request: Request, running: Job | None) -> bool:
        return (running is not None and not running.request.ended and running.stands_back
                and not self._is_blocked(Job(request, 0), running)
                and len(self.set_aside) < MOST_SET_ASIDE
                and all(request.priority > job.request.priority
                        for job in (running, *self.waiting)))

    def _is_blocked(self, job: Job, running: Job | None = None) -> bool:
        """Whether an earlier one of the same conversation has begun and not ended."""
        if job.generation is not None or not job.session:
            return False
        begun = [*self.set_aside, *([] if running is None else [running])]
        return any(other.session == job.session for other in begun)

    def _drop_ended(self) -> None:
        """Those that were set aside stay: the engine's thread has to clear up behind them."""
        self._jobs = [job for job in self._jobs
                      if job.generation is not None or not job.request.ended]


def _refusal(why: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.QUEUE_FULL, f'{why}; send it again later.')
