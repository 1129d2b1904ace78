"""One configuration through export, compile and many requests; what differs is shrunk: the request, then model and program."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from qeff_framework.contracts import Task
from qeff_framework.coverage.fuzz.comparison import Outcome, StageError, TinyModel, TinyProgram, replay
from qeff_framework.coverage.fuzz.configs import model_configs
from qeff_framework.coverage.fuzz.examples import Example, ModelConfig, Request
from qeff_framework.coverage.fuzz.findings import Finding
from qeff_framework.coverage.fuzz.programs import program_sizes
from qeff_framework.coverage.fuzz.requests import requests
from qeff_framework.coverage.processes import first_line

#: Models that shrinking a finding builds at most: each is an export.
_MOST_TRIALS: Final = 12
#: Requests that are tried to leave out parts of a finding's.
_MOST_REQUESTS: Final = 60
#: Requests that a simpler model or program gets where the finding's own one shows nothing.
_REQUESTS_PER_TRIAL: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model, the programs that are compiled of it, and the seed of the requests."""

    config: ModelConfig
    programs: Sequence[Mapping[str, Any]]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The case as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return content


#: Takes one line of a case's log: `start` of an example, its `outcome`, or a `finding`.
Log = Callable[[Mapping[str, Any]], None]


def cases(task: Task, model_type: str, *, base_seed: int, count: int) -> list[Case]:
    """`count` different cases of a family, fewer where there are no more; the same ones for the same seed.

    Raises:
        UnsupportedModelError: Transformers has no such model type.
    """
    found: dict[str, Case] = {}
    strategy = st.tuples(model_configs(task, model_type), program_sizes(task))

    # Families and cases get seeds of their own, so that they do not all try the same.
    def own_seed(content: object) -> int:
        return zlib.crc32(f"{base_seed} {task} {model_type} {content}".encode())

    @_quietly(own_seed("cases"), examples=2 * count, phases=[Phase.generate])
    @given(strategy)
    def collect(drawn: tuple[ModelConfig, Sequence[Mapping[str, Any]]]) -> None:
        config, programs = drawn
        content = json.dumps([dataclasses.asdict(config), programs])
        found.setdefault(content, Case(config=config, programs=programs, seed=own_seed(content)))

    collect()
    # Hypothesis begins with the simplest one, which is the same for every seed.
    return list(found.values())[1 : count + 1]


def hunt(case: Case, *, backend: str, examples: int, log: Log) -> dict[str, Any]:
    """Compares `examples` requests for each program of the case; shrinks and logs what it finds.

    Returns:
        ``verdicts``: how many examples ended how; ``findings``: how many there are. A case that Transformers rejects, or that
        the framework refuses as a whole, is one example.
    """
    verdicts: Counter[str] = Counter()

    def counting(line: Mapping[str, Any]) -> None:
        if line["event"] == "outcome" and not line["shrinking"]:
            verdicts[line["verdict"]] += 1
        log(line)

    findings: list[Finding] = []
    try:
        model = TinyModel(case.config)
    except StageError as error:
        counting({"event": "outcome", "shrinking": False, **error.outcome.facts()})
        return {"verdicts": dict(verdicts), "findings": 0}
    for number, sizes in enumerate(case.programs):
        example = Example(config=case.config, sizes=sizes)
        counting({"event": "start", "shrinking": False, "example": example.to_json()})
        try:
            with model.compile(sizes, backend) as program:
                findings += hunt_requests(program, case.seed + number, examples, counting)
        except StageError as error:
            counting({"event": "outcome", "shrinking": False, **error.outcome.facts()})
            if error.outcome.is_finding:
                findings.append(Finding(example=example, outcome=error.outcome))
    for finding in findings:
        # Logged before it is shrunk as well: shrinking builds other models, which may take the process down.
        log({"event": "finding", "shrunk": False, **finding.to_json()})
    for index, finding in enumerate(findings):
        shrunk = shrink_model(finding, backend=backend, seed_of_requests=case.seed, log=counting)
        log({"event": "finding", "shrunk": True, "index": index, **shrunk.to_json()})
    return {"verdicts": dict(verdicts), "findings": len(findings)}


# --- requests of one program --------------------------------------------------------------------------------------------


class _TokensDiffer(Exception):  # noqa: N818  (a verdict)
    """Hypothesis takes failures of one type and place for one bug."""


class _ScoresDiffer(Exception):  # noqa: N818  (a verdict)
    """As above."""


def hunt_requests(
    program: TinyProgram, request_seed: int, examples: int, log: Log, wanted: str | None = None
) -> list[Finding]:
    """One finding for each kind of failure, with the smallest request that shows it; of the verdict `wanted` alone, if given."""
    failures: dict[str, tuple[Request, Outcome]] = {}
    asked: list[Request] = []
    model = program.model

    @_quietly(request_seed, examples=examples, phases=[Phase.generate, Phase.shrink])
    @given(requests(program.sizes, likely=model.likely, vocab_size=model.vocab_size))
    def check(request: Request) -> None:
        example = Example(config=model.config, sizes=program.sizes, request=request)
        shrinking = bool(failures) or wanted is not None
        log({"event": "start", "shrinking": shrinking, "example": example.to_json()})
        asked.append(request)
        raised: Exception | None = None
        try:
            outcome = program.compare_or_raise(request)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the result)
            raised, outcome = error, Outcome(verdict="error", detail=first_line(error))
        log({"event": "outcome", "shrinking": shrinking, **outcome.facts()})
        if not outcome.is_finding or wanted not in (None, outcome.verdict):
            return
        # The last request of each kind that Hypothesis runs is the smallest one.
        failures[_kind(outcome)] = request, outcome
        if raised is not None:
            raise raised
        raise _TokensDiffer if outcome.verdict == "tokens" else _ScoresDiffer

    before: list[Request] = []
    try:
        check()
    except Flaky:
        before = _what_ran_before(asked, failures)
    except Exception:
        # An error of the check itself would be a mistake here: what the program raises has left an entry.
        if not failures:
            raise
    example = Example(config=model.config, sizes=program.sizes, before=before)
    found = [
        Finding(example=dataclasses.replace(example, request=request), outcome=outcome)
        for request, outcome in failures.values()
    ]
    return found if before else [_shrunk_request(program, finding) for finding in found]


def _shrunk_request(program: TinyProgram, finding: Finding) -> Finding:
    """Without the settings that Hypothesis could not leave out alone, because others were drawn after them."""

    def try_out(example: Example) -> Finding | None:
        assert example.request is not None  # noqa: S101  (`shorter` changes requests alone)
        outcome = program.compare(example.request)
        same = _kind(outcome) == _kind(finding.outcome)
        return Finding(example=example, outcome=outcome) if same else None

    return shrunk(finding, try_out, Example.shorter, trials=_MOST_REQUESTS)


def _kind(outcome: Outcome) -> str:
    return f"{outcome.verdict} {outcome.detail}" if outcome.verdict == "error" else outcome.verdict


def _what_ran_before(asked: Sequence[Request], failures: Mapping[str, tuple[Request, Outcome]]) -> list[Request]:
    """The request in front of the last failing one: a failure that comes and goes depends on what the session has run."""
    failing = [request for request, _ in failures.values()]
    places = [place for place, request in enumerate(asked) if request in failing and place]
    return [asked[places[0] - 1]] if places else []


def _quietly(number: int, *, examples: int, phases: Sequence[Phase]) -> Callable[[Any], Callable[[], None]]:
    """Hypothesis with a seed of its own, without a database, and without words: the log says everything."""

    def decorate(test: Any) -> Callable[[], None]:
        decorated: Callable[[], None] = seed(number)(
            settings(
                max_examples=examples,
                phases=phases,
                database=None,
                deadline=None,
                derandomize=False,
                print_blob=False,
                verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck),
            )(test)
        )
        return decorated

    return decorate


# --- shrinking model and program ----------------------------------------------------------------------------------------


def shrink_model(finding: Finding, *, backend: str, seed_of_requests: int, log: Log) -> Finding:
    """The finding with fewer changes of the model and a simpler program, where the same kind of difference shows there too."""

    def try_out(example: Example) -> Finding | None:
        log({"event": "start", "shrinking": True, "example": example.to_json()})
        outcome = replay(example, backend=backend)
        if outcome.verdict == finding.outcome.verdict:
            return Finding(example=example, outcome=outcome)
        if example.request is None or outcome.stage != "generate":
            return None
        # Other weights and other sizes: the difference may need another request.
        try:
            with TinyModel(example.config).compile(example.sizes, backend) as program:
                found = hunt_requests(
                    program, seed_of_requests, _REQUESTS_PER_TRIAL, log, wanted=finding.outcome.verdict
                )
        except StageError:
            return None
        return found[0] if found else None

    return shrunk(finding, try_out, Example.simpler, trials=_MOST_TRIALS)


def shrunk(
    finding: Finding,
    try_out: Callable[[Example], Finding | None],
    candidates: Callable[[Example], Iterator[Example]],
    *,
    trials: int,
) -> Finding:
    """The smallest finding that `try_out` confirms, among the candidates of the last one that it has confirmed."""
    tried: list[Example] = [finding.example]
    while trials > 0:
        untried = (example for example in candidates(finding.example) if example not in tried)
        better: Finding | None = None
        for example in untried:
            tried.append(example)
            trials -= 1
            better = try_out(example)
            if better is not None or trials <= 0:
                break
        if better is None:
            return finding
        finding = better
    return finding
